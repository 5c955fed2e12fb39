"""Whose token is this? Who are we, and what proves it? The API server knows: TokenReview and its kin."""

from collections.abc import Sequence
from dataclasses import dataclass

from pidone_controller.kubernetes.client import Client
from pidone_controller.kubernetes.resources import SELF_SUBJECT_REVIEWS, SERVICE_ACCOUNTS, TOKEN_REVIEWS

SERVICE_ACCOUNT = "system:serviceaccount:"


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who bears a token that is good. For a service account's token, the pod it was made for, if it was for one."""

    user: str  # system:serviceaccount:<namespace>:<name>
    groups: tuple[str, ...] = ()
    pod: str = ""
    pod_uid: str = ""

    @property
    def service_account(self) -> tuple[str, str]:
        """Namespace and name; two empty strings for somebody who is no service account."""
        namespace, _, name = self.user.removeprefix(SERVICE_ACCOUNT).partition(":")
        return (namespace, name) if self.user.startswith(SERVICE_ACCOUNT) else ("", "")


async def review(client: Client, token: str, audiences: Sequence[str] = ()) -> Bearer | None:
    """The bearer, or None for a token that is not good, or not for any of ``audiences``. Raises ``ApiError``.

    Without ``audiences`` it must be good for the API server itself. A token bound to a pod is no longer good when
    the pod is gone.
    """
    spec = {"token": token} | ({"audiences": list(audiences)} if audiences else {})
    body = {"apiVersion": TOKEN_REVIEWS.api_version, "kind": TOKEN_REVIEWS.kind, "metadata": {}, "spec": spec}
    status = (await client.create(TOKEN_REVIEWS, body)).get("status") or {}
    if status.get("authenticated") is not True:
        return None
    # An authenticator that knows no audiences says yes and none: that is no yes for us.
    if audiences and not set(audiences) & set(status.get("audiences") or ()):
        return None
    user = status.get("user") or {}
    extra = user.get("extra") or {}
    pod, uid = (
        next(iter(extra.get(f"authentication.kubernetes.io/{key}") or ()), "")
        for key in ("pod-name", "pod-uid")
    )
    return Bearer(user.get("username") or "", tuple(user.get("groups") or ()), pod, uid)


async def own_name(client: Client) -> str:
    """Whom the API server takes us for. Raises ``ApiError``."""
    kind = SELF_SUBJECT_REVIEWS
    body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {}}
    found = await client.create(kind, body)
    return str(found["status"]["userInfo"]["username"])


async def make(client: Client, namespace: str, account: str, audience: str, seconds: float) -> str:
    """A token of a service account that is good for ``audience`` alone, as TokenRequest makes it.

    Raises ``ApiError``: ``Forbidden`` without the right to create serviceaccounts/token.
    """
    spec = {"audiences": [audience], "expirationSeconds": int(seconds)}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {}, "spec": spec}
    made = await client.create(SERVICE_ACCOUNTS, body, namespace, name=account, subresource="token")
    return str(made["status"]["token"])
