"""Counts requests in redis. GET / counts one and says who answered; GET /healthz answers without redis."""

import json
import os
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REDIS = ("redis", int(os.environ.get("REDIS_PORT_6379_TCP_PORT", "6379")))
local = threading.local()


def ask_redis(command: bytes) -> bytes:
    """One command over this thread's connection; over a new one if that has gone."""
    for attempt in (1, 2):
        connection = getattr(local, "connection", None)
        try:
            if connection is None:
                connection = local.connection = socket.create_connection(REDIS, timeout=1)
            connection.sendall(command + b"\r\n")
            answer = connection.recv(4096)
            if answer:
                return answer
            raise ConnectionError("redis closed the connection")
        except OSError:
            if connection is not None:
                connection.close()
            local.connection = None
            if attempt == 2:
                raise
    raise AssertionError("unreachable")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/healthz":
            self.answer(200, {"ok": True})
            return
        try:
            hits = int(ask_redis(b"INCR hits").lstrip(b":"))
        except (OSError, ValueError) as error:
            self.answer(503, {"error": f"redis: {error}", "web": socket.gethostname()})
            return
        self.answer(200, {"hits": hits, "web": socket.gethostname(), "client": self.client_address[0]})

    def answer(self, status: int, body: dict) -> None:
        data = (json.dumps(body) + "\n").encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        print(f"{self.client_address[0]} {format % args}", flush=True)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("listening on 8080", flush=True)
    Server(("", 8080), Handler).serve_forever()
