"""Downloads the official files of named data sets, checked, into the cache."""

import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from kerasnorm.errors import DataError
from kerasnorm.files import file_lock, fsync, fsync_folder

logger = logging.getLogger(__name__)

# Seconds without a byte after which a connection counts as dead, and the longest download.
TIMEOUT = 10.0
DEADLINE = 3600.0
_PIECE = 2**18
_NOTE_EVERY = 15.0  # seconds


class DownloadError(DataError):
    """A file cannot be downloaded.

    Attributes:
        reason: Why, without the advice.
    """

    def __init__(self, target: Path, reason: str) -> None:
        super().__init__(
            f"{target.name}: expected to download it. Received: {reason}. Check the network, save "
            f"the official file as {target} yourself, or set KERASNORM_CACHE to another folder."
        )
        self.reason = reason


class RemoteFile(NamedTuple):
    """A file as its publisher offers it."""

    path: str  # its place in the cache, relative, with "/"
    urls: tuple[str, ...]  # addresses, tried in order
    checksum: str  # "sha256:" or "md5:", whichever the publisher or Keras states, and the digits
    size: int  # size in bytes


@dataclass(frozen=True)
class Official:
    """A data set that `--data NAME` downloads, once, into the cache."""

    name: str
    files: tuple[RemoteFile, ...]
    # Files or folders in the cache that hold it, in order of preference: unpacked or packed. One of
    # the registered readers must read them.
    places: tuple[str, ...]
    class_names: tuple[str, ...] = ()  # its classes, where its files do not name them


def fetch(file: RemoteFile, cache: Path, timeout: float = TIMEOUT, retries: int = 0) -> Path:
    """Returns the path of a file in the cache, downloaded first if it is not there or damaged.

    The file takes its name only when size and checksum are right. Of several processes that want
    the same file, one downloads it and the others wait. An attempt ends after `timeout` seconds
    without a byte. A failed address is tried again `retries` times, after pauses of 1, 2, 3…
    seconds.

    Raises:
        DownloadError: No address returned the file, its size or checksum is wrong, or the cache
            cannot be written.
    """
    target = cache / file.path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(target.with_name(f".{target.name}.lock"), timeout=DEADLINE):
            if not _is_whole(file, target):
                _download(file, target, timeout, retries)
    except OSError as error:
        raise DownloadError(target, str(error)) from error
    return target


def _is_whole(file: RemoteFile, target: Path) -> bool:
    """Returns whether a file in the cache is the official one."""
    from pooch.hashes import hash_matches

    is_there = target.is_file() and target.stat().st_size == file.size
    return is_there and bool(hash_matches(str(target), file.checksum))


def _download(file: RemoteFile, target: Path, timeout: float, retries: int) -> None:
    """Tries the addresses in order."""
    import pooch

    pooch.get_logger().setLevel("WARNING")  # its notes would repeat ours
    # Whoever works in this folder holds the lock: what is in it was left by a killed process.
    partial = target.with_name(f".{target.name}.partial")

    def download(url: str, path: str, _: object) -> None:
        Path(path).unlink()  # pooch made it readable by its owner only
        with open(path, "xb") as output:
            size = f"{file.size / 1e6:.1f} MB"
            note = f"Downloading {url} ({size}) to {target.parent}"
            limited = _LimitedFile(output, file.size, note)
            pooch.HTTPDownloader(chunk_size=_PIECE, timeout=timeout)(url, limited, None)
            fsync(output)

    failures = []
    for url in file.urls:
        shutil.rmtree(partial, ignore_errors=True)
        source = pooch.create(
            partial, "", registry={target.name: file.checksum}, urls={target.name: url},
            retry_if_failed=retries,
        )  # fmt: skip
        try:
            Path(source.fetch(target.name, downloader=download)).replace(target)
            fsync_folder(target.parent)
            return
        except (OSError, ValueError) as error:  # ValueError: a wrong checksum
            failures.append(f"{url}: {_cause(error)}")
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    raise DownloadError(target, "; ".join(failures))


def _cause(error: BaseException) -> str:
    """Returns the message of the first exception in a chain, which names the cause best."""
    while earlier := error.__cause__ or error.__context__:
        error = earlier
    return str(error).removesuffix(".") or type(error).__name__


class _LimitedFile:
    """A binary file that refuses more bytes than a download has, and bytes that come too late."""

    def __init__(self, output: IO[bytes], total: int, first_note: str) -> None:
        self._output, self._total, self._first_note = output, total, first_note
        self._size, self._end = 0, time.monotonic() + DEADLINE
        self._next_note = 0.0

    def write(self, piece: bytes) -> None:
        """Writes a piece, and logs the progress of a long download.

        Raises:
            OSError: There are more bytes than expected, or the deadline has passed.
        """
        now = time.monotonic()
        self._size += len(piece)
        if self._size > self._total:
            raise OSError(f"more than the expected {self._total} bytes")
        if now > self._end:
            raise TimeoutError(f"not done after {DEADLINE:.0f} s")
        if now > self._next_note:
            done = f"Downloaded {self._size / 1e6:.1f} of {self._total / 1e6:.1f} MB"
            logger.info(done if self._next_note else self._first_note)
            self._next_note = now + _NOTE_EVERY
        self._output.write(piece)

    def flush(self) -> None:
        """Writes what is buffered."""
        self._output.flush()
