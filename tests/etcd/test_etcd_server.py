"""The driver against real servers: Debian's etcd 3.4 and etcd 3.6, with and without authentication."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from pidone.errors import PidoneError, RegistryError, RegistryRefused, TransferTimeout
from pidone.http.client import request
from pidone.plan.digest import digest
from pidone.plan.fields import Fields
from pidone.plan.model import Pod
from pidone.plan.report import Report, TaskReport
from pidone.registries import Entry, Status, build
from pidone.registries._etcd_messages import LEASE_NOT_FOUND
from pidone_controller.deregistration import Deregistration, outside
from pidone_controller.deregistration import build as build_for_controller
from tests.controller.factories import pod
from tests.etcd import real
from tests.etcd.conftest import POD, Bench, make
from tests.etcd.real import Cluster, Reader
from tests.patience import PATIENCE_SECONDS
from tests.results import serve_with

VALUE = "http://10.42.0.18:9080"


async def until_gone(bench: Bench) -> None:
    """Wait until the service has no instance."""
    with trio.fail_after(PATIENCE_SECONDS):
        while bench.values():
            await trio.sleep(0.05)


class TestRegistration:
    async def test_an_instance_has_a_key_with_a_lease(self, bench: Bench) -> None:
        registry = bench.driver()
        assert await registry.register(Status.UP) == "UP"
        (found,) = bench.found()
        assert (found["key"], found["value"]) == (bench.key, VALUE)
        assert 28 <= bench.left(found["lease"]) <= 30
        assert await registry.heartbeat()
        assert await registry.read() == Entry("UP", "10.42.0.18")
        await registry.deregister()
        assert bench.values() == []
        assert bench.left(found["lease"]) == -1
        assert await registry.read() is None

    async def test_leaving_twice_or_without_having_come_is_fine(self, bench: Bench) -> None:
        registry = bench.driver()
        await registry.deregister()
        await registry.register(Status.UP)
        await registry.deregister()
        await registry.deregister()
        assert await registry.register(Status.UP) == "UP"
        assert bench.values() == [VALUE]

    @pytest.mark.parametrize("status", [Status.DOWN, Status.OUT_OF_SERVICE, Status.STARTING])
    async def test_an_instance_that_is_not_up_has_no_key_and_keeps_its_lease(
        self, status: Status, bench: Bench
    ) -> None:
        registry = bench.driver()
        await registry.register(Status.UP)
        lease = bench.found()[0]["lease"]
        assert await registry.register(status) == status
        assert bench.values() == []
        assert await registry.heartbeat()
        assert await registry.read() is None
        assert await registry.register(Status.UP) == "UP"
        assert bench.found() == [{"key": bench.key, "value": VALUE, "lease": lease}]

    async def test_one_that_begins_down_has_a_lease_to_renew(self, bench: Bench) -> None:
        registry = bench.driver()
        await registry.register(Status.DOWN)
        assert await registry.heartbeat()
        assert bench.values() == []
        await registry.deregister()

    async def test_a_lease_that_was_granted_already_is_ours(self, bench: Bench) -> None:
        registry = bench.driver()
        bench.cluster.ask("lease/grant", {"ID": registry._lease, "TTL": "30"})
        assert await registry.register(Status.UP) == "UP"
        assert bench.found()[0]["lease"] == registry._lease

    async def test_a_key_that_somebody_deletes_is_missed_within_a_lease(self, bench: Bench) -> None:
        registry = bench.driver()
        await registry.register(Status.UP)
        bench.delete(bench.key)
        assert await registry.heartbeat()
        registry._look_at = trio.current_time()
        assert not await registry.heartbeat()
        await registry.register(Status.UP)
        assert bench.values() == [VALUE]

    async def test_a_value_that_somebody_changes_is_put_again(self, bench: Bench) -> None:
        registry = bench.driver()
        await registry.register(Status.UP)
        bench.put(bench.key, "http://elsewhere:1", registry._lease)
        registry._look_at = trio.current_time()
        assert not await registry.heartbeat()
        await registry.register(Status.UP)
        assert bench.values() == [VALUE]

    async def test_a_key_of_another_pod_is_told_and_left(self, bench: Bench) -> None:
        registry = bench.driver()
        await registry.register(Status.UP)
        bench.put(bench.key, "http://10.42.0.99:9080", bench.grant(60))
        registry._look_at = trio.current_time()
        with pytest.raises(RegistryError, match="another pod registers the same key"):
            await registry.heartbeat()
        assert await registry.read() == Entry("UP", "10.42.0.99")
        await registry.deregister()
        assert bench.values() == ["http://10.42.0.99:9080"]

    async def test_the_controller_deletes_the_key_of_a_pod_that_is_gone_and_no_other(
        self, bench: Bench, nursery: trio.Nursery
    ) -> None:
        config = {"endpoints": bench.cluster.endpoints, "layout": "go-kit", "service": bench.service}
        register = {"etcd": {**config, "port": 9080, **bench.credentials}}
        tasks: list[dict[str, Any]] = [{"name": "registration", "register": register}]
        gone, other = pod("web-0", "10.42.0.18"), pod("web-1", "10.42.0.19")
        done = trio.Event()

        def log(event: str, **_: Any) -> None:
            if event == "deregistered":
                done.set()

        deregistration = Deregistration(log)
        nursery.start_soon(deregistration.run)
        said = Report("applied", digest=digest(tasks), tasks={"registration": TaskReport("registered")})
        for one in (gone, other):
            await build_for_controller(register, one).register(Status.UP)
            deregistration.reported(one, said, digest(tasks), lambda: tasks)
        deregistration.gone(gone.key)
        with trio.fail_after(PATIENCE_SECONDS):
            await done.wait()
        assert bench.values() == ["http://10.42.0.19:9080"]
        nursery.cancel_scope.cancel()


class TestLease:
    @pytest.mark.check("etcd", "dead lease answers 200 without TTL")
    async def test_a_dead_lease_answers_200_without_ttl_and_is_told(self, bench: Bench) -> None:
        registry = bench.driver()
        await registry.register(Status.UP)
        lease = bench.found()[0]["lease"]
        bench.revoke(lease)
        answer = bench.cluster.ask("lease/keepalive", {"ID": lease})
        assert answer["result"]["ID"] == lease
        assert "TTL" not in answer["result"]
        assert not await registry.heartbeat()
        assert await registry.register(Status.UP) == "UP"
        assert bench.values() == [VALUE]
        assert await registry.heartbeat()

    @pytest.mark.check("etcd", "put on dead lease 404")
    async def test_a_put_with_a_dead_lease_is_404_and_a_new_lease_follows(self, bench: Bench) -> None:
        registry = bench.driver()
        await registry.register(Status.UP)
        lease = bench.found()[0]["lease"]
        bench.revoke(lease)
        with pytest.raises(AssertionError, match=rf"404 .*{LEASE_NOT_FOUND}"):
            bench.put(bench.key, VALUE, lease)
        assert await registry.register(Status.UP) == "UP"
        assert bench.found()[0]["lease"] not in {lease, "0"}

    @pytest.mark.check("etcd", "minimum TTL")
    async def test_a_shorter_lease_than_2_s_is_one_of_2_s(self, bench: Bench) -> None:
        assert bench.cluster.ask("lease/grant", {"TTL": "1"})["TTL"] == "2"
        registry = bench.driver(ttl=2)
        await registry.register(Status.UP)
        assert registry.lease == 2
        await until_gone(bench)
        assert not await registry.heartbeat()

    @pytest.mark.check("etcd", "take-over of a predecessor's key")
    async def test_the_lease_of_a_predecessor_ends_without_our_key(self, bench: Bench) -> None:
        before = bench.driver(ttl=2)
        await before.register(Status.UP)
        lease = bench.found()[0]["lease"]
        registry = bench.driver()
        await registry.register(Status.UP)
        while bench.left(lease) != -1:
            await trio.sleep(0.05)
        assert [found["value"] for found in bench.found()] == [VALUE]
        assert await registry.heartbeat()

    async def test_a_predecessors_key_is_deleted_by_one_that_is_down(self, bench: Bench) -> None:
        await bench.driver().register(Status.UP)
        await bench.driver().register(Status.DOWN)
        assert bench.values() == []

    async def test_a_new_plan_goes_on_with_the_lease(self, bench: Bench) -> None:
        old = bench.driver()
        await old.register(Status.UP)
        lease = bench.found()[0]["lease"]
        new = bench.driver(scheme="https")
        assert new.succeeds(old)
        new.take_over(old)
        await new.register(Status.UP)
        assert bench.found() == [{"key": bench.key, "value": "https://10.42.0.18:9080", "lease": lease}]

    async def test_a_new_plan_with_another_ttl_leaves_no_lease_behind(self, bench: Bench) -> None:
        old = bench.driver()
        await old.register(Status.UP)
        lease = bench.found()[0]["lease"]
        new = bench.driver(ttl=60)
        new.take_over(old)
        await new.register(Status.UP)
        (found,) = bench.found()
        assert bench.left(found["lease"]) > 30
        assert bench.left(lease) == -1


class TestRestart:
    @pytest.mark.check("etcd", "restart renews the lease")
    async def test_a_server_that_restarts_gives_leases_their_full_time(self, lone: Cluster) -> None:
        bench = Bench(lone, "ratings", {})
        registry = bench.driver(ttl=6)
        await registry.register(Status.UP)
        lease = bench.found()[0]["lease"]
        while bench.left(lease) > 3:
            await trio.sleep(0.1)
        lone.members[0].kill()
        lone.members[0].start()
        lone.wait_ready()
        assert bench.left(lease) >= 5
        assert await registry.heartbeat()
        assert bench.values() == [VALUE]

    async def test_a_server_that_restarts_empty_is_told_and_gets_the_instance_again(
        self, lone: Cluster
    ) -> None:
        bench = Bench(lone, "ratings", {})
        registry = bench.driver()
        await registry.register(Status.UP)
        lone.members[0].kill()
        with pytest.raises(Exception, match="Connection refused"):
            await registry.heartbeat()
        lone.members[0].wipe()
        lone.members[0].start()
        lone.wait_ready()
        assert not await registry.heartbeat()
        await registry.register(Status.UP)
        assert bench.values() == [VALUE]


@pytest.fixture
def guarded(server: str, clusters: dict[tuple[str, bool], Cluster], request: pytest.FixtureRequest) -> Bench:
    """A service in an etcd with authentication."""
    if reason := real.missing(server):
        pytest.skip(reason)
    serve_with(request, f"etcd {real.version(server)}")
    return Bench(
        clusters[server, True], f"guarded{time.monotonic_ns()}", {"user": "pods", "password": "s3cret"}
    )


class TestAuthentication:
    @pytest.mark.check("etcd", "token expiry 401 → one re-authentication")
    async def test_a_token_that_etcd_has_forgotten_is_renewed_once(self, guarded: Bench) -> None:
        registry = guarded.driver()
        await registry.register(Status.UP)
        token = registry._token["authorization"]
        stale = "forgotten.1"  # the number is an index of the log, for which etcd waits
        registry._token["authorization"] = stale
        body = json.dumps({"key": "AA=="}).encode()
        url = f"{guarded.cluster.members[0].url}/v3/kv/range"
        answer = await request("POST", url, body=body, headers={"authorization": stale}, timeout=10)
        assert answer.status == 401
        assert await registry.register(Status.UP) == "UP"
        assert registry._token["authorization"] not in {stale, token}

    async def test_a_token_of_a_later_etcd_is_given_up(self, guarded: Bench) -> None:
        """An etcd that was restored from a backup waits for the index in the token, which its log does not have."""
        registry = guarded.driver(ttl=2)
        await registry.register(Status.DOWN)
        later = "of.99999999"
        registry._token["authorization"] = later
        with pytest.raises(TransferTimeout):
            await registry.register(Status.UP)
        assert await registry.register(Status.UP) == "UP"
        assert registry._token["authorization"] != later

    async def test_a_token_of_before_a_change_of_roles_is_renewed(self, guarded: Bench) -> None:
        registry = guarded.driver()
        await registry.register(Status.UP)
        guarded.cluster.ask("auth/role/add", {"name": f"another-{guarded.service}"})
        await registry.deregister()
        assert guarded.values() == []

    async def test_the_password_is_read_again_from_its_file(self, guarded: Bench, tmp_path: Path) -> None:
        file = tmp_path / "password"
        registry = make(guarded.cluster.endpoints, guarded.service, user="pods", passwordFile=str(file))
        with pytest.raises(RegistryError, match="No such file"):
            await registry.register(Status.UP)
        file.write_text("wrong\n")
        with pytest.raises(RegistryRefused, match="are user and password right") as raised:
            await registry.register(Status.UP)
        assert "wrong" not in str(raised.value)
        file.write_text("s3cret\n")
        assert await registry.register(Status.UP) == "UP"
        await registry.deregister()

    async def test_without_a_user_the_remedy_is_told(self, guarded: Bench) -> None:
        registry = make(guarded.cluster.endpoints, guarded.service)
        with pytest.raises(RegistryRefused, match="set user, and password or passwordFile"):
            await registry.register(Status.UP)

    async def test_the_controller_reads_no_file_of_a_pod(self, guarded: Bench, tmp_path: Path) -> None:
        (tmp_path / "password").write_text("s3cret")
        fields: dict[str, Any] = {"user": "pods", "passwordFile": str(tmp_path / "password")}
        registry = make(guarded.cluster.endpoints, guarded.service, **fields)
        await registry.register(Status.UP)
        config = {"endpoints": guarded.cluster.endpoints, "layout": "go-kit", "service": guarded.service}
        seen = outside({"etcd": {**config, "port": 9080, **fields}}, "shop", "")
        controller = build(Fields(seen, "register"), POD, None)
        with pytest.raises(RegistryRefused, match='user "pods" needs password or passwordFile'):
            await controller.read()
        await registry.deregister()

    async def test_a_key_that_the_user_may_not_write_is_told(self, guarded: Bench) -> None:
        registry = make(
            guarded.cluster.endpoints, guarded.service, prefix="/elsewhere", **guarded.credentials
        )
        with pytest.raises(RegistryRefused, match=r'grant its role readwrite on "/elsewhere/'):
            await registry.register(Status.UP)

    async def test_a_user_where_authentication_is_off_is_not_asked_for(
        self, server: str, clusters: dict[tuple[str, bool], Cluster]
    ) -> None:
        if reason := real.missing(server):
            pytest.skip(reason)
        bench = Bench(clusters[server, False], "open", {"user": "pods", "password": "s3cret"})
        assert await bench.driver().register(Status.UP) == "UP"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-signed for 127.0.0.1, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl: apt-get install openssl")
    path = tmp_path_factory.mktemp("tls") / "etcd.pem"
    words = (
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {path} -days 2"
    )
    more = ["-subj", "/CN=etcd", "-addext", "subjectAltName=IP:127.0.0.1", "-out", f"{path}.crt"]
    subprocess.run([*words.split(), *more], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


class TestTls:
    async def test_https_with_the_authority_of_the_pod(
        self, server: str, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if reason := real.missing(server):
            pytest.skip(reason)
        with real.running(server, tmp_path, certificate=certificate) as cluster:
            bench = Bench(cluster, "ratings", {})
            with pytest.raises(Exception, match="certificate verify failed"):
                await bench.driver().register(Status.UP)
            monkeypatch.setenv("PIDONE_CA", str(certificate))
            registry = bench.driver()
            assert await registry.register(Status.UP) == "UP"
            assert await registry.heartbeat()
            await registry.deregister()
            plain = make(cluster.endpoints.replace("https", "http"))
            with pytest.raises(PidoneError, match="the connection ended before the answer"):
                await plain.register(Status.UP)


class TestMembers:
    @pytest.fixture
    def three(self, server: str, tmp_path: Path) -> Iterator[Bench]:
        if reason := real.missing(server):
            pytest.skip(reason)
        with real.running(server, tmp_path, size=3) as cluster:
            yield Bench(cluster, "ratings", {})

    async def test_the_leader_ends_and_the_instance_stays(self, three: Bench) -> None:
        registry = three.driver(ttl=10)
        await registry.register(Status.UP)
        leader = three.cluster.leader()
        other = (leader + 1) % 3
        three.cluster.members[leader].kill()
        renewed = False
        with trio.fail_after(PATIENCE_SECONDS):
            while not renewed:  # until there is another leader
                with suppress(PidoneError):
                    renewed = await registry.heartbeat()
                    assert renewed
        assert registry.endpoint != three.cluster.members[leader].url + "/"
        left = three.cluster.ask("lease/timetolive", {"ID": registry._lease}, other)
        assert int(left["TTL"]) >= 8
        await registry.deregister()
        left = three.cluster.ask("lease/timetolive", {"ID": registry._lease}, other)
        assert int(left["TTL"]) == -1

    async def test_a_member_without_a_majority_is_an_error(self, three: Bench) -> None:
        registry = three.driver(ttl=3)
        await registry.register(Status.UP)
        for member in three.cluster.members[1:]:
            member.kill()
        with pytest.raises(Exception, match=r"no answer|etcdserver|Connection refused"):
            await registry.deregister()


class TestLayouts:
    """What a layout writes is read by the library that defines it."""

    @pytest.fixture(params=["10.42.0.18", "fd00::18"])
    def address(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def plain(self, server: str, clusters: dict[tuple[str, bool], Cluster]) -> Bench:
        for one in (server, real.MODULE):
            if reason := real.missing(one):
                pytest.skip(reason)
        return Bench(clusters[server, False], f"layout{time.monotonic_ns()}", {})

    @pytest.fixture
    def libraries(self, plain: Bench, tmp_path: Path) -> Iterator[Reader]:
        with real.reading(plain.cluster.endpoints, tmp_path / "reader.log") as reader:
            yield reader

    async def test_grpc_is_read_by_etcds_own_naming(
        self, address: str, plain: Bench, libraries: Reader
    ) -> None:
        service = f"shop/{plain.service}"
        more: dict[str, Any] = {"layout": "grpc", "metadata": {"zone": "a"}}
        registry = make(plain.cluster.endpoints, service, pod=_pod(address), **more)
        await registry.register(Status.UP)
        endpoint = f"[{address}]:9080" if ":" in address else f"{address}:9080"
        assert libraries.read("grpc", service) == [{"address": endpoint, "metadata": {"zone": "a"}}]
        assert libraries.read("resolver", service) == [{"address": endpoint}]
        await registry.register(Status.DOWN)
        assert libraries.read("grpc", service) == []

    async def test_go_kit_is_read_by_its_client(self, address: str, plain: Bench, libraries: Reader) -> None:
        registry = make(plain.cluster.endpoints, plain.service, pod=_pod(address))
        await registry.register(Status.UP)
        url = f"http://[{address}]:9080" if ":" in address else f"http://{address}:9080"
        assert libraries.read("go-kit", f"/services/{plain.service}/") == [{"address": url}]
        await registry.deregister()
        assert libraries.read("go-kit", f"/services/{plain.service}/") == []

    async def test_skydns_is_read_by_coredns(self, address: str, plain: Bench, libraries: Reader) -> None:
        domain = f"{plain.service}.shop.skydns.local"
        config: dict[str, Any] = {
            "layout": "skydns",
            "service": None,
            "domain": domain,
            "metadata": {"weight": "7"},
        }
        registry = make(plain.cluster.endpoints, pod=_pod(address), **config)
        await registry.register(Status.UP)
        (found,) = libraries.read("skydns", domain)
        assert found["address"] == f"{address}:9080"
        assert found["metadata"]["target"] == f"web-7d9c-9080.{domain}."
        assert found["ttl"] == 30
        await registry.deregister()
        assert libraries.read("skydns", domain) == []

    async def test_go_micro_is_read_by_its_plugin(
        self, address: str, plain: Bench, libraries: Reader
    ) -> None:
        more: dict[str, Any] = {"layout": "go-micro", "version": "1.2", "metadata": {"zone": "a"}}
        registry = make(plain.cluster.endpoints, plain.service, pod=_pod(address), **more)
        await registry.register(Status.UP)
        (found,) = libraries.read("go-micro", plain.service)
        assert found == {
            "address": f"[{address}]:9080" if ":" in address else f"{address}:9080",
            "metadata": {
                "id": f"{plain.service}-web-7d9c-9080",
                "service": plain.service,
                "version": "1.2",
                "metadata.zone": "a",
            },
        }
        await registry.register(Status.DOWN)
        assert libraries.read("go-micro", plain.service) == []

    async def test_registrator_which_reads_nothing_is_read_as_a_key(
        self, plain: Bench, libraries: Reader
    ) -> None:
        registrator = make(plain.cluster.endpoints, plain.service, layout="registrator")
        await registrator.register(Status.UP)
        (found,) = libraries.read("key", f"/services/{plain.service}/")
        assert found["address"] == "10.42.0.18:9080"
        assert found["metadata"]["key"] == f"/services/{plain.service}/web-7d9c:{plain.service}:9080"

    async def test_key_and_value_of_ones_own(self, address: str, plain: Bench, libraries: Reader) -> None:
        key = f"/mine/{plain.service}/{{address}}"
        config: dict[str, Any] = {
            "layout": None,
            "service": None,
            "key": key,
            "value": '{"at":"{authority}","port":{port}}',
        }
        registry = make(plain.cluster.endpoints, pod=_pod(address), **config)
        await registry.register(Status.UP)
        (found,) = libraries.read("key", f"/mine/{plain.service}/")
        authority = f"[{address}]:9080" if ":" in address else f"{address}:9080"
        assert json.loads(found["address"]) == {"at": authority, "port": 9080}
        assert found["metadata"]["key"] == f"/mine/{plain.service}/{address}"
        assert await registry.read() == Entry("UP", address)


def _pod(address: str) -> Pod:
    return replace(POD, ip=address)
