"""Downloads the official files of the known data sets, checked, into the cache."""

import hashlib
import http.client
import logging
import time
import urllib.request
from pathlib import Path
from typing import IO, NamedTuple
from urllib.error import HTTPError, URLError

from kerasnorm.errors import DataError
from kerasnorm.files import atomic_writer

logger = logging.getLogger(__name__)

# Seconds without a byte after which a connection counts as dead, and the longest download.
TIMEOUT = 10.0
DEADLINE = 3600.0
_PIECE = 2**18


class DownloadError(DataError):
    """A file cannot be downloaded.

    Attributes:
        reason: Why, without the advice.
    """

    def __init__(self, target: Path, reason: str) -> None:
        super().__init__(
            f"{target.name}: expected to download it. Received: {reason}. Check the network, put "
            f"the official file to {target} yourself, or set KERASNORM_CACHE to another folder."
        )
        self.reason = reason


class RemoteFile(NamedTuple):
    """A file as its publisher gives it out.

    Attributes:
        path: Where it lies in the cache, relative, with "/".
        urls: Addresses, tried in order.
        algorithm: Of the checksum: "sha256" or "md5", whichever the publisher or Keras states.
        checksum: Hexadecimal digits.
        size: Bytes.
    """

    path: str
    urls: tuple[str, ...]
    algorithm: str
    checksum: str
    size: int


_TORONTO = "https://www.cs.toronto.edu/~kriz"
_KERAS = "https://storage.googleapis.com/tensorflow/tf-keras-datasets"
_ZALANDO = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"


def _fashion(name: str, md5: str, size: int) -> RemoteFile:
    urls = (f"{_KERAS}/{name}", f"{_ZALANDO}/{name}")
    return RemoteFile(f"fashion-mnist/{name}", urls, "md5", md5, size)


# Checksums of the first three: Keras's `keras.datasets`; of Fashion-MNIST: the README of
# https://github.com/zalandoresearch/fashion-mnist.
FILES: dict[str, tuple[RemoteFile, ...]] = {
    "cifar10": (
        RemoteFile(
            "cifar-10-python.tar.gz",
            (f"{_TORONTO}/cifar-10-python.tar.gz",),
            "sha256",
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            170_498_071,
        ),
    ),
    "cifar100": (
        RemoteFile(
            "cifar-100-python.tar.gz",
            (f"{_TORONTO}/cifar-100-python.tar.gz",),
            "sha256",
            "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            169_001_437,
        ),
    ),
    "mnist": (
        RemoteFile(
            "mnist.npz",
            (f"{_KERAS}/mnist.npz",),
            "sha256",
            "731c5ac602752760c8e48fbffcf8c3b850d9dc2a2aedcf2cc48468fc17b673d1",
            11_490_434,
        ),
    ),
    "fashion_mnist": (
        _fashion("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
        _fashion("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe", 29_515),
        _fashion("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79", 4_422_102),
        _fashion("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310", 5_148),
    ),
}


def fetch(file: RemoteFile, cache: Path, timeout: float = TIMEOUT) -> Path:
    """Returns the path of a file in the cache, downloaded first if it is not there.

    The bytes go to a temporary file that takes its name only when size and checksum are right.
    Of several processes that want the same file, one downloads and the others wait.

    Args:
        file: What to get.
        cache: The cache's folder; made if need be.
        timeout: Seconds without a byte after which an address is given up.

    Raises:
        DownloadError: No address gave the file, its size or checksum is wrong, or the cache cannot
            be written.
    """
    from filelock import FileLock

    target = cache / file.path
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock"), timeout=DEADLINE):
            if not target.exists():
                for left in target.parent.glob(f".{target.name}.*.tmp"):
                    left.unlink()  # by a process that was killed: whoever writes holds the lock
                _download(file, target, timeout)
    except OSError as error:
        raise DownloadError(target, str(error)) from error
    return target


def _download(file: RemoteFile, target: Path, timeout: float) -> None:
    """Tries the addresses in order."""
    failures = []
    for url in file.urls:
        try:
            with urllib.request.urlopen(url, timeout=timeout) as response:  # noqa: S310  (constants)
                logger.info(f"Downloading {url} ({file.size / 1e6:.1f} MB) to {target.parent}")
                with atomic_writer(target) as output:
                    _copy(response, output, file)
                return
        except _WrongFileError as error:
            failures.append(f"{url}: {error}")
        except HTTPError as error:
            error.close()  # it holds the connection
            failures.append(f"{url}: {error}")
        except (OSError, http.client.HTTPException) as error:
            cause = error.reason if isinstance(error, URLError) else error
            failures.append(f"{url}: {cause or type(error).__name__}")
    raise DownloadError(target, "; ".join(failures))


class _WrongFileError(Exception):
    """What came is not the official file."""


def _copy(response: IO[bytes], output: IO[bytes], file: RemoteFile) -> None:
    """Copies the response to the output, never more than the file's size.

    Raises:
        _WrongFileError: It is shorter or longer, or its checksum is wrong.
        TimeoutError: It took longer than `DEADLINE`.
    """
    digest = hashlib.new(file.algorithm, usedforsecurity=False)
    size, end = 0, time.monotonic() + DEADLINE
    while piece := response.read(_PIECE):
        size += len(piece)
        if size > file.size:
            break
        if time.monotonic() > end:
            raise TimeoutError(f"not done after {DEADLINE:.0f} s")
        digest.update(piece)
        output.write(piece)
    if size != file.size:
        relation = "more than" if size > file.size else f"{size} of"
        raise _WrongFileError(f"{relation} the expected {file.size} bytes")
    if digest.hexdigest() != file.checksum:
        raise _WrongFileError(
            f"a wrong {file.algorithm} checksum, {digest.hexdigest()} for {file.checksum}; it was "
            "deleted"
        )
