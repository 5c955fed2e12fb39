"""Secrets in files of the pod."""

import os
import stat

from pidone.errors import RegistryError

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
