"""HTTP/1.1 over Trio streams: h11 does the protocol, this folder the bytes. Client and server share it."""
