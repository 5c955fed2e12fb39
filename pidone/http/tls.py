"""TLS for clients. ssl costs 1 MiB, so this module is imported only by pods that need it."""

import os
import ssl

import trio

# Those that Go's crypto/tls offers for TLS 1.2. Python's default has other ones with CBC, and not these.
GO_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20:" + ":".join(
    f"ECDHE-{key}-AES{size}-SHA" for key in ("ECDSA", "RSA") for size in (128, 256)
)
CA = "PIDONE_CA"  # of the environment; for all https alike: repo, registry, monitoring


async def secured(
    stream: trio.SocketStream, host: str, *, verify: bool, trust: ssl.SSLContext | None = None
) -> trio.SSLStream[trio.SocketStream]:
    """Return TLS over ``stream`` after the handshake. Without ``verify`` every certificate is accepted.

    ``trust`` is used instead of the authorities of PIDONE_CA.

    Raises OSError. Then, and on cancel, the stream is closed.
    """
    try:
        context = (trust or _trust()) if verify else _unverified()
        over = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
        await over.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return over


def _unverified() -> ssl.SSLContext:
    """Return a context that accepts every certificate, and the ciphers of Go, without reading PIDONE_CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers(GO_CIPHERS)
    return context


def _trust() -> ssl.SSLContext:
    """Return a context that trusts the authorities in the file of PIDONE_CA alone, or without it the system's."""
    file = os.environ.get(CA)
    try:
        return ssl.create_default_context(cafile=file or None)
    except OSError as error:  # ssl.SSLError is one
        why = (
            error.strerror if error.errno and not isinstance(error, ssl.SSLError) else "no certificate in it"
        )
        raise OSError(f"{CA}={file}: {why}; it names a file of certificates in PEM") from None
