"""Reads Prefer, If-None-Match, Accept and Accept-Encoding of a request, as leniently as their RFCs demand."""

import re
from collections.abc import Sequence
from math import isfinite

MAX_PREFERENCES = 64  # entries of one header that are read; a browser sends ten

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


def quality(header: str, name: str) -> tuple[float, bool]:
    """Return the weight of a name in ``Accept`` or ``Accept-Encoding``, from 0 to 1, and whether it is written there.

    ``name`` is a coding, or a media type that may have parameters: ``text/plain;version=0.0.4``. Of several entries the
    most specific one decides (RFC 9110, section 12.5.1). An entry with another value of such a parameter does not
    count. A name that no entry has is not wanted.
    """
    media, *own = _parts(name)
    wildcard = f"{media.partition('/')[0]}/*" if "/" in media else "*"
    best, weight = -1, 0.0
    for entry in header.split(",", MAX_PREFERENCES)[:MAX_PREFERENCES]:
        entry_media, *parameters = _parts(entry)
        if entry_media == media:
            asked = [part for part in parameters if part.partition("=")[0] in _names(own)]
            rank = 2 + len(asked) if set(asked) <= set(own) else -1
        else:
            rank = {"*/*": 0, "*": 0, wildcard: 1}.get(entry_media, -1)
        if rank > best:
            best, weight = rank, _weight(parameters)
    return weight, best > 1


def _parts(entry: str) -> list[str]:
    """Return the name and the parameters of an entry, in lower case, without spaces and quotes."""
    return [re.sub(r'[\s"]', "", part).lower() for part in entry.split(";")]


def _names(parameters: Sequence[str]) -> set[str]:
    return {parameter.partition("=")[0] for parameter in parameters}


def _weight(parameters: Sequence[str]) -> float:
    """Return the parameter ``q``, 1 without it; 0 if it is no number."""
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                number = float(parameter[2:])
            except ValueError:
                return 0.0
            return min(max(number, 0.0), 1.0) if isfinite(number) else 0.0
    return 1.0
