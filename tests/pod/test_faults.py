"""Process 1 under a fault injector: the same process at the end, and every fault reported."""

import json
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
import trio

from pidone.http.message import Request, Response
from pidone.plan.format import MEDIA_TYPE
from tests import pidns
from tests.http.serving import http_server
from tests.patience import ENDURANCE, PATIENCE_SECONDS
from tests.pod.test_pod import ADDRESS, DOZE, Repo, metrics

# For so many faults it goes on; on a machine that is busy they take longer.
FAULTS = 4 * ENDURANCE
GARBAGE = [
    Response(500),
    Response(200, {"content-type": MEDIA_TYPE, "etag": '"g1"'}, b"\xff\xfe garbage"),
    Response(200, {"content-type": MEDIA_TYPE, "etag": '"g2"'}, b"[" * 50_000),
    Response(200, {"content-type": MEDIA_TYPE}, b"{}"),
    Response(200, {"content-type": "text/html", "etag": '"g3"'}, b"<html>"),
    Response(304),
    Response(404, {"retry-after": "1"}),
    Response(302, {"location": "http://127.0.0.1:9/"}),
    Response(200, {"content-type": MEDIA_TYPE, "etag": '"g4"'}, b"x" * 300_000),
]


class FaultyRepo(Repo):
    """Answers nonsense now and then, and keeps every word that reaches it."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = ""
        self.calm = False
        self.deaf = 0  # reports in a row that were not heard

    async def handle(self, asked: Request) -> Response:
        self.heard += asked.headers.get("pidone-last-words", "")
        if asked.path == "/v1/status":
            # Not heard, so it is to be made again; twice in a row at most, for the journal is a bounded ring.
            self.deaf = self.deaf + 1 if not self.calm and self.deaf < 2 and random.random() < 0.2 else 0
            if self.deaf:
                return Response(500)
            self.heard += asked.body.decode()
            json.loads(asked.body)
        elif not self.calm and random.random() < 0.2:
            return random.choice(GARBAGE)
        with trio.move_on_after(0.5):  # a held question is cut short, so that there are many
            return await super().handle(asked)
        return Response(304, {"preference-applied": "wait=1"})


def recorded(file: Path) -> dict[str, str]:
    """The faults so far: the part of the program, by their number."""
    return dict(line.split()[::-1] for line in file.read_text().splitlines())


@pytest.mark.pidns
@pytest.mark.parametrize("form", ["doze", "python"])
async def test_the_same_process_at_the_end_and_every_fault_reported(
    nursery: trio.Nursery, tmp_path: Path, form: str
) -> None:
    if form == "doze" and not DOZE.exists():
        pytest.skip("doze is not built: make doze")
    repo, record = FaultyRepo(), tmp_path / "faults"
    record.touch()
    url = f"http://127.0.0.1:{await http_server(nursery, repo.handle, body=1 << 16)}"
    env = {"PIDONE_REPO": url, "PIDONE_POD_IP": ADDRESS, "PIDONE_POD_UID": "u", "PIDONE_LINGER": "1"}
    env["PIDONE_DOZE"] = str(DOZE) if form == "doze" else "/nowhere"
    program = [sys.executable, str(Path(__file__).with_name("faulty.py")), str(record)]
    with (
        (tmp_path / "log").open("wb") as output,
        pidns.process_one(program, env=env, output=output) as process,
    ):
        with trio.fail_after(FAULTS * PATIENCE_SECONDS):
            while len(recorded(record)) < FAULTS:
                port = random.randrange(20_000, 30_000)
                probe = {
                    "name": "ready",
                    "probe": {"tcpSocket": {"port": port, "host": ADDRESS}, "periodSeconds": 1},
                }
                repo.put(random.choice([[], [metrics(port)], [metrics(port), probe], [probe]]))
                process.make_orphans(10)
                assert process.same()
                await trio.sleep(0.4 * random.random())
        repo.calm = True
        repo.put([metrics(port)])
        faults = recorded(record)
        # The last ones may wait for a program that dozes after a failure, for longer after each.
        with trio.move_on_after(5 * PATIENCE_SECONDS):
            while missing := [
                f"{part} {number}" for number, part in faults.items() if number not in repo.heard
            ]:
                await trio.sleep(0.1)
                faults = recorded(record)
        assert process.same()
        with trio.fail_after(PATIENCE_SECONDS):
            while process.zombies():
                await trio.sleep(0.02)  # another process's state has no event
    assert not missing, f"{missing}\n{(tmp_path / 'log').read_text()[-3000:]}"
    print(f"{form}: {dict(Counter(faults.values()))}")
    nursery.cancel_scope.cancel()
