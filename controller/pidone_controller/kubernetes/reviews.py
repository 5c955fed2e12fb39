"""Requests reviews of tokens and rights, and tokens of service accounts, from the API server."""

from collections.abc import Mapping, Sequence
from typing import Any

from pidone_controller.kubernetes.client import Client, Object
from pidone_controller.kubernetes.resources import (
    ACCESS_REVIEWS,
    SELF_SUBJECT_REVIEWS,
    SERVICE_ACCOUNTS,
    TOKEN_REVIEWS,
    Resource,
)


async def review_token(client: Client, token: str, audiences: Sequence[str] = ()) -> Object:
    """Return the status of a TokenReview. ``authenticated`` is True for a valid token for one of ``audiences``.

    Without audiences it must be for the API server. A token bound to a pod is no longer valid when the pod is
    gone. Raises ``ApiError``.
    """
    spec = {"token": token} | ({"audiences": list(audiences)} if audiences else {})
    status = await _review(client, TOKEN_REVIEWS, spec)
    # An authenticator that does not know audiences accepts the token and names none.
    if audiences and not set(audiences) & set(status.get("audiences") or ()):
        return {"authenticated": False, "error": f"the token is not for {' or '.join(audiences)}"}
    return status


async def is_allowed(
    client: Client,
    user: Mapping[str, Any],
    verb: str,
    resource: Resource,
    *,
    namespace: str = "",
    name: str = "",
) -> bool:
    """True if ``user`` (of a TokenReview's status) has this right; without a namespace, in all. Raises ``ApiError``."""
    attributes = {"verb": verb, "group": resource.group, "resource": resource.plural}
    attributes |= {"namespace": namespace, "name": name}
    spec: Object = {"user": user["username"], "resourceAttributes": attributes}
    spec |= {key: user[key] for key in ("uid", "groups", "extra") if user.get(key)}
    return (await _review(client, ACCESS_REVIEWS, spec)).get("allowed") is True


async def own_user(client: Client) -> str:
    """Return the user name of this client. Raises ``ApiError``."""
    status = await _review(client, SELF_SUBJECT_REVIEWS, {})
    return str(status["userInfo"]["username"])


async def request_token(client: Client, namespace: str, account: str, audience: str, seconds: float) -> str:
    """Return a token of a service account that is valid for ``audience`` alone, by a TokenRequest.

    Raises ``ApiError``: ``Forbidden`` without the right to create serviceaccounts/token.
    """
    spec = {"audiences": [audience], "expirationSeconds": int(seconds)}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {}, "spec": spec}
    answer = await client.create(SERVICE_ACCOUNTS, body, namespace, name=account, subresource="token")
    return str(answer["status"]["token"])


async def _review(client: Client, resource: Resource, spec: Object) -> Object:
    body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {}, "spec": spec}
    status: Object = (await client.create(resource, body)).get("status") or {}
    return status
