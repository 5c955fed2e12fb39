"""Keeps the repo's CA in a Secret that all replicas read, and a serving certificate in each replica.

A replica that finds no CA creates one; if two do so at once, the API server accepts the first. Each replica signs its
own serving certificate and stores it nowhere, so it needs no Secret and no other replica has to renew it.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NoReturn

import trio

from pidone.errors import PidoneError
from pidone_controller.kubernetes.client import Client
from pidone_controller.kubernetes.errors import AlreadyExists, Conflict, NotFound
from pidone_controller.kubernetes.resources import SECRETS
from pidone_controller.log import Log
from pidone_controller.repo import certificates
from pidone_controller.repo.certificates import CertificateError, Pair

SECRET_NAME = "pidone-ca"  # noqa: S105 - its name
CHECK_SECONDS = 600.0  # between two reads of the Secret: an administrator may have stored another CA
RETRY_SECONDS = 5.0
BUNDLE = "ca.crt"  # in the Secret: the certificates that pods must trust, of this CA and the one before it


def wall_clock() -> datetime:
    return datetime.now(UTC)


async def keep(
    client: Client,
    namespace: str,
    names: Sequence[str],
    use: Callable[[Pair], None],
    log: Log,
    *,
    clock: Callable[[], datetime] = wall_clock,
) -> NoReturn:
    """Call ``use`` with a serving certificate for ``names``, and again whenever it is renewed. Failures are retried."""
    serving: Pair | None = None
    while True:
        pause = RETRY_SECONDS
        try:
            now = clock()
            ca = await _ca(client, namespace, now, log)
            if serving is None or certificates.due(serving, now) or not certificates.fits(serving, ca, names):
                serving = certificates.issue(ca, names, now)
                use(serving)
                log("certificate", names=",".join(names))
            pause = CHECK_SECONDS
        except PidoneError as error:
            log("certificate-failed", error=error)
        await trio.sleep(pause)


async def _ca(client: Client, namespace: str, now: datetime, log: Log) -> Pair:
    """Return the present CA, created or renewed if due. Raises ``ApiError`` and ``CertificateError``."""
    try:
        secret = await client.get(SECRETS, SECRET_NAME, namespace)
    except NotFound:
        ca = certificates.make_ca(now)
        body = _secret(namespace, ca, ca.certificate)
        try:
            await client.create(SECRETS, body, namespace)
        except AlreadyExists:
            return await _ca(client, namespace, now, log)
        log("authority", secret=f"{namespace}/{SECRET_NAME}")
        return ca

    ca = _pair(secret, f"Secret {namespace}/{SECRET_NAME}")
    if not certificates.due(ca, now):
        return ca

    # Until their next check the other replicas serve with certificates of the old CA, so pods must trust both.
    new = certificates.make_ca(now)
    body = _secret(namespace, new, new.certificate + ca.certificate)
    body["metadata"]["resourceVersion"] = secret["metadata"]["resourceVersion"]
    try:
        await client.replace(SECRETS, body)
    except Conflict:
        return await _ca(client, namespace, now, log)
    log("authority", secret=f"{namespace}/{SECRET_NAME}", reason="two thirds of its life are over")
    return new


def _secret(namespace: str, ca: Pair, trusted: bytes) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": SECRET_NAME, "namespace": namespace},
        "data": {
            "tls.crt": b64encode(ca.certificate).decode(),
            "tls.key": b64encode(ca.key).decode(),
            BUNDLE: b64encode(trusted).decode(),
        },
    }


def _pair(secret: dict[str, Any], title: str) -> Pair:
    data = secret.get("data") or {}
    try:
        return Pair(b64decode(data["tls.crt"]), b64decode(data["tls.key"]))
    except (KeyError, ValueError, TypeError) as error:
        raise CertificateError(
            f"{title}: expected tls.crt and tls.key; delete it to have a new one"
        ) from error
