"""``app.py ADDRESS PORT``: the application of the demo. POST /break and /mend make it ill and well."""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Ratings(BaseHTTPRequestHandler):
    well = True

    def do_GET(self) -> None:
        self.answer(200 if Ratings.well else 503)

    def do_POST(self) -> None:
        Ratings.well = self.path == "/mend"
        self.answer(204)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class named it
        pass


ThreadingHTTPServer.allow_reuse_address = True
ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Ratings).serve_forever()
