"""Resolves the params of a set for one pod: the binding's value, else the pod's, else the default."""

import re
from collections.abc import Mapping
from typing import Any

from pidone.errors import LanguageError
from pidone.language import duration
from pidone.language.containers import variable
from pidone.language.findings import shown
from pidone.language.model import Param
from pidone.language.pattern_syntax import PatternError
from pidone.language.pods import place, pod_field
from pidone.language.safe_patterns import MAX_TEXT, matches
from pidone.language.schemas import MISSING
from pidone.language.secrets import NO_SECRETS, SecretError, Secrets, Unknown
from pidone.plan.model import MAX_SECRET

MAX_LENGTH = 65_536  # of any string, as of an argument of a command
POD_MAX_LENGTH = 253  # of a string that the pod's author chose, unless the param has a maxLength

_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_ARTICLE = {"integer": "an integer", "string": "a string", "boolean": "true or false"}


def value_of(
    param: Param, arguments: Mapping[str, Any], pod: Mapping[str, Any], secrets: Secrets = NO_SECRETS
) -> Any:
    """Return the value of ``param`` in its type. Raises ``LanguageError`` if no value exists or it does not fit."""
    if param.name in arguments:
        value = arguments[param.name]
        wrong = mismatch(param, value)
        if wrong:
            given = "a value" if param.confidential else shown(value)
            raise LanguageError(f'param "{param.name}": the TaskBinding gives {given}, which {wrong}')
        return value
    if param.confidential:
        return _secret_value(param, pod, secrets)
    text = _from_pod(param, pod)
    if text is not None:
        value = from_text(param, text)
        wrong = mismatch(param, value, max_length=POD_MAX_LENGTH)
        if wrong:
            raise LanguageError(
                f'param "{param.name}": the pod\'s {source(param)} is {shown(text)}, which {wrong}'
            )
        return value
    if param.default is not MISSING:
        return param.default
    where = source(param)
    given = f"set the {where}{'' if param.variable else ' on the pod'}, " if where else ""
    raise LanguageError(
        f'param "{param.name}" has no value: {given}'
        "pass it in the TaskBinding's params, or give it a default"
    )


def _secret_value(param: Param, pod: Mapping[str, Any], secrets: Secrets) -> Any:
    """Return the value of a Secret or a file, else the default. Raises ``SecretError``, which never tells the value."""
    where = source(param)
    try:
        text = secrets.text(param, pod_field("metadata.namespace", pod) or "")
    except SecretError as error:
        raise SecretError(f'param "{param.name}" {error}', pending=error.pending) from None
    if text is None and param.default is not MISSING:
        return param.default
    if text is None:
        raise SecretError(f'param "{param.name}" has no value: there is no {where}, and it has no default')
    if isinstance(text, Unknown):
        return text
    value = from_text(param, text)
    if wrong := mismatch(param, value, max_length=MAX_SECRET):
        if text != text.strip("\r\n"):
            wrong += "; it begins or ends with a line end, which printf and --from-literal do not add"
        raise SecretError(f'param "{param.name}": the {where} holds a value that {wrong}')
    return value


def mismatch(param: Param, value: Any, *, max_length: int | None = None) -> str:
    """Return why ``value`` does not fit, as the end of "..., which"; empty if it fits.

    ``max_length`` applies if the param has none.
    """
    wrong = _wrong_type(param, value)
    if not wrong:
        longest = param.max_length if param.max_length is not None else max_length
        longest = MAX_LENGTH if longest is None else min(longest, MAX_LENGTH)
        wrong = _wrong_text(param, value, longest) if isinstance(value, str) else _wrong_number(param, value)
    if not wrong and param.enum and value not in param.enum:
        wrong = f"is none of {', '.join(shown(choice) for choice in param.enum)}"
    return wrong


def _wrong_text(param: Param, value: str, longest: int) -> str:
    if len(value) > longest:
        return f"is longer than {longest} characters"
    if _CONTROL.search(value):  # from any source: a value must not split a header or a log line
        return "holds a control character"
    if not param.pattern:
        return ""
    if len(value) > MAX_TEXT:
        return f"is longer than {MAX_TEXT} characters, the most for a param with a pattern"
    try:
        return "" if matches(param.pattern, value) else f"does not match {param.pattern}"
    except PatternError as error:
        return f"cannot be matched: {error}"


def _wrong_number(param: Param, value: int) -> str:
    if param.minimum is not None and value < param.minimum:
        return f"is less than {param.minimum}"
    if param.maximum is not None and value > param.maximum:
        return f"is greater than {param.maximum}"
    return ""


def _wrong_type(param: Param, value: Any) -> str:
    if param.type == "duration":
        fits = duration.seconds(value) is not None
        return "" if fits else "is not a duration; write it like 10s, 5m or 1h30m"
    types = {"integer": int, "string": str, "boolean": bool}
    if isinstance(value, types[param.type]) and (param.type == "boolean" or not isinstance(value, bool)):
        return ""
    return f"is not {_ARTICLE[param.type]}" + ("; quote it" if param.type == "string" else "")


def source(param: Param) -> str:
    """Return the source of the value in the pod, for messages: ``label "app"``; empty without ``valueFrom``."""
    if param.secret:
        return f'key "{param.key}" of Secret "{param.secret}"'
    if param.file:
        return f"file {param.file}"
    if param.variable:
        where = f'container "{param.container}"' if param.container else "a container"
        return f"variable {param.variable} in the env of {where}"
    return place(param.field_path) if param.field_path else ""


def _from_pod(param: Param, pod: Mapping[str, Any]) -> str | None:
    try:
        if param.variable:
            return variable(pod, param.variable, param.container)
    except LanguageError as error:
        raise LanguageError(f'param "{param.name}": {error}') from error
    return pod_field(param.field_path, pod) if param.field_path else None


def from_text(param: Param, text: str) -> Any:
    """Convert a text to the param's type: a pod's labels and a command line's arguments have no types.

    A text that does not fit is returned unchanged, and ``mismatch`` returns what is wrong with it.
    """
    if param.type == "integer" and _INTEGER.fullmatch(text):
        return int(text)
    if param.type == "boolean" and text in {"true", "false"}:
        return text == "true"
    return text
