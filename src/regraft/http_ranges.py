"""HTTP by ranges, on fsspec's file system, held to what was asked for.

fsspec believes a server's lengths, reads a whole body where a server knows no ranges, and asks for
sizes with HEAD, which signed URLs refuse. Here the first range tells the size, each answer must be
the range that was asked for, of the same file, and no more than that is read of it.
"""

from __future__ import annotations

import re
from typing import Any, cast

import aiohttp
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem

from regraft.errors import FormatError

_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18})")
_PIECE = 1 << 20
# Seconds: to connect, to wait for the next bytes, and for all of a range at the slowest rate.
_CONNECT, _SILENCE = 30, 60
_SLOWEST = 20_000  # bytes a second

# Size of the file and its ETag, by which a file that changes is noticed.
Mark = tuple[int, str]


class HttpRanges(HTTPFileSystem):
    """**Raises** `FormatError`, `FileNotFoundError`, `PermissionError`, and aiohttp's errors."""

    def __init__(self, **options: Any) -> None:
        client = {"trust_env": True, "auto_decompress": False, **options.pop("client_kwargs", {})}
        super().__init__(client_kwargs=client, **options)

    def begin(self, url: str, length: int) -> tuple[bytearray, int, Mark]:
        """The first `length` bytes of a file, or all that it has; its size; its mark."""
        return cast(Any, sync(self.loop, self._begin, url, length))

    async def _begin(self, url: str, length: int) -> tuple[bytearray, int, Mark]:
        async with await self._request(url, 0, length) as reply:
            if reply.status == 416 and reply.headers.get("Content-Range") == "bytes */0":
                return bytearray(), 0, (0, "")
            size = _size(reply, url, length)
            data = await _body(reply, min(length, size), url)
            return data, size, (size, reply.headers.get("ETag", ""))

    async def _cat_file(
        self,
        url: str,
        start: int | None = None,
        end: int | None = None,
        mark: Mark | None = None,
        **_: Any,
    ) -> bytearray:
        assert start is not None
        assert end is not None
        async with await self._request(url, start, end) as reply:
            first, last, size = _range(reply, url)
            found = (size, reply.headers.get("ETag", ""))
            if mark is not None and found != mark:
                raise FormatError(
                    _plain(url),
                    found=f"{size} bytes, ETag {found[1]!r}",
                    expected=f"{mark[0]} bytes, ETag {mark[1]!r}, as before",
                    hint="the file was replaced while it was read; open it again",
                )
            if (first, last) != (start, end - 1):
                raise FormatError(
                    _plain(url),
                    found=f"bytes {first} to {last}",
                    expected=f"bytes {start} to {end - 1}, which were asked for",
                    hint="the server answers ranges wrongly; download the file, open the copy",
                )
            return await _body(reply, end - start, url)

    async def _request(self, url: str, start: int, stop: int) -> aiohttp.ClientResponse:
        session = await self.set_session()
        options = dict(self.kwargs)
        headers = {**options.pop("headers", {}), "Range": f"bytes={start}-{stop - 1}"}
        limits = aiohttp.ClientTimeout(
            total=_SILENCE + (stop - start) / _SLOWEST,
            sock_connect=_CONNECT,
            sock_read=_SILENCE,
        )
        headers["Accept-Encoding"] = "identity"
        reply = await session.get(self.encode_url(url), headers=headers, timeout=limits, **options)
        if reply.status >= 400 and reply.status != 416:
            reply.close()
            if reply.status in (404, 410):
                raise FileNotFoundError(_plain(url))
            what = f"status {reply.status} {reply.reason}"
            if reply.status in (401, 403):
                raise PermissionError(what)
            raise FormatError(_plain(url), found=what, expected="the file", hint="try again later")
        return reply


def _size(reply: aiohttp.ClientResponse, url: str, length: int) -> int:
    """The file's size. A server without ranges will do where it sends no more than was asked."""
    if reply.status == 200 and reply.content_length is not None and not _encoded(reply):
        if reply.content_length <= length:
            return reply.content_length
        raise FormatError(
            _plain(url),
            found=f"{reply.content_length} bytes at once",
            expected=f"the first {length}, from a server that knows ranges",
            hint="download the file, and open the copy",
        )
    first, last, size = _range(reply, url)
    if (first, last) != (0, min(length, size) - 1):
        raise FormatError(
            _plain(url),
            found=f"bytes {first} to {last} of {size}",
            expected=f"bytes 0 to {length - 1}, which were asked for",
        )
    return size


def _range(reply: aiohttp.ClientResponse, url: str) -> tuple[int, int, int]:
    """First and last byte of an answer, and the size of the file."""
    told = _RANGE.fullmatch(reply.headers.get("Content-Range", ""))
    if reply.status != 206 or told is None or told[1] is None or _encoded(reply):
        raise FormatError(
            _plain(url),
            found=f"status {reply.status}, Content-Range {reply.headers.get('Content-Range')!r}, "
            f"Content-Encoding {reply.headers.get('Content-Encoding')!r}",
            expected="status 206 with the range that was asked for",
            hint="the server knows no ranges; download the file, and open the copy",
        )
    return int(told[1]), int(told[2]), int(told[3])


def _encoded(reply: aiohttp.ClientResponse) -> bool:
    return reply.headers.get("Content-Encoding", "identity") not in ("identity", "")


async def _body(reply: aiohttp.ClientResponse, length: int, url: str) -> bytearray:
    """The body, which must have this length; nothing beyond it is read."""
    data = bytearray()
    while len(data) <= length:
        piece = await reply.content.read(_PIECE)
        if not piece:
            break
        data += piece
    if len(data) != length:
        reply.close()
        more = "more than " if len(data) > length else ""
        raise FormatError(
            _plain(url),
            found=f"{more}{min(len(data), length)} bytes",
            expected=f"{length} bytes, as the server said",
            hint="the transfer broke off, or the server lies; try again",
        )
    return data


def _plain(url: str) -> str:
    """A URL without its query, which may be a secret."""
    return url.partition("?")[0]
