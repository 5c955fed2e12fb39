"""Whose token is this, and may they; who are we, and a token of our own. The API server knows, and makes them."""

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


async def whose(client: Client, token: str, audiences: Sequence[str] = ()) -> Object:
    """The status of a TokenReview; its ``authenticated`` is True for a token that is good, and for us.

    For us is one of ``audiences``, and without any the API server itself. A token bound to a pod is no longer good
    when the pod is gone. Raises ``ApiError``.
    """
    spec = {"token": token} | ({"audiences": list(audiences)} if audiences else {})
    status = await _review(client, TOKEN_REVIEWS, spec)
    # An authenticator that knows no audiences says yes and names none: that is no yes for us.
    if audiences and not set(audiences) & set(status.get("audiences") or ()):
        return {"authenticated": False, "error": f"the token is not for {' or '.join(audiences)}"}
    return status


async def may(
    client: Client,
    user: Mapping[str, Any],
    verb: str,
    resource: Resource,
    *,
    namespace: str = "",
    name: str = "",
) -> bool:
    """Whether ``user`` (of a TokenReview's status) may; without a namespace, in all of them. Raises ``ApiError``."""
    attributes = {"verb": verb, "group": resource.group, "resource": resource.plural}
    attributes |= {"namespace": namespace, "name": name}
    spec: Object = {"user": user["username"], "resourceAttributes": attributes}
    spec |= {key: user[key] for key in ("uid", "groups", "extra") if user.get(key)}
    return (await _review(client, ACCESS_REVIEWS, spec)).get("allowed") is True


async def own_name(client: Client) -> str:
    """Whom the API server takes us for. Raises ``ApiError``."""
    status = await _review(client, SELF_SUBJECT_REVIEWS, {})
    return str(status["userInfo"]["username"])


async def token_of(client: Client, namespace: str, account: str, audience: str, seconds: float) -> str:
    """A token of a service account that is good for ``audience`` alone, as TokenRequest makes it.

    Raises ``ApiError``: ``Forbidden`` without the right to create serviceaccounts/token.
    """
    spec = {"audiences": [audience], "expirationSeconds": int(seconds)}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {}, "spec": spec}
    made = await client.create(SERVICE_ACCOUNTS, body, namespace, name=account, subresource="token")
    return str(made["status"]["token"])


async def _review(client: Client, resource: Resource, spec: Object) -> Object:
    body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {}, "spec": spec}
    status: Object = (await client.create(resource, body)).get("status") or {}
    return status
