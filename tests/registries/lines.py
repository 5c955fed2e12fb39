"""A line of TCP between two programs, with faults: a thread for each connection."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable
from enum import Enum, auto
from functools import partial

RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: the peer gets an RST


class Fault(Enum):
    """What happens on a line. It holds for connections that exist too."""

    NONE = auto()
    REFUSED = auto()  # each connection is reset at once
    SILENT = auto()  # nothing arrives, in no direction, and nobody is told
    CUT = auto()  # the request is reset on its way
    RESET = auto()  # the request arrives, and its answer is a reset
    LOST = auto()  # the request arrives, and its answer does not
    SLOW = auto()  # what the server sends arrives ``DELAY_SECONDS`` later
    HELD = (
        auto()
    )  # nothing arrives until the fault ends, and then everything, as after a cut that TCP survives


DELAY_SECONDS = 5.0


class Line:
    """Listens on ``port`` and hands everything on to ``target``, a port of 127.0.0.1."""

    def __init__(self, port: int, target: int, host: str = "127.0.0.1") -> None:
        self.port = port
        self.address = f"{host}:{port}"
        self.fault = Fault.NONE
        self.only = ""  # the method of the requests that have the fault; empty: all have it
        self.asked: list[str] = []  # the method of each connection's first request
        self._target = target
        self._server = socket.create_server((host, port), backlog=1000)
        self._open: set[socket.socket] = set()

    def start(self) -> "Line":
        _in_thread(self._accept)
        return self

    def close(self) -> None:
        self._server.close()
        for connection in list(self._open):
            _end(connection)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            self._open.add(near)
            _in_thread(partial(self._connect, near))

    def _connect(self, near: socket.socket) -> None:
        try:
            if self.fault is Fault.REFUSED:
                _reset(near)
                return
            far = socket.create_connection(("127.0.0.1", self._target), timeout=60)
        except OSError:
            _reset(near)
            return
        far.settimeout(None)
        self._open.add(far)
        faulty = threading.Event()
        answers = threading.Thread(target=self._carry, args=(far, near, False, faulty), daemon=True)
        answers.start()
        self._carry(near, far, True, faulty)
        answers.join()
        for end in (near, far):
            self._open.discard(end)
            _end(end)

    def _carry(
        self, source: socket.socket, sink: socket.socket, is_request: bool, faulty: threading.Event
    ) -> None:
        first, delayed = is_request, False
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if first:
                    first = False
                    method = data.partition(b" ")[0].decode("latin-1")
                    self.asked.append(method)
                    if self.only in {"", method}:
                        faulty.set()
                fault = self.fault if faulty.is_set() else Fault.NONE
                if fault is Fault.REFUSED or (is_request and fault is Fault.CUT):
                    if fault is Fault.CUT:
                        sink.sendall(data[: len(data) // 2])
                    _reset(source)
                    _reset(sink)
                    return
                if not is_request and fault is Fault.RESET:
                    _reset(sink)
                    _end(source)
                    return
                if fault is Fault.SILENT or (not is_request and fault is Fault.LOST):
                    continue
                if fault is Fault.SLOW and not is_request and not delayed:
                    time.sleep(DELAY_SECONDS)
                    delayed = True  # the rest of an answer that comes in parts has waited with it
                while self.fault is Fault.HELD and faulty.is_set():
                    time.sleep(0.05)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def _in_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, daemon=True).start()


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
    _end(end)


def _end(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(
            socket.SHUT_RD
        )  # wakes the thread that reads it; SHUT_WR would send a FIN before the RST
    with contextlib.suppress(OSError):
        end.close()
