"""Reads CIFAR-10 and CIFAR-100 in their official layouts, from a folder or a tar archive.

The layouts are those of https://www.cs.toronto.edu/~kriz/cifar.html: images as rows of 3072 bytes,
the red, green and blue planes of 32x32 pixels one after the other, either pickled with a list of
labels or as binary records, a label byte before each image.
"""

import gzip
import operator
import tarfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kerasnorm.config import DATA_FORMS
from kerasnorm.data.dataset import (
    Dataset,
    Reader,
    Split,
    Where,
    channels_last,
    check,
    check_size,
    joined,
    parsing,
    to_labels,
    unexpected,
)
from kerasnorm.data.download import Official, RemoteFile
from kerasnorm.data.unpickle import load_batch

# The largest official file holds 148 MB (train of CIFAR-100); an archive, 186 MB.
_LARGEST_FILE = 256 * 2**20
_LARGEST_ARCHIVE = 512 * 2**20
_PLANES = (3, 32, 32)
_BYTES = 3 * 32 * 32
_GZIP = b"\x1f\x8b"


class Layout(NamedTuple):
    """One official layout of a data set."""

    name: str  # name of the data set
    folder: str  # name of the folder in the official archive
    names: str  # name of the file of class names
    train: tuple[str, ...]  # names of the files of training images, in order
    test: str  # name of the file of test images
    # Keys of the class names and of the labels in pickles; None for binary records.
    keys: tuple[str, str] | None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files of the layout."""
        return (self.names, *self.train, self.test)


def _value(batch: dict[str, Any], key: str, where: Where) -> Any:
    if key not in batch:
        found = f"the keys {', '.join(sorted(batch)) or 'none'}"
        advice = "It is another file under this name; restore the official one"
        raise unexpected(where, f"the key {key!r}", found, advice)
    return batch[key]


def _read_names(layout: Layout, content: bytes, where: Where) -> tuple[str, ...]:
    if layout.keys is None:
        with parsing(where, "class names in UTF-8, one per line"):
            return tuple(content.decode().split())
    names = _value(load_batch(content, where), layout.keys[0], where)
    with parsing(where, "a list of class names"):
        return tuple(name if isinstance(name, str) else bytes.decode(name) for name in names)


def _read_batch(layout: Layout, content: bytes, where: Where) -> Split:
    if layout.keys is None:
        return _read_records(content, where)
    batch = load_batch(content, where)
    rows, labels = _value(batch, "data", where), _value(batch, layout.keys[1], where)
    with parsing(where, f"data of shape (N, {_BYTES}) in uint8 and N labels"):
        if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8:
            raise TypeError(f"data of type {getattr(rows, 'dtype', type(rows).__name__)}")
        if rows.shape != (len(labels), _BYTES):
            raise ValueError(f"data of shape {rows.shape} and {len(labels)} labels")
        # Converted one by one: lists that share lists would fill the memory when unfolded.
        classes = np.fromiter(map(operator.index, labels), np.int64, len(labels))
        return Split(channels_last(rows.reshape(-1, *_PLANES)), to_labels(classes, where))


def _read_records(content: bytes, where: Where) -> Split:
    if len(content) % (1 + _BYTES):
        received = f"{len(content)} bytes, which is not a multiple of it: a truncated file"
        raise unexpected(where, f"records of {1 + _BYTES} bytes", received, "Restore it")
    records: NDArray[np.uint8] = np.frombuffer(content, np.uint8).reshape(-1, 1 + _BYTES)
    images = channels_last(records[:, 1:].reshape(-1, *_PLANES))
    return Split(images, records[:, 0].astype(np.int32))


LAYOUTS = (
    Layout(
        name="cifar10",
        folder="cifar-10-batches-py",
        names="batches.meta",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test="test_batch",
        keys=("label_names", "labels"),
    ),
    Layout(
        name="cifar10",
        folder="cifar-10-batches-bin",
        names="batches.meta.txt",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test="test_batch.bin",
        keys=None,
    ),
    Layout(
        name="cifar100",
        folder="cifar-100-python",
        names="meta",
        train=("train",),
        test="test",
        keys=("fine_label_names", "fine_labels"),
    ),
)


def _folders(path: Path) -> dict[Path, Layout]:
    """Returns the official folders at a path: itself, or those that lie in it by their names.

    Each has at least one file of its layout.
    """
    return {
        folder: layout
        for folder in (path, *(path / layout.folder for layout in LAYOUTS))
        for layout in reversed(LAYOUTS)  # of several layouts the first counts
        if any((folder / file).is_file() for file in layout.files)
    }


def matches(path: Path) -> bool:
    """Returns whether a path is, or holds, an official folder, or looks like a tar archive."""
    if not path.is_file():
        return bool(_folders(path))
    with path.open("rb") as file:
        start = file.read(262)
    return path.suffix == ".tar" or start[:2] == _GZIP or start[257:] == b"ustar"


def read(path: Path) -> Dataset:
    """Returns the data set in an official folder, in the folder around it, or in an archive.

    Raises:
        DataError: A file is missing, too large, damaged or unsafe, or two data sets lie there.
    """
    if path.is_file():
        return read_tar(path)
    found = _folders(path)
    if len({layout.name for layout in found.values()}) > 1:
        received = " and ".join(folder.name for folder in found)
        raise unexpected(path, "the folder of one data set", received, "Give one of the two")
    return _read_folder(*next(iter(found.items())))


def _read_folder(folder: Path, layout: Layout) -> Dataset:
    def contents() -> Iterator[tuple[str, bytes]]:
        for name in layout.files:
            file = folder / name
            with parsing(file, f"a file of {layout.folder}"):
                check_size(file, file.stat().st_size, _LARGEST_FILE)
                content = file.read_bytes()
            yield name, content

    return _assemble(contents(), layout, folder)


def read_tar(path: Path) -> Dataset:
    """Returns the data set that an official archive holds (.tar or .tar.gz).

    Members are read in memory, one at a time; nothing is extracted, so that no member can leave
    its folder. Only regular files with the names of a layout are read.

    Raises:
        DataError: The archive is damaged, holds no official layout or not all of it, or is too
            large unpacked.
    """
    with parsing(path, "an official CIFAR archive, .tar or .tar.gz"), path.open("rb") as raw:
        zipped = raw.read(2) == _GZIP
        raw.seek(0)
        stream: IO[bytes] = gzip.GzipFile(fileobj=raw) if zipped else raw  # type: ignore[assignment]
        bounded: Any = _Bounded(stream, path)
        with tarfile.open(fileobj=bounded, mode="r|") as archive:
            members = _members(archive, path)
            layout, first = next(members, (None, None))
            if layout is None or first is None:
                folders = ", ".join(layout.folder for layout in LAYOUTS)
                expected = f"an archive of one of the folders {folders}"
                advice = "Use the official one. Of other archives, unpack them and give the folder"
                raise unexpected(path, expected, "an archive without them", advice)
            rest = (content for found, content in members if found is layout)
            return _assemble(chain([first], rest), layout, path)


def _members(archive: tarfile.TarFile, path: Path) -> Iterator[tuple[Layout, tuple[str, bytes]]]:
    """Yields the layout, name and content of every member that belongs to a layout."""
    for member in archive:
        parts = PurePosixPath(member.name).parts
        for layout in LAYOUTS:
            if len(parts) == 2 and parts[0] == layout.folder and parts[1] in layout.files:
                where = f"{path}: {member.name}"
                file = archive.extractfile(member) if member.isreg() else None
                if file is None:
                    received = "a link or another special member"
                    advice = "It was not followed; use the official archive"
                    raise unexpected(where, "a regular file", received, advice)
                check_size(where, member.size, _LARGEST_FILE)
                yield layout, (parts[1], file.read())


class _Bounded:
    """A stream that refuses to return more bytes than an official archive has, against bombs."""

    def __init__(self, stream: IO[bytes], where: Where) -> None:
        self._stream, self._where, self._read = stream, where, 0

    def read(self, size: int) -> bytes:
        """Returns up to `size` bytes."""
        content = self._stream.read(size)
        self._read += len(content)
        check_size(self._where, self._read, _LARGEST_ARCHIVE)
        return content


def _assemble(contents: Iterable[tuple[str, bytes]], layout: Layout, path: Path) -> Dataset:
    names: tuple[str, ...] = ()
    batches: dict[str, Split] = {}
    for name, content in contents:
        where = path / name
        if name == layout.names:
            names = _read_names(layout, content, where)
        else:
            batches[name] = _read_batch(layout, content, where)
    found = {layout.names: names} | batches
    if missing := [name for name in layout.files if not found.get(name)]:
        expected = f"the files {', '.join(layout.files)}"
        received = f"none, or an empty one, of {', '.join(missing)}"
        raise unexpected(path, expected, received, "Download the official data set again")
    train = joined(batches[name] for name in layout.train)
    return check(Dataset(layout.name, str(path), names, train, batches[layout.test]))


_TORONTO = "https://www.cs.toronto.edu/~kriz"


def _archive(name: str, sha256: str, size: int) -> tuple[RemoteFile, ...]:
    return (RemoteFile(name, (f"{_TORONTO}/{name}",), f"sha256:{sha256}", size),)


# The checksums are those of `keras.datasets`.
SOURCES = (
    Reader(DATA_FORMS["cifar"], matches, read),
    Official(
        name="cifar10",
        files=_archive(
            "cifar-10-python.tar.gz",
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            170_498_071,
        ),
        places=(
            "cifar-10-batches-py",
            "cifar-10-batches-bin",
            "cifar-10-python.tar.gz",
            "cifar-10-binary.tar.gz",
        ),
    ),
    Official(
        name="cifar100",
        files=_archive(
            "cifar-100-python.tar.gz",
            "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
            169_001_437,
        ),
        places=("cifar-100-python", "cifar-100-python.tar.gz"),
    ),
)
