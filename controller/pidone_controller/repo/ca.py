"""The repo's certificates, kept: the CA in a Secret that all replicas read, a serving certificate in each of them.

A replica that finds no CA makes one; of two that do so at once the API server takes the first. The serving
certificate is signed in the replica and is nowhere else, so it needs no Secret, and nobody has to renew it for others.
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

SECRET = "pidone-ca"  # noqa: S105 - its name
LOOK = 600.0  # seconds between two looks at the Secret: somebody may have put a CA of their own there
AGAIN = 5.0  # seconds after a failure
BUNDLE = "ca.crt"  # of the Secret: whom pods are to trust, that is this CA and the one before it


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
    """Have ``use`` serve with a certificate for ``names`` that is good, for ever; failures are waited out."""
    serving: Pair | None = None
    while True:
        pause = AGAIN
        try:
            now = clock()
            ca = await _authority(client, namespace, now, log)
            if serving is None or certificates.due(serving, now) or not certificates.fits(serving, ca, names):
                serving = certificates.issue(ca, names, now)
                use(serving)
                log("certificate", names=",".join(names))
            pause = LOOK
        except PidoneError as error:
            log("certificate-failed", error=error)
        await trio.sleep(pause)


async def _authority(client: Client, namespace: str, now: datetime, log: Log) -> Pair:
    """The CA of now; made, or made anew in time. Raises ``ApiError`` and ``CertificateError``."""
    try:
        secret = await client.get(SECRETS, SECRET, namespace)
    except NotFound:
        ca = certificates.make_ca(now)
        body = _secret(namespace, ca, ca.certificate)
        try:
            await client.create(SECRETS, body, namespace)
        except AlreadyExists:
            return await _authority(client, namespace, now, log)
        log("authority", secret=f"{namespace}/{SECRET}")
        return ca
    ca = _pair(secret, f"Secret {namespace}/{SECRET}")
    if not certificates.due(ca, now):
        return ca
    # Pods that trust the old one alone are as old as it is by a third: ten years less three.
    new = certificates.make_ca(now)
    body = _secret(namespace, new, new.certificate + ca.certificate)
    body["metadata"]["resourceVersion"] = secret["metadata"]["resourceVersion"]
    try:
        await client.replace(SECRETS, body)
    except Conflict:
        return await _authority(client, namespace, now, log)
    log("authority", secret=f"{namespace}/{SECRET}", reason="two thirds of its life are over")
    return new


def _secret(namespace: str, ca: Pair, trusted: bytes) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": SECRET, "namespace": namespace},
        "data": {
            "tls.crt": b64encode(ca.certificate).decode(),
            "tls.key": b64encode(ca.key).decode(),
            BUNDLE: b64encode(trusted).decode(),
        },
    }


def _pair(secret: dict[str, Any], shown: str) -> Pair:
    data = secret.get("data") or {}
    try:
        return Pair(b64decode(data["tls.crt"]), b64decode(data["tls.key"]))
    except (KeyError, ValueError, TypeError) as error:
        raise CertificateError(
            f"{shown}: expected tls.crt and tls.key; delete it to have a new one"
        ) from error
