"""Pods against Spring Cloud's Eureka over https, with passwords, and with the cache of its lists as in production."""

import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from pidone.errors import PidoneError, RegistryError
from pidone.registries import Status
from tests.eureka.real import AT_ONCE, RealEureka, missing, spring_eureka, version
from tests.patience import PATIENCE_SECONDS
from tests.ports import free_port
from tests.registries.pods import Look, Pods
from tests.registries.test_eureka import make
from tests.registries.world import port
from tests.results import serve_with

JAR = Path(__file__).parent / "spring/target/secured.jar"
APP = "SECURED"


class Secured:
    """The server, which can be started again on its port."""

    def __init__(self, folder: Path) -> None:
        words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=eureka"
        self.certificate = folder / "certificate.pem"
        names = ["-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", str(folder / "key.pem"), "-out", str(self.certificate)]
        subprocess.run([*words.split(), *names, *files], check=True, capture_output=True)
        self._settings = AT_ONCE | {
            # The cache of lists, which Spring refreshes every 30 s by default
            "EUREKA_SERVER_USEREADONLYRESPONSECACHE": "true",
            "EUREKA_SERVER_RESPONSECACHEUPDATEINTERVALMS": "1000",
            "SERVER_SSL_CERTIFICATE": f"file:{self.certificate}",
            "SERVER_SSL_CERTIFICATEPRIVATEKEY": f"file:{folder / 'key.pem'}",
        }
        self._port = free_port()
        self._log = folder / "server.log"
        self._running = ExitStack()
        self.server: RealEureka

    def start(self) -> None:
        """Start with an empty registry. Returns when the server answers."""
        starting = spring_eureka(self._port, self._log, self._settings, jar=JAR, scheme="https")
        self.server = self._running.enter_context(starting)
        self.server.wait_ready()

    def kill(self) -> None:
        self.server.process.kill()
        self._running.close()

    def url(self, user: str = "pods:right@", path: str = "eureka") -> str:
        return f"https://{user}127.0.0.1:{self._port}/{path}"

    def client(self) -> httpx.Client:
        accept = {"accept": "application/json"}
        return httpx.Client(base_url=self.url(), verify=False, headers=accept)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    if reason := missing():
        pytest.skip(reason)
    if not JAR.is_file():
        pytest.skip(f"{JAR} is not there: make peers")
    if shutil.which("openssl") is None:
        pytest.skip("no openssl: apt-get install openssl")
    secured = Secured(tmp_path_factory.mktemp("secured"))
    secured.start()
    yield secured
    secured.kill()


@pytest.fixture(autouse=True)
def trusted(secured: Secured, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Pods trust the certificate of the server."""
    monkeypatch.setenv("PIDONE_CA", str(secured.certificate))
    serve_with(request, version())


@pytest.fixture
async def pods(tmp_path: Path) -> AsyncIterator[Pods]:
    with (tmp_path / "pods.log").open("wb") as log:
        pods = await Pods.start(log)
        yield pods
        await pods.kill()


def register(secured: Secured, number: int) -> dict[str, Any]:
    fields = {"app": APP, "port": port(number), "renewalInterval": 1, "leaseDuration": 6}
    return {"eureka": {"url": secured.url(), **fields}}


def seen(secured: Secured, number: int) -> str:
    """Return the status of a pod's instance, asked by its id; empty if it is not there."""
    with secured.client() as client:
        answer = client.get(f"apps/{APP}/web-{number}:{APP.lower()}:{port(number)}")
    return str(answer.json()["instance"]["status"]) if answer.status_code == 200 else ""


async def until(pods: Pods, good: Callable[[dict[int, Look]], bool]) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        while not good(await pods.order()):
            await trio.sleep(0.05)  # the state of another process has no event


@pytest.mark.check("eureka", "instance visible by id at once, in the full list within the cache interval")
async def test_an_instance_is_shown_by_its_id_at_once_and_in_lists_after_the_cache(secured: Secured) -> None:
    with secured.client() as client:
        assert client.get("apps").status_code == 200, "the list is in the cache"
        driver = make(secured.url(), "cached")
        await driver.register(Status.UP)
        instance = "apps/CACHED/web-7d9c:cached:9080"
        assert client.get(instance).json()["instance"]["status"] == "UP"
        with trio.fail_after(PATIENCE_SECONDS):
            while "CACHED" not in client.get("apps").text:
                await trio.sleep(0.05)
        await driver.deregister()
        assert client.get(instance).status_code == 404


@pytest.mark.check("eureka", "server restart → 404 → one POST")
async def test_after_a_restart_one_document_is_sent(secured: Secured, pods: Pods) -> None:
    await pods.order(start={1: register(secured, 1)})
    await until(pods, lambda looks: looks[1].renewals >= 1)
    assert seen(secured, 1) == "UP"
    secured.kill()
    await until(pods, lambda looks: looks[1].failures >= 1)
    await trio.to_thread.run_sync(secured.start)
    before = (await pods.order())[1]
    await until(pods, lambda looks: looks[1].renewals >= before.renewals + 2)
    assert (await pods.order())[1].registrations == before.registrations + 1 == 2
    assert seen(secured, 1) == "UP"


@pytest.mark.check("eureka", "nothing re-registers within two intervals after leave")
async def test_who_left_does_not_come_back(secured: Secured, pods: Pods) -> None:
    await pods.order(start={number: register(secured, number) for number in (2, 3)})
    await until(pods, lambda looks: min(looks[2].renewals, looks[3].renewals) >= 1)
    await pods.order(drain={2: 10})
    await until(pods, lambda looks: looks[2].over)
    left = (await pods.order())[2]
    assert (left.left, seen(secured, 2)) == ("", "")
    renewals = (await pods.order())[3].renewals
    await until(pods, lambda looks: looks[3].renewals >= renewals + 3)
    assert (seen(secured, 2), seen(secured, 3)) == ("", "UP")
    assert (await pods.order())[2].registrations == left.registrations


@pytest.mark.check("eureka", "wrong prefix and 401 reported as configuration errors")
@pytest.mark.parametrize(
    ("user", "path", "remedy"),
    [
        ("", "eureka", r"answered 401.*: it wants a user \(http://user:password@host\)"),
        ("pods:wrong@", "eureka", r"answered 401.*: it wants a user \(http://user:password@host\)"),
        ("strict:right@", "eureka", "answered 40[13].*, or its CSRF protection covers the Eureka paths"),
        ("pods:right@", "registry", "answered 404.*is the URL right"),
        ("pods:right@", "", "answered 404.*is the URL right"),
        ("pods:right@", "eureka/apps", 'the URL ends in "apps"'),
        ("pods:right@", "eureka/a/b", "answered 404.*is the URL right"),
    ],
)
async def test_a_wrong_url_or_user_is_told_with_the_remedy(
    user: str, path: str, remedy: str, secured: Secured
) -> None:
    driver = make(secured.url(user, path), "wrong")
    with pytest.raises(RegistryError, match=remedy) as raised:
        await driver.register(Status.UP)
    assert "right@" not in str(raised.value)
    assert "wrong@" not in str(raised.value)


async def test_a_server_whose_certificate_is_not_trusted_gets_no_password(
    secured: Secured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIDONE_CA")
    with pytest.raises(PidoneError, match="certificate"):
        await make(secured.url(), "trusted").register(Status.UP)


async def test_an_instance_is_kept_over_https_with_a_password(secured: Secured) -> None:
    driver = make(secured.url(), "kept")
    for status in (Status.STARTING, Status.UP, Status.DOWN):
        assert await driver.register(status) == status
        assert await driver.heartbeat()
        entry = await driver.read()
        assert entry is not None
        assert entry.status == status
    await driver.deregister()
    assert await driver.read() is None
    assert not await driver.heartbeat()
