"""Images that are decoded once into a file of the cache, and read from there a few at a time."""

import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm.errors import DataError
from kerasnorm.files import LOCK, atomic_writer, digest, file_lock, make_folder, sweep, write_json
from kerasnorm.runtime import cache_folder

IN_MEMORY = 256 * 2**20  # bytes of decoded images from which on the pixels stay in a file
IMAGES, FACTS = "images.npy", "content.json"
CLEAR = "kerasnorm data --clear"
_VERSION = 1  # of what is decoded, and how
CHUNK = 4 * 2**20  # pixels times channels that are processed at a time

Change = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class StoredImages:
    """Raw pixels (N, H, W, C) in a `.npy` file, which are read whenever they are indexed.

    The file is read, not mapped: where it is cut off or its drive is lost, reading raises an error,
    and touching a map ends the process.
    """

    path: Path
    image_shape: tuple[int, ...]  # shape (H, W, C) of one image
    offset: int  # place of the first image in the file, in bytes
    indices: NDArray[np.int64]  # places of these images among those of the file, shape (N,)
    # Functions that are applied to the images read. Each acts on every image alone, and keeps its
    # shape.
    changes: tuple[Change, ...] = ()

    dtype = np.dtype(np.uint8)
    ndim = 4

    @classmethod
    def open(cls, path: Path) -> "StoredImages":
        """Returns all images of a file.

        Raises:
            Exception: It is missing, or damaged in any way.
        """
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if mapped.dtype != cls.dtype or mapped.ndim != cls.ndim or np.isfortran(mapped):
            raise ValueError(f"{mapped.dtype} of shape {mapped.shape}")
        if path.stat().st_size != mapped.offset + mapped.nbytes:
            raise ValueError("another size than its header says")
        return cls(path, mapped.shape[1:], mapped.offset, np.arange(len(mapped)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape (N, H, W, C)."""
        return len(self.indices), *self.image_shape

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        """Returns pixels; of a tuple, the first part selects images: a number, slice or array."""
        first, *rest = key if isinstance(key, tuple) else (key,)
        if first is Ellipsis:
            first, rest = slice(None), key
        rows = self.indices[first]
        if rows.ndim > 1:
            raise IndexError("images: expected one dimension of indices")
        images = self._read(np.atleast_1d(rows))
        return images[(slice(None) if rows.ndim else 0, *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:] if dtype is None else self[:].astype(dtype)

    def select(self, chosen: slice | NDArray[np.int64]) -> "StoredImages":
        """Returns some of the images, unread."""
        return replace(self, indices=self.indices[chosen])

    def changed(self, change: Change) -> "StoredImages":
        """Returns the images, with one more change when they are read."""
        return replace(self, changes=(*self.changes, change))

    def _read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        images = np.empty((len(rows), *self.image_shape), np.uint8)
        size = math.prod(self.image_shape)
        try:
            with self.path.open("rb") as file:
                for row, image in zip(rows.tolist(), images, strict=True):
                    file.seek(self.offset + row * size)
                    if file.readinto(image) != size:
                        raise EOFError("it ends too early")
        except (OSError, EOFError) as error:
            raise DataError(
                f"{self.path}: expected the images that were decoded into it. Received: "
                f"{getattr(error, 'strerror', None) or error}. It was removed or changed "
                "meanwhile. Start again: the images are then decoded anew."
            ) from error
        for change in self.changes:
            images = change(images)
        return images


Images = NDArray[np.uint8] | StoredImages


def select(images: Images, chosen: slice | NDArray[np.int64]) -> Images:
    """Returns some images; stored ones are not read."""
    return images.select(chosen) if isinstance(images, StoredImages) else images[chosen]


def changed(images: Images, change: Change) -> Images:
    """Returns images after a change that acts on each alone; on stored ones it acts on reading."""
    return images.changed(change) if isinstance(images, StoredImages) else change(images)


def concatenated(parts: Sequence[Images]) -> Images:
    """Returns the images of all parts in their order; those of one file are not read."""
    stored = [part for part in parts if isinstance(part, StoredImages)]
    if len(stored) == len(parts) and len({(part.path, part.changes) for part in stored}) == 1:
        return replace(stored[0], indices=np.concatenate([part.indices for part in stored]))
    return np.concatenate([np.asarray(part) for part in parts])


def chunks(array: Images | NDArray[Any]) -> Iterator[slice]:
    """Returns slices that cut images, or another array, into parts of a few million numbers."""
    step = max(1, CHUNK // math.prod(array.shape[1:]))
    return (slice(start, start + step) for start in range(0, len(array), step))


def in_parts(images: Images, size: int) -> Iterator[NDArray[np.uint8]]:
    """Yields images that are in memory all at once, stored ones `size` at a time."""
    if not isinstance(images, StoredImages):
        yield images
        return
    for start in range(0, len(images), size):
        yield images[start : start + size]


@dataclass
class Facts:
    """What is known of decoded images, beside their pixels."""

    folder: str  # where the image files lie
    blended: int = 0  # number of images whose transparency was blended
    blank: int = 0  # number of those that are plain white then
    # Checksum of the images of each split, by keys such as "train images".
    sha256: dict[str, str] = field(default_factory=dict)


Decoded = tuple[Images, Facts]


def place_of(name: str, identity: Mapping[str, Any]) -> Path:
    """Returns the folder in the cache for images that `identity`, in values of JSON, decides."""
    document = json.dumps({"version": _VERSION, **identity}, sort_keys=True)
    return _folder() / f"{name}-{digest(document.encode())[:16]}"


def _folder() -> Path:
    return cache_folder() / "decoded"


def find(place: Path, shape: tuple[int, ...]) -> Decoded | None:
    """Returns the images that lie decoded in a folder; warns of damaged ones, which do not count.

    `shape` is the beginning (N, H, W) of theirs.
    """
    try:
        facts = Facts(**json.loads((place / FACTS).read_bytes()))
        images = StoredImages.open(place / IMAGES)
        if images.shape[:3] != shape:
            raise ValueError(f"shape {images.shape}")
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged bytes can make a parser raise anything
        logger.warning(f"{place} is damaged ({error}). The images are decoded anew.")
        return None
    return images, facts


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """Makes a folder for decoded images, and keeps other processes from decoding into it.

    Raises:
        DataError: The folder cannot be written.
    """
    with ExitStack() as stack:
        try:
            make_folder(place)
            try:
                stack.enter_context(file_lock(place / LOCK, timeout=0))
            except TimeoutError:
                logger.info(f"Waiting for another process, which decodes into {place}.")
                stack.enter_context(file_lock(place / LOCK, timeout=-1))
        except OSError as error:
            raise _no_room(place, f"{error.strerror or error} in {place}") from error
        sweep(place)
        yield


@contextmanager
def writing(place: Path, shape: tuple[int, ...], facts: Facts) -> Iterator[IO[bytes]]:
    """Yields a file for the pixels of images, which count as decoded when the block has ended.

    The block writes them in their order; `facts` are what is known of them when it ends.

    Raises:
        DataError: There is no room for them.
    """
    size, free = math.prod(shape), shutil.disk_usage(place).free
    needed = f"{shape[0]:,} images of {shape[1]}x{shape[2]}, {in_units(size)}"
    if size > free:
        raise _no_room(facts.folder, f"{in_units(free)} free in {place}", needed)
    logger.info(f"Decoding {needed}, once, into {place}. To remove what is decoded: {CLEAR}")
    header = {"descr": StoredImages.dtype.str, "fortran_order": False, "shape": shape}
    try:
        (place / FACTS).unlink(missing_ok=True)
        with atomic_writer(place / IMAGES) as file:
            np.lib.format.write_array_header_1_0(file, header)
            yield file
        write_json(place / FACTS, asdict(facts))
    except OSError as error:  # what reading the image files raises is a DataError
        raise _no_room(facts.folder, f"{error.strerror or error} in {place}", needed) from error


def _no_room(where: Path | str, received: str, needed: str = "images") -> DataError:
    return DataError(
        f"{where}: expected room in the cache for {needed}, decoded. Received: {received}. Give a "
        "smaller --image-size H,W, or another folder in the environment variable KERASNORM_CACHE."
    )


def describe() -> list[dict[str, Any]]:
    """Returns what is decoded in the cache, in values that JSON can hold.

    Returns:
        One entry per folder of decoded images: its `path`; `bytes` on disk; and the `folder` of
        the image files, None where they are not all decoded.
    """
    found = []
    for place in sorted(path for path in _folder().glob("*") if path.is_dir()):
        try:
            folder = json.loads((place / FACTS).read_bytes())["folder"]
        except (OSError, ValueError, KeyError, TypeError):
            folder = None
        size = sum(file.stat().st_size for file in place.iterdir())
        found.append({"path": str(place), "bytes": size, "folder": folder})
    return found


def clear() -> int:
    """Removes all decoded images that no process is just decoding; returns the bytes freed.

    Raises:
        DataError: They cannot be removed.
    """
    freed = 0
    for entry in describe():
        place = Path(entry["path"])
        try:
            with file_lock(place / LOCK, timeout=0):
                pass
            shutil.rmtree(place)
        except TimeoutError:
            logger.warning(f"{place} stays: a process is decoding into it.")
            continue
        except OSError as error:
            raise DataError(f"Cannot remove {place}: {error.strerror or error}.") from error
        freed += entry["bytes"]
    return freed


def in_units(size: int) -> str:
    """Returns a number of bytes in MB or GB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
