"""JSON over HTTP on loopback: base of the local judge."""

import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HOST = "127.0.0.1"


class LoopbackServer(ThreadingHTTPServer):
    """A server with one thread a connection."""

    daemon_threads = True
    request_queue_size = 128


class JsonHandler(BaseHTTPRequestHandler):
    """A request handler that answers in JSON and keeps connections open."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 300.0  # seconds without a byte before a connection is closed

    def log_message(self, format: str, *args: Any) -> None:
        """No line per request: the scorers report their calls."""

    def _size(self) -> int | None:
        """Size of the request's body; None without a valid Content-Length."""
        size = self.headers.get("Content-Length", "")
        return int(size) if size.isascii() and size.isdigit() else None

    def _send(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
