"""An S3 server on loopback, and a proxy before it that does what networks and services do."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

BUCKET = "sweeps"
# To be recognised wherever they should not be.
ACCESS_KEY, SECRET_KEY = "AKIASENTINELACCESSKEY", "sentinel+secret/access/key"

# One request at a time: moto looks whether an object is there and writes it later, where S3's
# conditional PUT is atomic. It ends with its standard input, so with the process that started it.
_SERVER = """
import os, sys, threading
from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

inner, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

def app(environ, start_response):
    with lock:
        return inner(environ, start_response)

server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=MotoRequestHandler)
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
print(server.port, flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """The endpoint of a server in a process of its own, with an empty bucket `BUCKET`."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            endpoint = f"http://127.0.0.1:{int(process.stdout.readline())}"
            with contextlib.closing(_client(endpoint)) as client:
                client.create_bucket(Bucket=BUCKET)
            yield endpoint
        finally:
            process.kill()


def environment(endpoint: str) -> dict[str, str]:
    """What a process needs to reach the bucket, and to ask nobody else for credentials."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    }


def bucket_contents(endpoint: str, prefix: str = "") -> dict[str, bytes]:
    """Every object of the bucket below a prefix, by another client than the one under test."""
    with contextlib.closing(_client(endpoint)) as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
        return {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def _client(endpoint: str) -> Any:
    import boto3  # takes a while, and most tests need none

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )


# --- a network and a service with faults ----------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What a server says to a request."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Request:
    """What a client asks; `forward` asks the server in its stead."""

    method: str
    path: str
    headers: Mapping[str, str]
    forward: Callable[[], Answer]


# What becomes of a request; no answer means that the connection is dropped.
Fault = Callable[[Request], Answer | None]


def answering(status: int, code: str, text: str = "{code}") -> Fault:
    """The service refuses, in the form of S3's errors."""
    body = f"<Error><Code>{code}</Code><Message>{text.format(code=code)}</Message></Error>"
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'
    return lambda request: Answer(status, body.encode())


slow_down = answering(503, "SlowDown")
internal_error = answering(500, "InternalError")


def forwarded(request: Request) -> Answer:
    """No fault."""
    return request.forward()


def dropped(request: Request) -> None:
    """The connection breaks before the service knows of the request."""


def lost(request: Request) -> None:
    """The service does what it is asked, and its answer never arrives."""
    request.forward()


def delayed(seconds: float) -> Fault:
    """The answer is late."""

    def wait(request: Request) -> Answer:
        time.sleep(seconds)
        return request.forward()

    return wait


@dataclass
class _Planned:
    """A fault, of so many of the requests that it is meant for."""

    fault: Fault
    times: int
    method: str
    part: str


class Proxy:
    """Stands before a server at `endpoint`; commands say which requests go wrong, and how.

    `requests` lists all that came.
    """

    def __init__(self, server: str) -> None:
        self.requests: list[Request] = []
        self._server, self._planned, self._lock = server, list[_Planned](), threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.endpoint = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def fail(self, fault: Fault, times: int = 1, method: str = "", part: str = "") -> None:
        """Let the next requests of a method, whose path contains a part, go wrong."""
        with self._lock:
            self._planned.append(_Planned(fault, times, method, part))

    def go_down(self) -> None:
        """Drop every request from now on."""
        self.fail(dropped, times=1 << 30)

    def heal(self) -> None:
        """Forward everything from now on."""
        with self._lock:
            self._planned.clear()

    def close(self) -> None:
        """Stop, and close what clients hold open."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        with self._lock:
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def _answer(self, request: Request) -> Answer | None:
        with self._lock:
            self.requests.append(request)
            found = next(
                (
                    planned
                    for planned in self._planned
                    if planned.times > 0
                    and planned.method in ("", request.method)
                    and planned.part in unquote(request.path)
                ),
                None,
            )
            if found is not None:
                found.times -= 1
        return request.forward() if found is None else found.fault(request)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                with proxy._lock:
                    proxy._sockets.add(self.connection)

            def finish(self) -> None:
                with proxy._lock:
                    proxy._sockets.discard(self.connection)
                with contextlib.suppress(OSError):
                    super().finish()

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle()

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, lambda: self._forward(body))
                answer = proxy._answer(request)
                if answer is None:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response_only(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                if not any(name.lower() == "content-length" for name, _ in answer.headers):
                    self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(answer.body)

            do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

            def _forward(self, body: bytes) -> Answer:
                server = http.client.HTTPConnection(urlsplit(proxy._server).netloc)
                with contextlib.closing(server):
                    server.request(self.command, self.path, body, dict(self.headers.items()))
                    answer = server.getresponse()
                    kept = [
                        (name, value)
                        for name, value in answer.getheaders()
                        if name.lower() not in ("connection", "transfer-encoding")
                    ]
                    return Answer(answer.status, answer.read(), tuple(kept))

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing: the tests look at `requests`."""

        return Handler
