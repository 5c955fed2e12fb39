"""TLS for the client: a module of its own, since ssl is 1 MiB, and only pods that speak https pay for it."""

import os
import ssl

import trio

CA = "PIDONE_CA"  # of the environment; for all https alike: repo, registry, monitoring


async def secured(
    stream: trio.SocketStream, host: str, *, insecure: bool
) -> trio.SSLStream[trio.SocketStream]:
    """TLS over ``stream``, after the handshake; with ``insecure`` any certificate will do.

    Raises OSError; then, and on cancel, the stream is closed.
    """
    try:
        context = _unverified() if insecure else _trust()
        over = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
        await over.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return over


def _unverified() -> ssl.SSLContext:
    """Any certificate will do, so that PIDONE_CA is not read."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _trust() -> ssl.SSLContext:
    """The authorities in the file that PIDONE_CA names and no others, else those of the system."""
    file = os.environ.get(CA)
    try:
        return ssl.create_default_context(cafile=file or None)
    except OSError as error:  # ssl.SSLError is one
        why = (
            error.strerror if error.errno and not isinstance(error, ssl.SSLError) else "no certificate in it"
        )
        raise OSError(f"{CA}={file}: {why}; it names a file of certificates in PEM") from None
