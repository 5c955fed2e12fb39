"""Values of params that nobody may read in texts: from Secrets and files. Where they come from is the caller's matter.

In a cluster the controller reads Secrets, and never a file, since authors of TaskSets may not read its files. Its plans
name the file, and the pod reads it. The standalone repo with a folder and ``pidone run`` read files, and no Secret.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pidone.errors import LanguageError
from pidone.language.model import Param
from pidone.language.substitution import written
from pidone.plan.digest import canonical
from pidone.plan.model import MAX_SECRET


class SecretError(LanguageError):
    """A param has no value since its Secret or file cannot be read. ``pending``: it will be read in a moment."""

    def __init__(self, message: str, *, pending: bool = False) -> None:
        super().__init__(message)
        self.pending = pending


class Secrets(Protocol):
    """The source of such values."""

    def text(self, param: Param, namespace: str) -> str | None:
        """Return the value for pods of a namespace; None if it is missing and the param does not need it.

        Raises ``SecretError`` with the remedy. It begins with a verb, as "is not ...".
        """

    def salt(self, namespace: str, values: Sequence[str]) -> str:
        """Return a text that is always the same for these values, and that nobody can guess. Raises ``SecretError``."""


class Unknown(str):
    """Stands for a value that is not known here, where a plan is only shown."""

    __slots__ = ()


class FileReference(Unknown):
    """Stands for the content of a file that the pod reads itself: see ``pidone.pod.secret_files``."""

    path: str


def file_reference(param: Param) -> FileReference:
    """Return what stands for the file of a param in a plan. Raises ``SecretError`` if no pod could read it."""
    rules = {
        f"type: {param.type}": param.type != "string",
        "pattern": param.pattern,
        "enum": param.enum,
        "maxLength": param.max_length is not None,
    }
    unchecked = [name for name, given in rules.items() if given]
    if unchecked:
        raise SecretError(
            f"is read from the file {param.file} by the pod, which checks only that it is one line; "
            f"remove {' and '.join(unchecked)}, or use valueFrom: {{secretKeyRef: {{name, key}}}}"
        )
    if ".." in param.file.split("/"):
        raise SecretError(
            f"is to be read from {param.file} by the pod, which follows no ..; give a path in its folder of Secrets"
        )
    # of characters that a URL takes anywhere; the same in every process
    mark = FileReference(f"pidone-file-{hashlib.sha256(param.file.encode()).hexdigest()[:16]}")
    mark.path = param.file
    return mark


class NoSecrets:
    """Has no values: where neither Secrets nor files are read."""

    def text(self, param: Param, namespace: str) -> str | None:  # noqa: ARG002 - as in the protocol
        raise SecretError("is not read here; give the param a value")

    def salt(self, namespace: str, values: Sequence[str]) -> str:
        return salted(_PROCESS_KEY, namespace, values)


NO_SECRETS = NoSecrets()


class GivenSecrets:
    """The values of these params, by their names, and for all other params those of ``otherwise``."""

    def __init__(self, values: Mapping[str, Any], otherwise: Secrets) -> None:
        self._values, self._otherwise = values, otherwise

    def text(self, param: Param, namespace: str) -> str | None:
        if param.name in self._values:
            return written(self._values[param.name])
        return self._otherwise.text(param, namespace)

    def salt(self, namespace: str, values: Sequence[str]) -> str:
        return self._otherwise.salt(namespace, values)


class ShownSecrets(NoSecrets):
    """Reads nothing, for plans that are only shown: ``stand_in`` stands for the keys of Secrets."""

    def __init__(self, stand_in: str) -> None:
        self._stand_in = stand_in

    def text(self, param: Param, namespace: str) -> str | None:  # noqa: ARG002 - as in the protocol
        return file_reference(param) if param.file else Unknown(self._stand_in)


class FileSecrets(NoSecrets):
    """Reads files, in ``folder`` alone if there is one. Then the key of a Secret is the file SECRET/KEY in it."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder and folder.resolve()

    def text(self, param: Param, namespace: str) -> str | None:  # noqa: ARG002 - as in the protocol
        if param.file or self._folder is not None:
            return self._read(param.file or f"{param.secret}/{param.key}", optional=param.optional)
        raise SecretError(
            f'is the key "{param.key}" of Secret "{param.secret}", which only the controller of a cluster reads; '
            f"give a value by --param {param.name}=VALUE, or use valueFrom: {{file: PATH}}"
        )

    def _read(self, name: str, *, optional: bool) -> str | None:
        folder = self._folder
        try:
            path = (folder or Path()).joinpath(name).resolve()
            if folder is not None and not path.is_relative_to(folder):
                raise SecretError(f"is to be read from {name}, which is not in {folder}; move it there")
            data = self._data(path)
        except (OSError, ValueError) as error:
            if optional and isinstance(error, FileNotFoundError):
                return None
            why = error.strerror if isinstance(error, OSError) else "not a path"
            raise SecretError(f"cannot be read from {name}: {why}") from None
        return decoded(data.removesuffix(b"\n").removesuffix(b"\r"), name)

    def _data(self, path: Path) -> bytes:
        with path.open("rb") as file:
            return file.read(4 * MAX_SECRET + 2)


_PROCESS_KEY = secrets.token_bytes(32)


def salted(key: bytes, namespace: str, values: Sequence[str]) -> str:
    """Return the keyed hash of these values (HMAC-SHA256, RFC 2104)."""
    return hmac.digest(key, canonical([namespace, list(values)]), "sha256").hex()


def decoded(data: bytes, where: str) -> str:
    """Return the text. Raises ``SecretError`` if it is no UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise SecretError(f"is no text (UTF-8) in {where}") from None
