"""Writes down what the real API server says: ``python -m tests.cluster.record``."""

import json
import ssl
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import httpx
import trio
from trio.to_thread import run_sync

from tests.cluster.apiserver import ADMIN, ControlPlane, control_plane
from tests.controller.kubernetes.dialogue import AUDIENCE, RECORDED, SPACE, Exchange, Object, converse


class Real:
    """The real API server, as the dialogue talks with it."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        verify = ssl.create_default_context(cafile=plane.certificate)
        self.http = httpx.AsyncClient(base_url=plane.server, verify=verify, timeout=150, trust_env=False)

    async def ask(self, said: Exchange, headers: Mapping[str, str], body: bytes, lines: int) -> None:
        headers = {"authorization": f"Bearer {ADMIN}", **headers}
        text = b""
        asking = self.http.stream(said.method, said.path, params=said.query, headers=headers, content=body)
        async with asking as answer:
            said.status = answer.status_code
            said.content_type = answer.headers["content-type"]
            async for piece in answer.aiter_raw():
                text += piece
                if lines and text.count(b"\n") >= lines:
                    break
        said.read(b"".join(text.splitlines(keepends=True)[: lines or None]))

    async def lose_history(self) -> None:
        await run_sync(self._plane.lose_history)

    async def token(self) -> str:
        pod = await run_sync(self._plane.request, "GET", f"/api/v1/namespaces/{SPACE}/pods/a")
        return await run_sync(partial(self._plane.token, SPACE, "default", audience=AUDIENCE, pod=pod))


def prepare(plane: ControlPlane) -> None:
    plane.make_namespace(SPACE)
    for name in "abc":
        plane.run_pod(SPACE, name, labels={"app": name})


async def hear(plane: ControlPlane, *, patient: bool = True) -> dict[str, Object]:
    """The whole dialogue with an API server that nobody else uses; it has lost its history afterwards."""
    await run_sync(prepare, plane)
    real = Real(plane)
    async with real.http:
        return await converse(real, patient=patient)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, control_plane(Path(folder) / "plane") as plane:
        plane.install_crds()
        said = trio.run(hear, plane)
    RECORDED.mkdir(exist_ok=True)
    for old in RECORDED.glob("*.json"):
        old.unlink()
    for name, value in said.items():
        (RECORDED / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")
    print(f"{len(said)} exchanges in {RECORDED}")


if __name__ == "__main__":
    main()
