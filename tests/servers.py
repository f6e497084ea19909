"""HTTP servers on this machine that count what they send: files by ranges, a store that speaks S3,
a model hub. Some lie."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Served:
    """A running server: its URL, and what was asked of it.

    `trips` is the longest chain of requests of which each came after the one before was answered.
    """

    url: str = ""
    sent: int = 0
    requests: list[str] = field(default_factory=list)
    trips: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self) -> None:
        self.sent, self.requests, self.trips = 0, [], 0


Route = Callable[[BaseHTTPRequestHandler], None]
Answer = Callable[[BaseHTTPRequestHandler, Path, int, int], None]


@contextmanager
def running(route: Route, delay: float = 0.0) -> Iterator[Served]:
    """A server whose requests `route` answers, after `delay` seconds each."""
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            write = self.wfile.write

            def counted(data: Any) -> int:
                with served.lock:
                    served.sent += len(data)
                return write(data)

            self.wfile.write = counted  # type: ignore[method-assign]

        def do_GET(self) -> None:
            with served.lock:
                served.requests.append(f"{self.command} {self.path} {self.headers.get('Range')}")
                before = served.trips
            if delay:
                threading.Event().wait(delay)
            with served.lock:
                served.trips = max(served.trips, before + 1)
            route(self)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # clients hang up on servers that lie

    server = Server(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def respond(
    handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str
) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def part(path: Path, start: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def ranged(handler: BaseHTTPRequestHandler, path: Path, start: int, stop: int) -> None:
    """The honest answer to a request for a range."""
    told = f"bytes {start}-{stop - 1}/{path.stat().st_size}"
    respond(handler, 206, part(path, start, stop), Content_Range=told, ETag='"one"')


def send(handler: BaseHTTPRequestHandler, path: Path, answer: Answer = ranged) -> None:
    """Sends what was asked for of a file."""
    if not path.is_file():
        respond(handler, 404)
        return
    size = path.stat().st_size
    first, _, last = handler.headers.get("Range", "").removeprefix("bytes=").partition("-")
    start, stop = int(first or 0), min(int(last or size - 1) + 1, size)
    answer(handler, path, start, stop)


@contextmanager
def files(folder: Path, answer: Answer = ranged, delay: float = 0.0) -> Iterator[Served]:
    """The files of a folder; `answer` may answer otherwise than it should."""

    def route(handler: BaseHTTPRequestHandler) -> None:
        send(handler, folder / unquote(urlsplit(handler.path).path).lstrip("/"), answer)

    with running(route, delay) as served:
        yield served


@contextmanager
def store(folder: Path) -> Iterator[Served]:
    """A store that speaks as much of S3 as reading needs; buckets are folders."""

    def route(handler: BaseHTTPRequestHandler) -> None:
        split = urlsplit(handler.path)
        bucket, _, key = unquote(split.path).lstrip("/").partition("/")
        path = folder / bucket / key
        if key and handler.command == "HEAD" and path.is_file():
            respond(handler, 200, path.read_bytes(), ETag='"one"')
        elif key:
            send(handler, path)
        else:
            prefix = parse_qs(split.query).get("prefix", [""])[0]
            respond(handler, 200, _listing(folder / bucket, prefix), Content_Type="text/xml")

    with running(route) as served:
        yield served


def _listing(bucket: Path, prefix: str) -> bytes:
    """What lies right below a prefix, as S3 lists it."""
    found, folders = "", ""
    below = bucket / prefix
    for path in sorted(below.iterdir()) if below.is_dir() else ():
        name = path.relative_to(bucket).as_posix()
        if path.is_dir():
            folders += f"<CommonPrefixes><Prefix>{name}/</Prefix></CommonPrefixes>"
        else:
            found += (
                f"<Contents><Key>{name}</Key><Size>{path.stat().st_size}</Size>"
                '<ETag>"one"</ETag><LastModified>2026-01-01T00:00:00.000Z</LastModified>'
                "<StorageClass>STANDARD</StorageClass></Contents>"
            )
    return (
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{bucket.name}</Name><Prefix>{prefix}</Prefix><Delimiter>/</Delimiter>"
        f"<KeyCount>1</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>"
        f"{found}{folders}</ListBucketResult>"
    ).encode()


@contextmanager
def hub(folder: Path) -> Iterator[Served]:
    """A model hub with one repository, `org/repo`."""

    def route(handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        below = path.partition("/tree/main")[2].strip("/")
        if path == "/api/models/org/repo":
            about = {"id": "org/repo", "_id": "1", "sha": "a" * 40, "siblings": [], "tags": []}
            respond(handler, 200, json.dumps(about).encode())
        elif path.startswith("/api/models/org/repo/tree/main") and (folder / below).is_dir():
            entries = [_described(p, folder) for p in sorted((folder / below).iterdir())]
            respond(handler, 200, json.dumps(entries).encode())
        elif path.startswith("/org/repo/resolve/main/"):
            send(handler, folder / path.removeprefix("/org/repo/resolve/main/"))
        else:
            respond(handler, 404, b"{}")

    with running(route) as served:
        yield served


def _described(path: Path, folder: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "b" * 40, "size": 0}
    size, digest = path.stat().st_size, sha256(path.read_bytes()).hexdigest()
    large = {"lfs": {"oid": digest, "size": size, "pointerSize": 130}} if size > 10_000 else {}
    return {"type": "file", "path": name, "oid": "b" * 40, "size": size, **large}
