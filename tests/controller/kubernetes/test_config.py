"""In a pod, on a desk, and what is refused."""

import os
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pidone_controller.kubernetes.config import in_cluster, kubeconfig, load
from pidone_controller.kubernetes.errors import ConfigError

IN_POD = {"KUBERNETES_SERVICE_HOST": "10.43.0.1", "KUBERNETES_SERVICE_PORT": "443"}


def account(folder: Path, **files: str) -> Path:
    for name, text in {"token": "t0\n", "ca.crt": "PEM", "namespace": "pidone-system", **files}.items():
        (folder / name).write_text(text)
    return folder


def written(path: Path, **changes: Any) -> Path:
    """A kubeconfig with one of each; ``user`` and ``cluster`` replace what stands there."""
    cluster = changes.pop(
        "cluster", {"server": "https://k8s.example:6443/", "certificate-authority": "ca.crt"}
    )
    user = changes.pop("user", {"token": "secret"})
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "shop"}},
            {"name": "nobody", "context": {"cluster": "c", "user": "nobody"}},
        ],
        **changes,
    }
    with path.open("w") as file:
        YAML(typ="safe", pure=True).dump(document, file)
    return path


def test_a_pod_has_its_service_account(tmp_path: Path) -> None:
    config = in_cluster(IN_POD, account(tmp_path))
    assert config.server == "https://10.43.0.1:443"
    assert config.namespace == "pidone-system"
    assert config.token_file == str(tmp_path / "token")
    assert config.ca_file == str(tmp_path / "ca.crt")
    assert not config.token, "a projected token rotates: it is never kept"


def test_an_ipv6_cluster_has_brackets(tmp_path: Path) -> None:
    assert (
        in_cluster({"KUBERNETES_SERVICE_HOST": "fd00::1"}, account(tmp_path)).server
        == "https://[fd00::1]:443"
    )


@pytest.mark.parametrize("missing", ["token", "ca.crt"])
def test_a_pod_without_a_service_account_is_told_what_to_do(missing: str, tmp_path: Path) -> None:
    (account(tmp_path) / missing).unlink()
    with pytest.raises(ConfigError, match="automountServiceAccountToken"):
        in_cluster(IN_POD, tmp_path)


def test_kubeconfig_goes_before_the_pod_and_the_pod_before_home(tmp_path: Path) -> None:
    home = tmp_path / ".kube"
    home.mkdir()
    written(home / "config", cluster={"server": "https://home"})
    named = written(tmp_path / "named", cluster={"server": "https://named"})
    assert load({"HOME": str(tmp_path)}).server == "https://home"
    assert load({"HOME": str(tmp_path), "KUBECONFIG": str(named), **IN_POD}).server == "https://named"
    with pytest.raises(ConfigError, match="serviceaccount/token is not there"):
        load({"HOME": str(tmp_path), **IN_POD})


def test_nothing_at_all_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="KUBECONFIG is not set"):
        load({"HOME": str(tmp_path)})


def test_the_current_context_and_another(tmp_path: Path) -> None:
    path = written(tmp_path / "config")
    config = kubeconfig([path])
    assert (config.server, config.namespace, config.token) == ("https://k8s.example:6443", "shop", "secret")
    assert config.ca_file == str(tmp_path / "ca.crt"), "relative to the file that says it"
    other = kubeconfig([path], context="nobody")
    assert (other.namespace, other.token) == ("default", "")


def test_data_is_base64_and_goes_as_it_is(tmp_path: Path) -> None:
    data = {key: b64encode(key.encode()).decode() for key in ("client-certificate-data", "client-key-data")}
    cluster = {"server": "https://k8s", "certificate-authority-data": b64encode(b"CA").decode()}
    config = kubeconfig([written(tmp_path / "config", user=data, cluster=cluster)])
    assert (config.ca_data, config.cert_data, config.key_data) == (
        b"CA",
        b"client-certificate-data",
        b"client-key-data",
    )
    assert "client-key" not in repr(config), "no key in a log"


def test_files_of_a_user_are_relative_to_the_kubeconfig(tmp_path: Path) -> None:
    user = {"client-certificate": "pki/me.crt", "client-key": "/etc/me.key", "tokenFile": "me.token"}
    config = kubeconfig([written(tmp_path / "config", user=user)])
    assert config.cert_file == str(tmp_path / "pki/me.crt")
    assert config.key_file == "/etc/me.key"
    assert config.token_file == str(tmp_path / "me.token")


def test_the_first_file_that_has_a_name_wins(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    first = written(tmp_path / "first", clusters=[], users=[], contexts=[])
    second = written(tmp_path / "sub" / "second")
    config = load({"KUBECONFIG": os.pathsep.join(map(str, (tmp_path / "not-there", first, second)))})
    assert config.server == "https://k8s.example:6443"
    assert config.ca_file == str(tmp_path / "sub" / "ca.crt")


@pytest.mark.parametrize(
    "user",
    [
        {"exec": {"command": "aws", "apiVersion": "client.authentication.k8s.io/v1"}},
        {"auth-provider": {"name": "gcp"}},
        {"token": "t", "as": "system:admin"},
        {"username": "admin", "password": "admin"},
    ],
)
def test_who_we_cannot_be_is_refused_by_name(user: dict[str, Any], tmp_path: Path) -> None:
    key = next(key for key in user if key not in {"token", "password"})
    with pytest.raises(ConfigError, match=f"config: user u: {key}: .*; (write|use) a "):
        kubeconfig([written(tmp_path / "config", user=user)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"current-context": ""}, "no current-context"),
        ({"current-context": "elsewhere"}, "no context is named 'elsewhere'"),
        ({"clusters": []}, "no cluster is named 'c'"),
        ({"clusters": None}, "no cluster is named 'c'"),
        ({"cluster": {"server": "k8s:6443"}}, "server: 'k8s:6443' is not a URL"),
        ({"cluster": {}}, "server: None is not a URL"),
        ({"cluster": {"server": "https://k8s", "proxy-url": "http://p"}}, "proxy-url"),
        ({"cluster": {"server": "https://k8s", "certificate-authority-data": "§"}}, "not base64"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        kubeconfig([written(tmp_path / "config", **changes)])


@pytest.mark.parametrize("text", ["[", "just text", "- a\n", "a: b\x00", ""])
def test_what_is_no_kubeconfig_is_said_to_be_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)):
        kubeconfig([path])


def test_a_folder_is_no_kubeconfig(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="directory"):
        kubeconfig([tmp_path])


def test_a_kubeconfig_is_read_as_kubectl_reads_it(tmp_path: Path) -> None:
    """Empty files have no entries; tabs, a bare "=" and UTF-16 are what kubectl takes too."""
    path = written(tmp_path / "config", user={"token": "="})
    for name, data in (("empty", b""), ("comment", b"# nothing yet\n"), ("dashes", b"---\n")):
        (tmp_path / name).write_bytes(data)
        assert kubeconfig([tmp_path / name, path]).token == "="
        with pytest.raises(ConfigError, match="no current-context"):
            kubeconfig([tmp_path / name])
    text = path.read_text().replace(": here", ":\there\t# this one").replace("token: '='", "token: =")
    assert "token: =" in text
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(text.encode(encoding))
        assert kubeconfig([path]).token == "="
    path.write_text("a: 'b\n")
    with pytest.raises(ConfigError, match="line 1, column 4: this quotation mark is not closed"):
        kubeconfig([path])
