"""Reads the address of the API server and the credentials, from a pod's service account or a kubeconfig.

Sources: client-go's rest.InClusterConfig and tools/clientcmd. A field of a kubeconfig that this client does not support
is refused by name: to ignore ``as`` or a plugin would be to act as another user.
"""

import os
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pidone.errors import LanguageError
from pidone.http.urls import authority
from pidone_controller.kubernetes.errors import ConfigError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
REFUSED = {
    "exec": "credential plugins are not run; write a token, a tokenFile or a client certificate",
    "auth-provider": "it was removed from Kubernetes; write a token, a tokenFile or a client certificate",
    "as": "impersonation is not done; use a context user_file user has the rights itself",
    "username": "API servers take no passwords since 1.19; write a token or a client certificate",
}


@dataclass(frozen=True, slots=True)
class Config:
    """One API server and one user. Files are read again when they change; data is PEM."""

    server: str  # a URL without a slash at its end
    namespace: str = "default"  # of the service account, or of the context
    ca_file: str = ""
    ca_data: bytes = b""
    insecure: bool = False  # insecure-skip-tls-verify
    server_name: str = ""  # the name in the server's certificate, if it is not the host's
    cert_file: str = ""
    key_file: str = ""
    cert_data: bytes = field(default=b"", repr=False)
    key_data: bytes = field(default=b"", repr=False)
    token: str = field(default="", repr=False)
    token_file: str = ""  # precedes ``token``, which is used until the file can be read


def load(environ: Mapping[str, str] = os.environ, *, context: str = "") -> Config:
    """Read ``$KUBECONFIG``, else the pod's service account, else ``~/.kube/config``, as controller-runtime does.

    Raises ``ConfigError``.
    """
    if paths := environ.get("KUBECONFIG"):
        return kubeconfig([Path(path) for path in paths.split(os.pathsep) if path], context=context)
    if environ.get("KUBERNETES_SERVICE_HOST"):
        return in_cluster(environ)
    home = Path(environ.get("HOME") or "~").expanduser() / ".kube" / "config"
    if home.exists():
        return kubeconfig([home], context=context)
    raise ConfigError(
        "no API server is named: not in a pod (KUBERNETES_SERVICE_HOST is not set), KUBECONFIG is not set, "
        f"and there is no {home}"
    )


def in_cluster(environ: Mapping[str, str] = os.environ, account: Path = SERVICE_ACCOUNT) -> Config:
    """Read the service account that the kubelet mounts. Raises ``ConfigError``."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise ConfigError("KUBERNETES_SERVICE_HOST is not set: this is not a pod")
    token, ca = account / "token", account / "ca.crt"
    for file in (token, ca):
        if not file.exists():
            raise ConfigError(
                f"{file} is not there: the pod needs a service account (automountServiceAccountToken)"
            )
    try:
        namespace = (account / "namespace").read_text().strip()
    except OSError:
        namespace = ""  # a token projected by hand, without the namespace
    return Config(
        f"https://{authority(host, port)}", namespace or "default", ca_file=str(ca), token_file=str(token)
    )


def kubeconfig(paths: Sequence[Path], *, context: str = "") -> Config:
    """Read kubeconfigs. The first entry of a name counts, as in kubectl. Raises ``ConfigError``."""
    read = [_read(path) for path in paths if path.exists()]
    if not read:
        raise ConfigError(f"there is no {' or '.join(map(str, paths))}")
    title = " and ".join(str(path) for path, _ in read)
    name = context or next(
        (document["current-context"] for _, document in read if document.get("current-context")), ""
    )
    if not name:
        raise ConfigError(f"{title}: no current-context; name one of contexts")
    _, selected = _entry(read, "contexts", "context", name, title)
    cluster_file, cluster = _entry(read, "clusters", "cluster", selected.get("cluster") or "", title)
    user_file, user = _entry(read, "users", "user", selected.get("user") or "", title, required=False)
    for key, remedy in REFUSED.items():
        if user.get(key):
            raise ConfigError(f"{user_file}: user {selected.get('user')}: {key}: {remedy}")
    if cluster.get("proxy-url"):
        raise ConfigError(
            f"{cluster_file}: cluster {selected['cluster']}: proxy-url: proxies are not supported"
        )
    server = cluster.get("server")
    if not isinstance(server, str) or not server.startswith(("https://", "http://")):
        raise ConfigError(f"{cluster_file}: cluster {selected['cluster']}: server: {server!r} is not a URL")
    return Config(
        server.rstrip("/"),
        selected.get("namespace") or "default",
        ca_file=_beside(cluster_file, cluster.get("certificate-authority")),
        ca_data=_data(cluster_file, cluster, "certificate-authority-data"),
        insecure=cluster.get("insecure-skip-tls-verify") is True,
        server_name=cluster.get("tls-server-name") or "",
        cert_file=_beside(user_file, user.get("client-certificate")),
        key_file=_beside(user_file, user.get("client-key")),
        cert_data=_data(user_file, user, "client-certificate-data"),
        key_data=_data(user_file, user, "client-key-data"),
        token=str(user.get("token") or ""),
        token_file=_beside(user_file, user.get("tokenFile")),
    )


_Read = list[tuple[Path, dict[str, Any]]]


def _read(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return a kubeconfig; an empty file has no entries, as for kubectl."""
    from pidone.language import foreign

    try:
        document = foreign.value(foreign.decoded(path.read_bytes()))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except LanguageError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if document is None:
        return path, {}
    if not isinstance(document, dict):
        raise ConfigError(
            f"{path}: not a kubeconfig: kind: Config, clusters, users and contexts are expected"
        )
    return path, document


def _entry(
    read: _Read, plural: str, singular: str, name: str, title: str, *, required: bool = True
) -> tuple[Path, dict[str, Any]]:
    """Return the first entry of that name, and its file, to which its paths are relative."""
    for path, document in read:
        for entry in document.get(plural) or ():
            if (
                isinstance(entry, dict)
                and entry.get("name") == name
                and isinstance(entry.get(singular), dict)
            ):
                return path, entry[singular]
    if required:
        raise ConfigError(f"{title}: no {singular} is named {name!r}; see {plural}")
    return read[0][0], {}


def _beside(path: Path, value: object) -> str:
    return str(path.parent / str(value)) if value else ""


def _data(path: Path, table: Mapping[str, Any], key: str) -> bytes:
    try:
        return b64decode(str(table.get(key) or ""), validate=True)
    except ValueError as error:
        raise ConfigError(f"{path}: {key}: not base64: {error}") from error
