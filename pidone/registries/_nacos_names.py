"""Names that Nacos takes, and whose instances clients find. Each function returns what is wrong, or nothing.

Nacos holds them to com.alibaba.nacos.common.paramcheck.ParamCheckRule, if that is not switched off.
"""

import re
from collections.abc import Mapping

from pidone.text import printable

# A blank at the end is taken as the first character of a name, and by servers without the check. Nobody looks for it.
_SERVICE = re.compile("(?!@)((?!@@)[^\\s\u4e00-\u9fa5]){1,512}")
_GROUP = re.compile(r"[-_:.A-Za-z0-9]{1,128}")
_NAMESPACE = re.compile(r"[-_A-Za-z0-9]{1,64}")
_METADATA = 1024  # characters of all keys and values
_CLUSTER = re.compile(r"[-_A-Za-z0-9]{1,64}")


def service(text: str) -> str:
    if _SERVICE.fullmatch(text):
        return ""
    return (
        f"{_shown(text)} is no name of a service in Nacos; write it without blanks, Chinese characters, "
        '"@@" and "@" at the beginning, at most 512 characters'
    )


def group(text: str) -> str:
    if _GROUP.fullmatch(text):
        return ""
    return f'{_shown(text)} is no group in Nacos; use letters, digits, "-", "_", "." and ":", at most 128'


def namespace(text: str) -> str:
    if _NAMESPACE.fullmatch(text):
        return ""
    return (
        f'{_shown(text)} is no identifier of a namespace in Nacos; use letters, digits, "-" and "_", at most 64; '
        "its name in the console is another one"
    )


def cluster(text: str) -> str:
    if _CLUSTER.fullmatch(text):
        return ""
    return f'{_shown(text)} is no cluster in Nacos; use letters, digits, "-" and "_", at most 64'


def metadata(table: Mapping[str, str]) -> str:
    size = sum(len(key) + len(value) for key, value in table.items())
    return f"{size} characters, and Nacos takes {_METADATA}; shorten it" if size > _METADATA else ""


def _shown(text: str) -> str:
    return f'"{printable(text, 60)}"'
