"""The real Spring Cloud Eureka server as a child process."""

import os
import re
import shutil
import ssl
import subprocess
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from tests.patience import PATIENCE_SECONDS

BUILT = Path(__file__).parents[2] / "k3d/apps/discovery/target/discovery.jar"
BUILD = "make eureka"

# Quick to start and small; a server under load would rather have the defaults.
JAVA_OPTIONS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m")

# What is registered is seen in lists at once, and what died is gone as soon as its lease is. In production
# lists are up to 30 s old, the dead are looked for once a minute, and not at all when many seem to die.
AT_ONCE = {
    "EUREKA_SERVER_USEREADONLYRESPONSECACHE": "false",
    # A list that is read while it changes may be kept as it was; by default for three minutes.
    "EUREKA_SERVER_RESPONSECACHEAUTOEXPIRATIONINSECONDS": "1",
    "EUREKA_SERVER_EVICTIONINTERVALTIMERINMS": "500",
    "EUREKA_SERVER_ENABLESELFPRESERVATION": "false",
}


@dataclass(frozen=True)
class RealEureka:
    url: str  # the prefix that ends before `apps`
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self, timeout: float = PATIENCE_SECONDS) -> None:
        """Block until the server answers.

        Raises:
            RuntimeError: it ended, or gave no answer within ``timeout`` seconds; with the end of its log.
        """
        unverified = ssl._create_unverified_context() if self.url.startswith("https:") else None
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urlopen(f"{self.url}apps", timeout=5, context=unverified):
                    return
            except HTTPError as error:
                if error.code == 401:  # it wants a user
                    return
                time.sleep(0.05)
            except (URLError, OSError):
                time.sleep(0.05)
        state = "gave no answer" if self.process.poll() is None else f"ended with {self.process.returncode}"
        raise RuntimeError(f"the Eureka server {state}; its log ends with\n{self.log.read_text()[-2000:]}")


def missing() -> str | None:
    """Why the real server cannot be started here, with the remedy; None where it can."""
    if shutil.which("java") is None:
        return "no java: apt-get install openjdk-17-jre-headless"
    jar = find_jar()
    if not jar.is_file():
        return f"{jar} is not there: {BUILD}"
    return None


def find_jar() -> Path:
    return Path(os.environ.get("PIDONE_EUREKA_JAR") or BUILT)


def version() -> str:
    """Return the server's name and version, for people."""
    with zipfile.ZipFile(find_jar()) as jar:
        match = re.search(r"spring-cloud-netflix-eureka-server-([^/\s]+)\.jar", "\n".join(jar.namelist()))
    assert match is not None
    return f"Spring Cloud Netflix Eureka {match[1]}"


def command(jar: Path | None = None) -> list[str]:
    return ["java", *JAVA_OPTIONS, "-jar", str(jar or find_jar())]


def environment(port: int, settings: Mapping[str, str] = AT_ONCE) -> dict[str, str]:
    return {**settings, "SERVER_PORT": str(port), "SERVER_ADDRESS": "127.0.0.1"}


@contextmanager
def spring_eureka(
    port: int,
    log: Path,
    settings: Mapping[str, str] = AT_ONCE,
    *,
    jar: Path | None = None,
    scheme: str = "http",
) -> Iterator[RealEureka]:
    """Start the server on this port of 127.0.0.1, and end it with the block.

    The block begins before the server answers: call ``wait_ready`` before the first use.
    ``settings`` are environment variables for Spring; ``{}`` is a server as in production. ``jar`` is another program.

    Raises:
        FileNotFoundError: there is no java (see ``missing``).
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(jar),
            env=os.environ | environment(port, settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield RealEureka(f"{scheme}://127.0.0.1:{port}/eureka/", log, process)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
