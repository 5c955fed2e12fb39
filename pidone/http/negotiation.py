"""Reads the request headers Prefer, If-None-Match and Accept, as leniently as their RFCs demand."""

import re
from collections.abc import Sequence

_ETAG = re.compile(r'(?:W/)?("[^"]*")')


def wait(prefer: str, limit: float) -> float | None:
    """Return the seconds of ``wait=N`` (RFC 7240), at most ``limit``; None without a preference that is a number."""
    for preference in prefer.split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        value = value.strip().strip('"')
        if name.strip().lower() == "wait" and value.isascii() and value.isdigit():
            return min(float(value[:9]), limit)
    return None


def etags(if_none_match: str) -> tuple[str, ...]:
    """Return the listed ETags with their quotes; weak ones count as strong ones (RFC 9110, section 13.1.2)."""
    return tuple(_ETAG.findall(if_none_match))


def choose(accept: str | None, offered: Sequence[str]) -> str | None:
    """Return the first media type in ``offered`` that ``accept`` allows, or None. No ``Accept`` allows all.

    Weights are ignored, because the newest type is offered first and a pod accepts only types it can read. q=0
    forbids a type.
    """
    if accept is None or not accept.strip():
        return offered[0]
    allowed: dict[str, bool] = {}
    for entry in accept.split(","):
        media, *parameters = (part.strip().lower() for part in entry.split(";"))
        allowed[media] = not any(re.fullmatch(r"q\s*=\s*0(\.0*)?", parameter) for parameter in parameters)
    for media in offered:
        # the most specific entry decides (RFC 9110, section 12.5.1)
        for name in (media.lower(), f"{media.partition('/')[0].lower()}/*", "*/*"):
            if name in allowed:
                if allowed[name]:
                    return media
                break
    return None
