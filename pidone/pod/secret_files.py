"""Files with values of params, which the pod's author has mounted: passwords and tokens of registries.

The plan names a file by a mark, which stands in the texts of the task instead of the value:

    {"name": "registration", "register": {"etcd": {"password": "pidone-file-9f86d081884c", ...}},
     "secrets": {"salt": "", "values": [], "files": {"pidone-file-9f86d081884c": "etcd/password"}}}

Only files of one folder are read (PIDONE_SECRETS). Kubernetes changes a mounted Secret by replacing the symlink
``..data`` in it, so symlinks are followed as long as they stay in the folder.
"""

import os
import re
import stat
from collections.abc import Mapping
from typing import Any

from pidone.errors import Refused
from pidone.plan.fields import Fields
from pidone.plan.model import MAX_SECRET, SECRETS, VALUE_FILES

VARIABLE = "PIDONE_SECRETS"  # of the environment: the folder
MAX_BYTES = 4 * MAX_SECRET + 2  # in UTF-8, with a line end
MAX_FILES = 50  # of one plan: each is looked at after each heartbeat
MAX_CHARACTERS = 1 << 20  # of all values in a plan: a text may have a mark many thousand times

# No value may split a header or a line. The language refuses these in all params.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

Signature = tuple[int, int, int]  # mtime in ns, size, inode


class SecretFiles:
    """The files of ``folder`` that plans name. ``folder`` is empty where the pod has none."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._seen: dict[str, Signature | None] = {}  # by name in the plan; None: it could not be read
        self._values: dict[str, str] = {}  # by name in the plan, while tasks are filled
        self._room = 0  # characters of values that the plan has left

    def fill(self, tasks: list[Any]) -> list[Any]:
        """Return the tasks with the values of their files, which ``changed`` looks at from now on.

        A value also becomes one of ``secrets.values``. Raises ``Refused``, which never tells a value.
        """
        self._seen, self._values, self._room = {}, {}, MAX_CHARACTERS
        try:
            return [self._filled(task) if _names_files(task) else task for task in tasks]
        finally:
            self._values = {}

    @property
    def names(self) -> list[str]:
        """The files that the tasks name, as they name them."""
        return list(self._seen)

    def changed(self) -> bool:
        """True if a file has changed since it was read. Reads no content."""
        return any(self._signature(name) != seen for name, seen in self._seen.items())

    def _filled(self, task: Mapping[str, Any]) -> dict[str, Any]:
        path = f'task "{task.get("name")}"'
        secrets = Fields(task[SECRETS], f"{path}.{SECRETS}")
        files = secrets.table(VALUE_FILES)
        try:
            values = {mark: self._value(name) for mark, name in files.items()}
        except Refused as error:
            raise Refused(f"{path}: {error}") from None
        listed = {*secrets.texts("values"), *values.values()}
        marks = re.compile("|".join(map(re.escape, values)) or "(?!)")

        def value_of(mark: re.Match[str]) -> str:
            self._room -= len(values[mark[0]])
            if self._room < 0:
                raise Refused(
                    f"{path}: the values of files have more than {MAX_CHARACTERS} characters in the plan"
                )
            return values[mark[0]]

        def filled(value: Any) -> Any:
            if isinstance(value, Mapping):
                return {name: filled(inner) for name, inner in value.items()}
            if isinstance(value, list):
                return [filled(inner) for inner in value]
            return marks.sub(value_of, value) if isinstance(value, str) else value

        rest = {name: filled(value) for name, value in task.items() if name != SECRETS}
        return rest | {SECRETS: {**secrets.left, "values": sorted(listed)}}

    def _value(self, name: str) -> str:
        """Return the value of a file, which is read once for all tasks of a plan. Raises ``Refused``."""
        if name in self._values:
            return self._values[name]
        if len(self._seen) >= MAX_FILES:
            raise Refused(
                f"a param is in the file {name}, and {MAX_FILES} other files are read, the most for a plan"
            )
        self._seen[name] = self._signature(name)
        try:
            text = self._content(name).decode()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise Refused(f"the file {name} in {self._folder} cannot be read: {why}") from None
        if not 0 < len(text) <= MAX_SECRET or _CONTROL.search(text):
            raise Refused(
                f"the file {name} in {self._folder} is not one line of 1 to {MAX_SECRET} characters"
            )
        self._values[name] = text
        return text

    def _content(self, name: str) -> bytes:
        """Return the bytes of the file without one line end at its end. Raises ``OSError`` and ``Refused``."""
        # a FIFO or a device must not hold up process 1
        file = os.open(self._place(name), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise Refused(f"{name} in {self._folder} is a folder or a device, not a file with a value")
            data = os.read(file, MAX_BYTES + 1)
        finally:
            os.close(file)
        return data.removesuffix(b"\n").removesuffix(b"\r")

    def _place(self, name: str) -> str:
        """Return the path of the file without symlinks, which is in the folder. Raises ``Refused``."""
        if not self._folder:
            raise Refused(
                f"a param is in the file {name}, and this pod reads no files. Run pidone as a sidecar that mounts the "
                f"Secret, with {VARIABLE}=FOLDER, or use valueFrom: {{secretKeyRef: {{name, key}}}}"
            )
        folder = os.path.realpath(self._folder)
        path = os.path.realpath(os.path.join(folder, name))
        if ".." in name.split("/") or not path.startswith(folder.rstrip("/") + "/"):
            raise Refused(
                f"a param is in the file {name}, which is not in {self._folder}, the folder of {VARIABLE}; "
                "mount it there"
            )
        return path

    def _signature(self, name: str) -> Signature | None:
        try:
            found = os.stat(self._place(name))
        except (OSError, ValueError, Refused):
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino


def _names_files(task: object) -> bool:
    secrets = task.get(SECRETS) if isinstance(task, Mapping) else None
    return isinstance(secrets, Mapping) and VALUE_FILES in secrets
