"""An application: answers HTTP on a port, with its own pid, and leaves connections open as HTTP/1.1 does.

``/slow`` takes a second. Each answer is the number of 5 ms that the application has run.
"""

import socketserver
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler

TICKS = [0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(1)
        body = f"{TICKS[0]}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def tick() -> None:
    while True:
        time.sleep(0.005)
        TICKS[0] += 1


if __name__ == "__main__":
    threading.Thread(target=tick, daemon=True).start()
    Server(("", int(sys.argv[1])), Handler).serve_forever()
