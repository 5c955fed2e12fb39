"""Provides the credentials of requests: the bearer token, read again as it rotates, and the client certificate."""

import math
import ssl
import tempfile
from pathlib import Path

from pidone_controller.kubernetes.config import Config
from pidone_controller.kubernetes.errors import ConfigError, Unauthorized

REREAD_SECONDS = 60.0  # the kubelet replaces a token when a fifth of its life is left, so there is time


class Token:
    """The bearer token. Its file is read once a minute, and at once when the server refuses the token."""

    __slots__ = ("_at", "_file", "value")

    def __init__(self, config: Config) -> None:
        self.value = config.token
        self._file = config.token_file
        self._at = -math.inf

    def current(self, now: float) -> str:
        """Return the token; "" without one. While the file is missing the last token is used.

        Raises ``Unauthorized`` if the file never existed.
        """
        if self._file and now - self._at >= REREAD_SECONDS:
            self.reread(now)
        return self.value

    def reread(self, now: float) -> bool:
        """Read the file. Return True if the token has changed."""
        if not self._file:
            return False
        self._at = now
        before = self.value
        try:
            self.value = Path(self._file).read_text().strip() or before
        except (OSError, UnicodeDecodeError) as error:
            if not before:
                raise Unauthorized(f"{self._file}: no token can be read: {error}") from error
        return self.value != before


def tls(config: Config) -> ssl.SSLContext:
    """Return a context that trusts the cluster's CA alone, or the system's CAs if a kubeconfig names none, as kubectl.

    Raises ``ConfigError``.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if config.insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        elif config.ca_data:
            context.load_verify_locations(cadata=config.ca_data.decode())
        elif config.ca_file:
            context.load_verify_locations(cafile=config.ca_file)
        else:
            context.load_default_certs()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{config.ca_file or 'certificate-authority-data'}: no certificate in it: {error}"
        ) from error
    _identify(context, config)
    return context


def _identify(context: ssl.SSLContext, config: Config) -> None:
    """Load the client certificate, if there is one. Python's ssl reads it from files only."""
    if not config.cert_file and not config.cert_data:
        return
    with tempfile.TemporaryDirectory() as folder:
        names = [
            _written(Path(folder) / name, data) if data else file
            for name, file, data in (
                ("certificate", config.cert_file, config.cert_data),
                ("key", config.key_file, config.key_data),
            )
        ]
        try:
            context.load_cert_chain(names[0], names[1] or None, password="")
        except OSError as error:
            raise ConfigError(f"client-certificate and client-key are not a pair: {error}") from error


def _written(path: Path, data: bytes) -> str:
    path.touch(mode=0o600)
    path.write_bytes(data)
    return str(path)
