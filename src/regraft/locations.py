"""Where a checkpoint lies: on this machine, or behind a URL that fsspec knows (`s3://`, `hf://`,
`https://`, `gs://`, `memory://` …).

Everything behind this takes a path and asks little of it: `name`, `parent`, `/`, `open("rb")`,
`stat().st_size`, `is_file`, `is_dir`, `iterdir`. A URL gives an object that answers the same
(`regraft.remote`), so that no format knows where its bytes come from.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from regraft.errors import FormatError

if TYPE_CHECKING:
    from regraft.remote import Remote


def where(given: str | os.PathLike[str]) -> Path:
    """The path of a file name, of a URL, or of a universal_pathlib `UPath`, which may carry
    options such as credentials and endpoints.

    `file://` URLs are paths of this machine. Nothing is looked up yet. **Raises**
    `MissingDependency` where the library of a protocol is missing, `FormatError` for a URL of an
    unknown one.
    """
    if isinstance(given, Path) or hasattr(given, "ahead"):
        return cast(Path, given)  # one of this machine, or what this function has given
    if hasattr(given, "fs") and hasattr(given, "path"):
        return _path_of(given)
    text = os.fspath(given)
    protocol = text.partition("://")[0]
    # One letter is a drive; a chain such as simplecache::https:// has colons.
    if (
        len(protocol) < 2
        or protocol == text
        or not protocol.replace("::", "").replace("+", "").isalnum()
    ):
        return Path(text)
    if protocol == "file":
        return _local(text)
    from regraft import remote

    return _as_path(remote.of_url(text))


def is_local(path: Path) -> bool:
    """Whether this is a path of this machine, which can be mapped into memory."""
    return isinstance(path, Path)  # pyright: ignore[reportUnnecessaryIsInstance]


def ahead(path: Path, ranges: Iterable[tuple[int, int]]) -> None:
    """Announces that these bytes, as `(start, stop)`, will be read piece by piece, so that a remote
    file is asked for all of them at once."""
    if not is_local(path):
        cast("Remote", path).ahead(list(ranges))


def _path_of(given: Any) -> Path:
    """The path of an object that names a file system of fsspec's and a path in it."""
    protocol = given.fs.protocol
    if "file" in ((protocol,) if isinstance(protocol, str) else protocol):
        return Path(given.path)
    from regraft import remote

    return _as_path(remote.of_file_system(given.fs, given.path))


def _local(url: str) -> Path:
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise FormatError(
            url, found=f"a file on {parts.netloc}", expected="file:///… for one of this machine"
        )
    return Path(url2pathname(parts.path))


def _as_path(remote: Remote) -> Path:
    """A Remote where a Path is asked for: it has what this library uses of one."""
    return cast(Path, remote)
