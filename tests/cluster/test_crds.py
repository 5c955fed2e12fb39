"""The CustomResourceDefinitions, as a real API server reads them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pidone.language.reading import read
from pidone.language.schemas import KINDS
from tests.cluster.apiserver import CRDS, OURS, Cluster, Refused
from tests.generate.test_crds import documents, refused, whole
from tests.language.test_checking import BAD, GOOD

STRICT = "dryRun=All&fieldValidation=Strict"


@pytest.fixture(scope="module")
def shop(cluster: Cluster) -> Iterator[str]:
    """A namespace for those that the files name."""
    with cluster.namespace() as name:
        yield name


def said(cluster: Cluster, namespace: str, value: Any) -> str:
    """Why the API server refuses it; empty where it takes it. Whatever namespace it names, it goes to this one."""
    plural, metadata = f"{value['kind'].lower()}s", value.get("metadata")
    path = f"{OURS}/{plural}"
    if not value["kind"].startswith("Cluster"):
        path = f"{OURS}/namespaces/{namespace}/{plural}"
        if isinstance(metadata, dict) and isinstance(metadata.get("namespace"), str):
            value = value | {"metadata": metadata | {"namespace": namespace}}
    try:
        cluster.request("POST", f"{path}?{STRICT}", value)
    except Refused as error:
        if error.code in {400, 422}:
            return str(error)
        raise
    return ""


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_accepted_without_a_condition_against_it(cluster: Cluster, kind: str) -> None:
    name = f"{kind.lower()}s.pidone.dev"
    crd = cluster.request("GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
    found = {one["type"]: one["status"] for one in crd["status"]["conditions"]}
    assert found.pop("NonStructuralSchema", "False") == "False"
    assert found == {"NamesAccepted": "True", "Established": "True"}
    assert crd["status"]["storedVersions"] == ["v1alpha1"]


def test_applied_once_more_nothing_changes(cluster: Cluster) -> None:
    printed = cluster.kubectl(
        "apply", "--server-side", "--field-manager=kubectl", "-f", CRDS, "--output=json"
    )
    before = [one["metadata"]["resourceVersion"] for one in json.loads(printed)["items"]]
    printed = cluster.kubectl(
        "apply", "--server-side", "--field-manager=kubectl", "-f", CRDS, "--output=json"
    )
    assert [one["metadata"]["resourceVersion"] for one in json.loads(printed)["items"]] == before


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_good_files_are_taken(cluster: Cluster, shop: str, file: Path) -> None:
    read_values = (document.root.value for document in read(file.read_text("utf-8"), file.name)[0])
    lists = (value.get("items", [value]) for value in read_values if value)
    values = [one for found in lists for one in found if one["kind"] in KINDS]
    assert values
    for value in values:
        assert said(cluster, shop, value) == ""


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_of_bad_files_it_refuses_what_our_reader_of_crds_says(
    cluster: Cluster, shop: str, file: Path
) -> None:
    for value in documents(file):
        expected, found = refused(value, whole(value["kind"])), said(cluster, shop, value)
        if expected:
            assert found, expected
        elif found:  # what metadata may have is no matter of a CRD
            assert re.search(r"metadata\.name|ObjectMeta", found), found


def test_kubectl_explains_a_field(cluster: Cluster) -> None:
    assert "FIELD: podSelector" in cluster.kubectl("explain", "taskbinding.spec.podSelector")
