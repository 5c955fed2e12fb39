"""``app.py ADDRESS PORT``: the application of the demo. It answers 503 after POST /break, and 200 after POST /mend."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Ratings(BaseHTTPRequestHandler):
    healthy = True

    def do_GET(self) -> None:
        self.answer(200 if Ratings.healthy else 503)

    def do_POST(self) -> None:
        Ratings.healthy = self.path == "/mend"
        self.answer(204)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name in the base class
        pass


ThreadingHTTPServer.allow_reuse_address = True
ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Ratings).serve_forever()
