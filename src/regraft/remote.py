"""Files behind a URL, through fsspec: paths that read what they are asked for, and little more.

fsspec's own file objects read five megabytes at a time, or one block for each request. Here small
reads share a cache of blocks: what is missing is asked for in one range, a sequence of reads in
growing ones, and ranges that a format announces (`ahead`) all at once. Large reads pass it by.
"""

from __future__ import annotations

import fnmatch
import io
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from regraft.errors import FormatError, MissingDependency, RegraftError

# The cache's unit in bytes. In blocks: what is asked for at least, of a file's beginning and
# elsewhere; what a sequence of reads grows to; what is kept.
_BLOCK = 1 << 12
_BEGINNING, _LEAST, _MOST, _KEPT = 16, 4, 1 << 10, 1 << 14
_LARGE = _MOST * _BLOCK
_AT_ONCE = 32

Ranges = list[tuple[int, int]]


class Stat(NamedTuple):
    """What is known of a file without reading it."""

    st_size: int


def of_url(url: str) -> Remote:
    """**Raises** `MissingDependency`, and `FormatError` for an unknown protocol."""
    try:
        import fsspec
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise MissingDependency("fsspec", extra="remote", purpose=f"reading {url}") from error
    protocol = url.partition("://")[0]
    if protocol in ("http", "https"):
        return _http_file(url, {})
    try:
        system, path = url_to_fs(url)
    except ImportError as error:
        raise _missing(error, url) from error
    except ValueError as error:
        raise FormatError(
            url,
            found=f"the protocol {protocol!r}: {error}",
            expected=f"one that fsspec knows: {', '.join(sorted(fsspec.available_protocols()))}",
        ) from error
    return Remote(system, str(path))


def of_file_system(system: Any, path: str) -> Remote:
    """A path in a file system of fsspec's that the caller has made."""
    if path.startswith(("http://", "https://")):
        return _http_file(path, system.storage_options)
    return Remote(system, path)


def _http_file(url: str, options: Mapping[str, Any]) -> Remote:
    try:
        from regraft.http_ranges import HttpRanges
    except ImportError as error:
        raise MissingDependency("aiohttp", extra="remote", purpose=f"reading {url}") from error
    split = urlsplit(url)
    plain = f"{split.scheme}://{split.netloc}{split.path}"
    return Remote(HttpRanges(**options), plain, f"?{split.query}" if split.query else "")


def _missing(error: ImportError, url: str) -> MissingDependency:
    """The module that fsspec could not import, which has its package's name."""
    cause = error.__cause__
    name = error.name or (cause.name if isinstance(cause, ImportError) else None) or str(error)
    return MissingDependency(name.partition(".")[0], extra="", purpose=f"reading {url}")


class Remote:
    """A path behind a URL: what the formats use of a `pathlib.Path`, for reading.

    What was learned of a file is kept with the path: it is asked once whether it exists.
    **Raises** `FormatError` from every method that must ask and gets no answer.
    """

    def __init__(self, system: Any, path: str, query: str = "") -> None:
        self._system = system
        self._path = path
        self._query = query
        self._http = hasattr(system, "begin")
        self._bytes: _Bytes | None = None
        self._info: dict[str, Any] | None = None

    # Names

    @property
    def name(self) -> str:
        last = self._path.rstrip("/").rpartition("/")[2]
        return unquote(last) if self._http else last

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> Remote:
        above = self._path.rstrip("/").rpartition("/")[0]
        return Remote(self._system, self._path if above.endswith(":/") else above)

    def __truediv__(self, part: str) -> Remote:
        """A path below this one; a query, which may be a signature, is not handed on."""
        below = quote(part) if self._http else part
        return Remote(self._system, f"{self._path.rstrip('/')}/{below}")

    def __str__(self) -> str:
        """The URL, without its query."""
        return str(self._system.unstrip_protocol(self._path))

    def __repr__(self) -> str:
        return f"Remote({str(self)!r})"

    def __fspath__(self) -> str:
        raise FormatError(
            str(self),
            found="a file that is not on this machine",
            expected="a local file: this format's library reads no other",
            hint="download it, and open the copy",
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: Remote) -> bool:
        return self._path < other._path

    def as_posix(self) -> str:
        return str(self)

    def resolve(self) -> Remote:
        return self

    def is_relative_to(self, other: Remote) -> bool:
        return self._path.startswith(f"{other._path.rstrip('/')}/")

    def relative_to(self, other: Remote) -> PurePosixPath:
        return PurePosixPath(self._path.removeprefix(f"{other._path.rstrip('/')}/"))

    # What is there

    def stat(self) -> Stat:
        return Stat(self._content().size)

    def exists(self) -> bool:
        return bool(self._found())

    def is_file(self) -> bool:
        return self._found().get("type") == "file"

    def is_dir(self) -> bool:
        """Whether it is a folder; HTTP has none."""
        return not self._http and self._found().get("type") == "directory"

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> Iterator[Remote]:
        if self._http:
            raise FormatError(
                str(self),
                found="a folder behind HTTP, which cannot be listed",
                hint="name the file itself: the weights, or the index of their shards",
            )
        for entry in _asked(self, lambda: self._system.ls(self._path, detail=True)):
            below = Remote(self._system, str(entry["name"]).rstrip("/"))
            if below != self:  # some stores keep an empty file for a folder
                below._info = entry
                yield below

    def glob(self, pattern: str) -> Iterator[Remote]:
        """Files right in the folder."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def rglob(self, pattern: str) -> Iterator[Remote]:
        for path in self.iterdir():
            if path.is_dir():
                yield from path.rglob(pattern)
            elif fnmatch.fnmatchcase(path.name, pattern):
                yield path

    @property
    def sha256(self) -> str | None:
        """The content's hash, where a model hub names its files by it."""
        large = self._found().get("lfs") or {}
        found = large.get("sha256") if isinstance(large, dict) else getattr(large, "sha256", None)
        return found if isinstance(found, str) and len(found) == 64 else None

    def _found(self) -> dict[str, Any]:
        """What fsspec says of the path; nothing where there is nothing."""
        if self._info is None:
            try:
                if self._http:
                    self._info = {"type": "file", "size": self._content().size}
                else:
                    self._info = dict(_asked(self, self._looked_up))
            except _Absent:
                self._info = {}
        return self._info

    def _looked_up(self) -> Any:
        self._system.invalidate_cache(self._path)  # what was listed before may be out of date
        return self._system.info(self._path)

    # Bytes

    def open(self, mode: str = "rb", buffering: int = -1) -> io.RawIOBase:
        """A file to read from; every `read` gives all that was asked for, or what there is."""
        if mode != "rb":
            raise FormatError(str(self), found=f"mode {mode!r}", expected="reading")
        return _File(self._content())

    def read_bytes(self) -> bytes:
        content = self._content()
        return bytes(content.read(0, content.size))

    def fetch(self, start: int, stop: int) -> bytes | bytearray | memoryview:
        """The bytes from `start` to before `stop`, or as many as there are."""
        return self._content().read(start, stop)

    def ahead(self, ranges: Ranges) -> None:
        """Asks for all of these at once, to be read piece by piece."""
        self._content().ahead(ranges)

    def _content(self) -> _Bytes:
        if self._bytes is None:
            if self._http:
                url = self._path + self._query
                head, size, mark = _asked(
                    self, lambda: self._system.begin(url, _BEGINNING * _BLOCK)
                )
                self._bytes = _Bytes(size, lambda wanted: self._fetched(url, wanted, mark=mark))
                self._bytes.keep(0, head)
            else:
                found = self._found()
                if not found:
                    raise _absent(self)
                if found.get("type") != "file" or found.get("size") is None:
                    raise FormatError(str(self), found="a folder", expected="a file of known size")
                size = int(found["size"])
                self._bytes = _Bytes(size, lambda wanted: self._fetched(self._path, wanted))
        return self._bytes

    def _fetched(self, path: str, wanted: Ranges, **options: Any) -> list[Any]:
        """The bytes of several ranges, asked for at the same time."""
        system = self._system
        starts, stops = [a for a, _ in wanted], [b for _, b in wanted]

        def ask() -> list[Any]:
            if system.async_impl:
                return _raised(system.cat_ranges(
                    [path] * len(wanted), starts, stops,
                    batch_size=_AT_ONCE, on_error="raise", **options,
                ))  # fmt: skip
            # fsspec's files would read blocks ahead.
            return _together(
                lambda a, b: system.cat_file(path, a, b, cache_type="none"), starts, stops
            )

        got = _asked(self, ask)
        for (start, stop), data in zip(wanted, got, strict=True):
            if len(data) != stop - start:
                raise FormatError(
                    str(self),
                    found=f"{len(data)} bytes from {start} on",
                    expected=f"{stop - start} bytes",
                    hint="the file changed, or the server sends other bytes than it was asked for",
                )
        return got


class _Bytes:
    """The bytes of one remote file, kept by blocks. `fetch` gets several ranges at once."""

    def __init__(self, size: int, fetch: Callable[[Ranges], list[Any]]) -> None:
        self.size = size
        self._fetch = fetch
        self._blocks: dict[int, bytes] = {}
        self._count = -(-size // _BLOCK)
        self._next = 0
        self._window = _LEAST
        self._lock = threading.RLock()

    def keep(self, start: int, data: bytes) -> None:
        """Puts bytes that begin at a block into the cache; the oldest ones leave it."""
        for offset in range(0, len(data), _BLOCK):
            self._blocks[(start + offset) // _BLOCK] = bytes(data[offset : offset + _BLOCK])
        while len(self._blocks) > _KEPT:
            del self._blocks[next(iter(self._blocks))]

    def read(self, start: int, stop: int) -> bytes | bytearray | memoryview:
        start, stop = max(0, start), min(stop, self.size)
        if stop <= start:
            return b""
        if stop - start > _LARGE:
            return self._fetch([(start, stop)])[0]
        first, last = start // _BLOCK, (stop - 1) // _BLOCK
        with self._lock:
            # Again where the cache was full, so that the first blocks left it for the last ones.
            while missing := [n for n in range(first, last + 1) if n not in self._blocks]:
                self._fill(missing[0], missing[-1] + 1)
            data = b"".join([self._blocks[n] for n in range(first, last + 1)])
        return data[start - first * _BLOCK : stop - first * _BLOCK]

    def _fill(self, first: int, last: int) -> None:
        """Fetches at least these blocks; more, the longer reads follow one another."""
        follows = first == self._next and first
        self._window = min(2 * self._window, _MOST) if follows else _LEAST if first else _BEGINNING
        end = last
        while end < min(first + self._window, self._count) and end not in self._blocks:
            end += 1
        start, stop = first * _BLOCK, min(end * _BLOCK, self.size)
        self.keep(start, self._fetch([(start, stop)])[0])
        self._next = end

    def ahead(self, ranges: Ranges) -> None:
        wanted = {
            n
            for start, stop in ranges
            for n in range(max(0, start) // _BLOCK, -(-min(stop, self.size) // _BLOCK))
            if n not in self._blocks
        }
        runs: Ranges = []
        for n in sorted(wanted)[: _KEPT // 2]:
            if runs and n * _BLOCK - runs[-1][1] <= _BEGINNING * _BLOCK:
                runs[-1] = runs[-1][0], min((n + 1) * _BLOCK, self.size)
            else:
                runs.append((n * _BLOCK, min((n + 1) * _BLOCK, self.size)))
        with self._lock:
            for (start, _), data in zip(runs, self._fetch(runs) if runs else (), strict=True):
                self.keep(start, data)


class _File(io.RawIOBase):
    """A position in the bytes of a remote file."""

    def __init__(self, content: _Bytes) -> None:
        self._content = content
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._content.size}[whence]
        if base + offset < 0:
            raise ValueError(f"a place {base + offset} before the file")
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = self._content.size if size is None or size < 0 else self._at + size
        data = bytes(self._content.read(self._at, stop))
        self._at += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._content.read(self._at, self._at + len(view))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Absent(FormatError):
    """There is no such file."""


def _absent(path: Remote) -> _Absent:
    return _Absent(str(path), found="no such file", hint="check the URL")


def _together(read: Callable[[int, int], Any], starts: list[int], stops: list[int]) -> list[Any]:
    if len(starts) == 1:
        return [read(starts[0], stops[0])]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(read, starts, stops))


def _raised(answers: list[Any]) -> list[Any]:
    """The answers; old versions of fsspec return what they should raise."""
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers


def _asked(path: Remote, ask: Callable[[], Any]) -> Any:
    """What a file system answers; whatever its library raises becomes a `FormatError`."""
    try:
        return ask()
    except RegraftError:
        raise
    except FileNotFoundError as error:
        raise _absent(path) from error
    except ImportError as error:
        raise _missing(error, str(path)) from error
    except PermissionError as error:
        raise FormatError(
            str(path),
            found=f"access denied: {_told(path, error)}",
            hint="set the credentials that its library reads, or check the URL",
        ) from error
    except Exception as error:  # libraries raise what they like when a network fails
        raise FormatError(
            str(path),
            found=_told(path, error),
            expected="an answer from the server",
            hint="check the URL and the network; or download the file, and open the copy",
        ) from error


def _told(path: Remote, error: Exception) -> str:
    """An error in one line, without the query, which may be a secret."""
    text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return text.replace(path._query, "") if path._query else text  # pyright: ignore[reportPrivateUsage]
