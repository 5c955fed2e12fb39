"""Users and secrets, also those in files of the pod."""

import os
import stat
from dataclasses import dataclass, field

from pidone.errors import RegistryError, RegistryRefused

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


@dataclass(frozen=True, slots=True)
class Credentials:
    """The user of a registry. The password is read from the file at each authentication, so that it may change."""

    user: str
    password: str = field(default="", repr=False)
    file: str = ""

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
