"""The folder of manifests, and what kustomize makes of it."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

INSTALLATION = Path(__file__).parents[2] / "k3d"


def built(folder: Path) -> list[dict[str, Any]]:
    """The objects of a kustomization; kubectl needs no cluster for it."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl")
    done = subprocess.run([kubectl, "kustomize", folder], check=True, capture_output=True, text=True)
    return [one for one in YAML(typ="safe").load_all(done.stdout) if one]
