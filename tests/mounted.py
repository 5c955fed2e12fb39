"""Secrets as the kubelet mounts them, and changes them."""

import os
from pathlib import Path


def mount(folder: Path, **values: str) -> None:
    """Mount a Secret in ``folder``, or change the mounted one by replacing the symlink ``..data``.

    As AtomicWriter of k8s.io/kubernetes/pkg/volume/util does.
    """
    folder.mkdir(exist_ok=True)
    version = folder / f"..{len(os.listdir(folder))}"
    version.mkdir()
    for key, value in values.items():
        (version / key).write_text(value)
        if not (folder / key).is_symlink():
            (folder / key).symlink_to(f"..data/{key}")
    (folder / "..data_tmp").symlink_to(version.name)
    (folder / "..data_tmp").rename(folder / "..data")
