"""Users and secrets, also those in files of the pod."""

import os
import stat
from typing import NamedTuple

from pidone.errors import Refused, RegistryError, RegistryRefused
from pidone.plan.fields import Fields

MAX_BYTES = 8192


def secret(path: str) -> str:
    """Return the content of a file without blanks at its ends: one line of printable ASCII, as a header takes it.

    Raises ``RegistryError``, which never shows the content.
    """
    try:
        # a FIFO or a device must not hold up process 1
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise RegistryError(f"{path}: expected a file with a secret")
            content = os.read(file, MAX_BYTES + 1)
        finally:
            os.close(file)
    except OSError as error:
        raise RegistryError(f"{path}: {error.strerror}") from error
    text = content.decode("ascii", errors="replace").strip()
    if len(content) > MAX_BYTES or not text or not (text.isascii() and text.isprintable()):
        raise RegistryError(f"{path}: expected one line of printable ASCII, at most {MAX_BYTES} bytes")
    return text


class Credentials(NamedTuple):
    """The user of a registry. The password is read from the file at each authentication, so that it may change."""

    user: str
    password: str = ""
    file: str = ""

    def __repr__(self) -> str:
        return f"Credentials({self.user!r})"  # without the password

    def read(self) -> str:
        """Return the password. Raises ``RegistryRefused``."""
        if not self.file:
            if not self.password:  # as in the controller, which reads no file of a pod
                raise RegistryRefused(f'user "{self.user}" needs password or passwordFile')
            return self.password
        try:
            return secret(self.file)
        except RegistryError as error:
            raise RegistryRefused(f"passwordFile {error}") from error


def credentials_in(fields: Fields, user: str) -> Credentials | None:
    """Read the fields of a user; ``user`` is the name of the first one. Raises ``Refused``."""
    name, password, file = (fields.text(field, "") for field in (user, "password", "passwordFile"))
    if password and file:
        raise Refused(f"{fields.path}: password or passwordFile, not both")
    if (password or file) and not name:
        raise Refused(f"{fields.path}: a password without a user; set {user}")
    return Credentials(name, password, file) if name else None
