"""Keeps the repo's CA and the key of digests in a Secret that all replicas read, and a certificate in each replica.

A replica that finds no CA creates one; if two do so at once, the API server accepts the first. Each replica signs its
own serving certificate and stores it nowhere, so it needs no Secret and no other replica has to renew it.

The key of digests is random. Plans with values of Secrets are salted by it, the same in all replicas. If it is lost,
a new one is made, and each task with such a value is replaced once.
"""

from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from secrets import token_bytes
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
DIGEST_KEY, DIGEST_KEY_BYTES = "digest.key", 32  # in the Secret
BUNDLE = "ca.crt"  # in the Secret: the certificates that pods must trust, of this CA and the one before it


@dataclass(frozen=True, slots=True)
class Shared:
    """The content of the Secret."""

    ca: Pair
    trusted: bytes  # the certificates that clients of the replicas must trust, in PEM
    key: bytes  # of digests


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
    use_shared: Callable[[Shared], object] = bool,
) -> NoReturn:
    """Call ``use`` with a serving certificate for ``names``, and again whenever it is renewed. Failures are retried.

    ``use_shared`` is called with the content of the Secret each time it is read.
    """
    serving: Pair | None = None
    while True:
        pause = RETRY_SECONDS
        try:
            now = clock()
            shared = await _shared(client, namespace, now, log)
            ca = shared.ca
            use_shared(shared)
            if serving is None or certificates.due(serving, now) or not certificates.fits(serving, ca, names):
                serving = certificates.issue(ca, names, now)
                use(serving)
                log("certificate", names=",".join(names))
            pause = CHECK_SECONDS
        except PidoneError as error:
            log("certificate-failed", error=error)
        await trio.sleep(pause)


async def _shared(client: Client, namespace: str, now: datetime, log: Log) -> Shared:
    """Return the Secret, with a CA that is created or renewed if due. Raises ``ApiError`` and ``CertificateError``."""
    try:
        secret = await client.get(SECRETS, SECRET_NAME, namespace)
    except NotFound:
        ca, key = certificates.make_ca(now), token_bytes(DIGEST_KEY_BYTES)
        body = _secret(namespace, ca, ca.certificate, key)
        try:
            await client.create(SECRETS, body, namespace)
        except AlreadyExists:
            return await _shared(client, namespace, now, log)
        log("authority", secret=f"{namespace}/{SECRET_NAME}")
        return Shared(ca, ca.certificate, key)

    ca, key = _pair(secret, f"Secret {namespace}/{SECRET_NAME}"), _digest_key(secret)
    if not key:  # the Secret of an earlier version, or of an administrator
        key = token_bytes(DIGEST_KEY_BYTES)
        data = {**secret["data"], DIGEST_KEY: b64encode(key).decode()}
        try:
            secret = await client.replace(SECRETS, {**secret, "data": data})
        except Conflict:
            return await _shared(client, namespace, now, log)
        log("digest-key", secret=f"{namespace}/{SECRET_NAME}")
    if not certificates.due(ca, now):
        # Both, since an administrator may replace the CA and leave the certificates of the one before.
        return Shared(ca, ca.certificate + _trusted(secret), key)

    # Until their next check the other replicas serve with certificates of the old CA, so pods must trust both.
    new = certificates.make_ca(now)
    trusted = new.certificate + ca.certificate
    body = _secret(namespace, new, trusted, key)
    body["metadata"]["resourceVersion"] = secret["metadata"]["resourceVersion"]
    try:
        await client.replace(SECRETS, body)
    except Conflict:
        return await _shared(client, namespace, now, log)
    log("authority", secret=f"{namespace}/{SECRET_NAME}", reason="two thirds of its life are over")
    return Shared(new, trusted, key)


def _secret(namespace: str, ca: Pair, trusted: bytes, key: bytes) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": SECRET_NAME, "namespace": namespace},
        "data": {
            "tls.crt": b64encode(ca.certificate).decode(),
            "tls.key": b64encode(ca.key).decode(),
            BUNDLE: b64encode(trusted).decode(),
            DIGEST_KEY: b64encode(key).decode(),
        },
    }


def _trusted(secret: dict[str, Any]) -> bytes:
    """Return the certificates of this CA and the one before it in the Secret; empty if there are none."""
    try:
        return b64decode(secret["data"][BUNDLE])
    except (KeyError, ValueError, TypeError):
        return b""


def _digest_key(secret: dict[str, Any]) -> bytes:
    """Return the key; empty if there is none, or one that can be guessed."""
    try:
        key = b64decode(secret["data"][DIGEST_KEY])
    except (KeyError, ValueError, TypeError):
        return b""
    return key if len(key) >= DIGEST_KEY_BYTES else b""


def _pair(secret: dict[str, Any], title: str) -> Pair:
    data = secret.get("data") or {}
    try:
        return Pair(b64decode(data["tls.crt"]), b64decode(data["tls.key"]))
    except (KeyError, ValueError, TypeError) as error:
        raise CertificateError(
            f"{title}: expected tls.crt and tls.key; delete it to have a new one"
        ) from error
