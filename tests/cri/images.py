"""OCI archives: made of a few files, or derived from another with a different environment."""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Image(NamedTuple):
    """The config as JSON has it, and the layers: descriptor and bytes of each."""

    config: dict[str, Any]
    layers: list[tuple[dict[str, Any], bytes]]

    def with_env(self, **env: str) -> "Image":
        """The same with these variables added, or replaced."""
        inner = self.config["config"]
        kept = [line for line in inner.get("Env", []) if line.partition("=")[0] not in env]
        changed = [*kept, *(f"{name}={value}" for name, value in env.items())]
        return self._replace(config={**self.config, "config": {**inner, "Env": changed}})

    def env(self) -> list[str]:
        return list(self.config["config"].get("Env", []))

    def id(self) -> str:
        """What CRI calls it: the digest of its config."""
        return _digest(_json(self.config))

    def write(self, path: Path, name: str) -> None:
        """As an OCI archive, under this name."""
        config = _json(self.config)
        layers = [descriptor for descriptor, _ in self.layers]
        manifest = _json(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST,
                "config": _descriptor(CONFIG, config),
                "layers": layers,
            }
        )
        named = {**_descriptor(MANIFEST, manifest), "annotations": {"io.containerd.image.name": name}}
        files = {_blob(_digest(blob)): blob for blob in (config, manifest)}
        files |= {_blob(descriptor["digest"]): blob for descriptor, blob in self.layers}
        files["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
        files["index.json"] = _json({"schemaVersion": 2, "manifests": [named]})
        path.write_bytes(_tar(files))


def of_files(files: Mapping[str, bytes], entrypoint: Sequence[str], **env: str) -> Image:
    """An image with one layer of programs."""
    layer = _tar(files)
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint), "Env": [f"{name}={value}" for name, value in env.items()]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }
    return Image(config, [(_descriptor(LAYER, layer), layer)])


def read(path: Path) -> Image:
    """The first image of an OCI archive."""
    with tarfile.open(path) as archive:

        def get(name: str) -> bytes:
            member = archive.extractfile(archive.getmember(name))
            assert member is not None, name
            return member.read()

        index = json.loads(get("index.json"))
        manifest = json.loads(get(_blob(index["manifests"][0]["digest"])))
        config = json.loads(get(_blob(manifest["config"]["digest"])))
        return Image(config, [(layer, get(_blob(layer["digest"]))) for layer in manifest["layers"]])


def _tar(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(data), "size": len(data)}


def _blob(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")
