"""Reads image files: class folders of them, and single pictures for a model.

Pixels are taken as a viewer shows them: turned as their EXIF orientation says, and transparency
blended over white.
"""

import dataclasses
import errno
import functools
import hashlib
import logging
import math
import os
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from warnings import catch_warnings

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kerasnorm import runtime
from kerasnorm.config import DATA_FORMS
from kerasnorm.data import stored
from kerasnorm.data.dataset import (
    Dataset,
    Fit,
    Reader,
    Split,
    check,
    folder_name,
    parsing,
    unexpected,
)
from kerasnorm.data.stored import Decoded, Facts, StoredImages, select
from kerasnorm.errors import ConfigError, DataError, listed
from kerasnorm.progress import bar_of_notes, counted, duration

logger = logging.getLogger(__name__)

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by number of channels
# Pillow opens other formats too, some by starting programs.
_FORMATS = (
    "PNG", "JPEG", "TIFF", "WEBP", "AVIF", "BMP", "DIB", "GIF", "JPEG2000",
    "PPM", "TGA", "ICO", "PCX", "SGI", "PSD", "QOI",
)  # fmt: skip
_GRAY_MODES = frozenset({"1", "L", "LA"})
# Where there is no test folder, the images at place 4, 9, 14, … of their sorted class are the
# test set.
_TEST_EVERY = 5
_SPLITS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
_AHEAD = 4  # images per core that are decoded before they are asked for
_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir"})  # made by macOS and by network drives


@functools.cache
def _formats() -> tuple[str, ...]:
    """Returns the formats that this build of Pillow reads, of those that are read here."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@functools.cache
def _suffixes() -> frozenset[str]:
    """Returns the suffixes of the formats that are read, in lower case."""
    formats = {*_formats(), "MPO"}  # of phones; the reader of JPEG reads it
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in known if name in formats)


@dataclass
class _Folder:
    """What lies in a folder, in the order of the names."""

    path: Path
    images: list[Path] = field(default_factory=list)  # image files in it
    # Files of other kinds, and links to folders around it.
    others: list[Path] = field(default_factory=list)
    # Hidden files and folders, which are not looked into.
    hidden: list[Path] = field(default_factory=list)
    folders: list["_Folder"] = field(default_factory=list)  # the folders in it

    def tree(self) -> Iterator["_Folder"]:
        """Yields this folder and all folders in it."""
        yield self
        for folder in self.folders:
            yield from folder.tree()

    @functools.cached_property
    def all_images(self) -> list[Path]:
        """The image files in this folder and in all folders in it, in the order of the paths."""
        found = [*self.images, *(path for folder in self.folders for path in folder.all_images)]
        return sorted(found, key=lambda path: path.parts)

    @property
    def classes(self) -> list["_Folder"]:
        """The folders in it that hold images."""
        return [folder for folder in self.folders if folder.all_images]

    def seen(self) -> str:
        """Returns what lies in the folder and in those in it, in words."""
        found: Counter[str] = Counter()
        for folder in self.tree():
            found["image"] += len(folder.images)
            found.update(path.suffix.lower() or "file without suffix" for path in folder.others)
            found["hidden"] += len(folder.hidden)
        return listed(
            counted(count, kind) if kind == "image" else f"{count:,} {kind}"
            for kind, count in found.most_common()
            if count
        )


def _scan(path: Path, above: frozenset[Path] = frozenset()) -> _Folder:
    found, above = _Folder(path), above | {path.resolve()}
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            place = path / entry.name
            if entry.name.startswith(".") or entry.name in _SYSTEM_FOLDERS:
                found.hidden.append(place)
            elif (is_folder := _is_folder(entry)) and place.resolve() not in above:
                found.folders.append(_scan(place, above))
            elif place.suffix.lower() in _suffixes() and not is_folder:
                found.images.append(place)
            else:
                found.others.append(place)
    return found


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether an entry is a folder, or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False


def _report(root: _Folder, used: Iterable[Path]) -> None:
    """Logs what was passed over, one line per reason."""
    folders, used = [*root.tree()], {*used}
    hidden = [path for folder in folders for path in folder.hidden]
    others = [path for folder in folders for path in folder.others]
    kinds = Counter(path.suffix.lower() or "without suffix" for path in others)
    by_kind = listed(f"{count:,} {kind}" for kind, count in kinds.most_common())
    unused = [path for path in root.all_images if path not in used]
    for reason, paths in (
        ("hidden files and folders", hidden),
        (f"files that are no image of a format that is read ({by_kind})", others),
        ("images outside of the class folders", unused),
    ):
        if paths:
            example = paths[0].relative_to(root.path)
            logger.warning(f"{root.path}: passed over {reason}: {len(paths):,}, such as {example}.")


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Opens an image with 8 bits per channel; what Pillow only warns of as a bomb is an error."""
    expected = "an image that Pillow reads (PNG, JPEG, TIFF, WebP, …), of a usual size"
    with parsing(path, expected), Image.open(path, formats=_formats()) as image:
        size, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
        if limit is not None and size > limit:
            raise Image.DecompressionBombWarning(
                f"Image size ({size} pixels) exceeds limit of {limit} pixels, could be "
                "decompression bomb DOS attack."
            )
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            received = f"mode {image.mode}"
            raise unexpected(path, "8 bits per channel", received, "Convert it to 8 bits")
        yield image


def _upright(image: Image.Image) -> Image.Image:
    """Returns an image turned as its EXIF orientation says."""
    image.load()
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception as error:  # a viewer shows an image whose metadata are damaged
        if isinstance(error, MemoryError):  # the image was not turned
            raise
    return image


class _Shown(NamedTuple):
    """An image as a viewer shows it: gray (L) or RGB, and how its transparency was blended."""

    image: Image.Image
    is_blended: bool = False
    is_blank: bool = False


def _shown(image: Image.Image) -> _Shown:
    image = _upright(image)
    mode = "L" if image.mode in _GRAY_MODES else "RGB"
    if not image.has_transparency_data:
        return _Shown(image.convert(mode))
    layer = image.convert("RGBA")
    over = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert(mode)
    alpha = np.asarray(layer)[..., 3]
    is_blended = bool(alpha.min() < 255)
    return _Shown(
        over, is_blended, bool(is_blended and alpha.any() and np.asarray(over).min() == 255)
    )


def _fitted(image: Image.Image, fit: Fit) -> Image.Image:
    """Returns an image in a size, resized (bilinear) where it has another."""
    size, method = (fit.size[1], fit.size[0]), Image.Resampling.BILINEAR
    if image.size == size:
        return image
    if fit.resize == "crop":
        return ImageOps.fit(image, size, method)
    if fit.resize == "pad":
        return ImageOps.pad(image, size, method, color=0)
    return image.resize(size, method)


def fit_images(images: NDArray[np.uint8], fit: Fit) -> NDArray[np.uint8]:
    """Returns images (N, H, W, C) in a size, each channel resized as an image file would be."""
    if images.shape[1:3] == fit.size:
        return images
    resized = np.empty((len(images), *fit.size, images.shape[3]), np.uint8)
    for index, channel in np.ndindex(len(images), images.shape[3]):
        plane = Image.fromarray(images[index, ..., channel])
        resized[index, ..., channel] = np.asarray(_fitted(plane, fit))
    return resized


def read_picture(
    path: Path, image_shape: tuple[int, int, int], resize: str = "stretch"
) -> NDArray[np.uint8]:
    """Returns an image file as raw pixels (H, W, C), resized (bilinear) if it has another size.

    Images have 1 (gray), 3 (RGB) or 4 channels (RGBA). With less than 4, transparency is blended
    over white.

    Raises:
        DataError: The file is missing, damaged, too large, deeper than 8 bits or of another format.
        ConfigError: No picture has that many channels.
    """
    height, width, channels = image_shape
    if channels not in _MODES:
        raise ConfigError(
            f"Pictures have 1, 3 or 4 channels. Received: a model of {channels} channels"
        )
    with catch_warnings(action="ignore"), _opened(path) as image:
        shown = _Shown(_upright(image)) if channels == 4 else _shown(image)
        if shown.is_blended:
            logger.info(f"{path}: its transparency is blended over white.")
        pixels = _fitted(shown.image.convert(_MODES[channels]), Fit((height, width), resize))
        return np.asarray(pixels, np.uint8).reshape(image_shape)


def list_pictures(path: Path) -> list[Path]:
    """Returns the image files in a folder and in those in it, or the path itself if it is a file.

    Raises:
        DataError: There is no such path, or the folder holds no image.
    """
    if not path.exists():
        expected = "an image or a folder of images"
        raise unexpected(path, expected, "no such file or folder", "Check the path")
    if not path.is_dir():
        return [path]
    with parsing(path, "a folder that can be read"):
        found = _scan(path)
    if not found.all_images:
        raise unexpected(path, "images", found.seen(), "Convert them to PNG or JPEG")
    _report(found, found.all_images)
    return found.all_images


def describe(path: Path) -> tuple[str, str]:
    """Returns what a folder of another kind holds, in words, and what to do with it."""
    found = _scan(path)
    if found.all_images:
        return f"a folder of {found.seen()}", "Sort the images into one folder per class"
    return f"a folder of {found.seen()}", "Check the path"


def holds_class_folders(path: Path) -> bool:
    """Returns whether a path is a folder with folders in it, one of which holds an image."""
    return path.is_dir() and bool(_scan(path).classes)


def read_class_folders(folder: Path, fit: Fit | None = None) -> Dataset:
    """Returns the data set of DIR/train/<class>/* and DIR/test/<class>/*, or of DIR/<class>/*.

    Images of DIR/val (valid, validation) are the validation split, or the test set where there is
    no DIR/test. Where there is neither, every fifth image of each class, in the order of the paths,
    goes to the test set. Classes are numbered in the order of their names; the folders in a class
    folder belong to the class. Files that are no images, hidden files, and images outside of class
    folders are passed over, with a warning that counts them. Of an animation the first frame is
    read. Images stay gray if all of them are gray; else all become RGB. Transparency is blended
    over white. DIR is `folder` or lies in it. Without `fit` all images must have one size.

    Raises:
        DataError: There are no class folders, a class has no image, sizes differ, or an image is
            damaged, deeper than 8 bits or suspiciously large.
    """
    with parsing(folder, "a folder that can be read"):
        top = _scan(folder)
    root = _unwrapped(top)
    parts = _split_folders(root)
    classes = parts["train"].folders if parts else root.folders
    names = tuple(part.path.name for part in classes)
    for part in classes:
        if not part.all_images:
            received = f"empty class {part.path.name}, which holds {part.seen()}"
            advice = "Remove the folder, or convert its files to PNG or JPEG"
            raise unexpected(part.path, "at least one image in each class folder", received, advice)
    source, has_own_test = str(folder), "test" in parts
    files = {name: _list_images(part, names) for name, part in parts.items()}
    files = files or {"train": _labelled(classes)}
    if "test" not in files and (held := files.pop("validation", None)):
        files["test"] = held
        source += f" ({parts['validation'].path.name} taken as the test set)"
    elif "test" not in files:
        files["train"], files["test"] = _every_fifth(files["train"])
        source += " (every fifth image of a class held as the test set)"
    if root is not top or source != str(folder):
        logger.info(f"Reading {source}" + f" from {root.path}" * (root is not top) + ".")
    _report(top, (image.path for images in files.values() for image in images))
    images, facts = _decode(folder, files, fit)
    if facts.blended:
        logger.info(f"{folder}: blended the transparency of {facts.blended:,} images over white.")
    if facts.blank:
        blank = f"{facts.blank:,} images are plain white then: white on transparent"
        logger.warning(f"{folder}: {blank}.")
    splits, start = dict[str, Split](), 0
    for split, found in files.items():
        chosen = slice(start, start := start + len(found))
        labels = np.array([file.label for file in found], dtype=np.int32)
        paths = np.array([_name(file.path, folder) for file in found], dtype=np.object_)
        splits[split] = Split(select(images, chosen), labels, paths)
    train, test, validation = splits["train"], splits["test"], splits.get("validation")
    dataset = check(
        Dataset(folder_name(folder), source, names, train, test, validation, has_own_test)
    )
    if not isinstance(images, StoredImages):
        return dataset
    return dataclasses.replace(dataset, loaded=dataset.read_content(facts.sha256))


def _unwrapped(root: _Folder) -> _Folder:
    """Returns the folder that holds the classes or splits: not one that only wraps it."""
    holding = root.classes
    if len(holding) != 1:
        return root
    only = holding[0]
    is_split = any(_SPLITS.get(part.path.name.lower()) == "train" for part in only.classes)
    is_alone = len(root.folders) == 1 and (not only.images or len(only.classes) > 1)
    return _unwrapped(only) if only.classes and (is_split or is_alone) else root


def _split_folders(root: _Folder) -> dict[str, _Folder]:
    """Returns the folders of the splits by the splits' names, {} where `root` holds the classes.

    Raises:
        DataError: The names say splits, and the folders hold none; or both readings are possible.
    """
    found: dict[str, _Folder] = {}
    others: list[_Folder] = []
    expected = "split folders (train, test, val) of class folders, or class folders alone"
    for part in root.classes:
        name = _SPLITS.get(part.path.name.lower())
        if name is None:
            others.append(part)
        elif name in found:
            received = f"{found[name].path.name} and {part.path.name}, which mean the same"
            raise unexpected(root.path, expected, received, "Join them")
        else:
            found[name] = part

    train = found.get("train")
    classes = {part.path.name for part in train.classes} if train else set()

    def is_alike(part: _Folder) -> bool:
        return part is not train and any(inner.path.name in classes for inner in part.classes)

    if others and (not classes or any(map(is_alike, others))):
        return {}  # classes that happen to be called train or test
    if classes and (not others or any(map(is_alike, found.values()))):
        return {name: part for name, part in found.items() if part.classes}
    if not found:
        return {}
    if others:
        received = f"train with {listed(sorted(classes))}, beside "
        received += listed(part.path.name for part in others)
        raise unexpected(root.path, expected, received, "Move the folders of other data away")
    holds = "; ".join(f"{part.path.name} with {part.seen()}" for part in found.values())
    advice = "Sort the images of each into one folder per class"
    raise unexpected(root.path, expected, f"no class folders in train: {holds}", advice)


class _File(NamedTuple):
    """An image that is not decoded yet."""

    path: Path
    label: int


def _labelled(classes: list[_Folder]) -> list[_File]:
    """Returns the images of all classes, in the order of class and paths."""
    return [_File(path, n) for n, part in enumerate(classes) for path in part.all_images]


def _list_images(part: _Folder, names: tuple[str, ...]) -> list[_File]:
    """Returns the images of a split, whose classes are among `names`, or raises a DataError."""
    found = {inner.path.name: inner for inner in part.classes}
    if unknown := [name for name in found if name not in names]:
        expected = f"the classes of the training folder, {listed(names)}"
        raise unexpected(part.path, expected, listed(unknown), "Rename or remove them")
    return _labelled([found.get(name, _Folder(part.path / name)) for name in names])


def _every_fifth(images: list[_File]) -> tuple[list[_File], list[_File]]:
    """Splits images into training and test images by their place in their class."""
    splits: tuple[list[_File], list[_File]] = ([], [])
    places: Counter[int] = Counter()
    for image in images:
        splits[places[image.label] % _TEST_EVERY == _TEST_EVERY - 1].append(image)
        places[image.label] += 1
    return splits


def _decode(folder: Path, files: dict[str, list[_File]], fit: Fit | None) -> Decoded:
    """Returns the images of all splits, one split after the other, and what is known of them.

    Their shape is (N, H, W, 1), or (N, H, W, 3) if any has a color.
    """
    paths = [file.path for part in files.values() for file in part]
    with catch_warnings(action="ignore"):  # of all threads of the process
        size = fit.size if fit else _decoded(paths[0], None, "L").image.size[::-1]
        place = None
        if 3 * len(paths) * math.prod(size) >= stored.IN_MEMORY:
            place = stored.place_of(folder_name(folder), _identity(folder, files, fit))
            if found := stored.find(place, (len(paths), *size)):
                return found
        mode = "L" if all(map(_is_gray, paths)) else "RGB"
        shape = (len(paths), *size, len(mode))
        facts = Facts(str(folder.resolve()))
        with closing(_pixels(paths, fit, mode, facts)) as pixels:
            if place is None or math.prod(shape) < stored.IN_MEMORY:
                images = np.empty(shape, np.uint8)
                for image, planes in zip(images, pixels, strict=True):
                    image[...] = planes
                return images, facts
            with stored.locked(place):
                # Another process may have decoded them meanwhile.
                return stored.find(place, shape[:3]) or _store(place, shape, files, pixels, facts)


def _store(
    place: Path,
    shape: tuple[int, ...],
    files: dict[str, list[_File]],
    pixels: Iterator[NDArray[np.uint8]],
    facts: Facts,
) -> Decoded:
    begun = time.monotonic()
    with stored.writing(place, shape, facts) as file:
        for name, part in files.items():
            checksum = hashlib.sha256()
            for planes in islice(pixels, len(part)):
                file.write(planes.data)
                checksum.update(planes.data)
            facts.sha256[f"{name} images"] = checksum.hexdigest()
    seconds = time.monotonic() - begun
    logger.info(f"Decoded in {duration(seconds)}, {shape[0] / seconds:,.0f} images per second.")
    return StoredImages.open(place / stored.IMAGES), facts


def _identity(folder: Path, files: dict[str, list[_File]], fit: Fit | None) -> dict[str, Any]:
    """Returns what decides the pixels of all images, without reading the files.

    Tools that edit metadata and archives set the time of modification, and uncompressed images of
    one size have equal sizes: the time of the last change tells such files apart too.
    """

    def state(path: Path) -> tuple[str, int, int, int]:
        with parsing(path, "an image"):
            found = path.stat()
        return _name(path, folder), found.st_size, found.st_mtime_ns, found.st_ctime_ns

    states = {name: [state(file.path) for file in part] for name, part in files.items()}
    return {"pillow": PIL.__version__, "fit": fit, "files": states}


def _name(path: Path, folder: Path) -> str:
    """Returns the path of a file within a folder; `relative_to` takes twice as long and more."""
    return str(path).removeprefix(f"{folder}{os.sep}")


def _is_gray(path: Path) -> bool:
    """Returns whether an image has no color, by its header."""
    try:
        with _opened(path) as image:
            return image.mode in _GRAY_MODES
    except DataError:  # decoding says so, of the first such file
        return True


def _decoded(path: Path, fit: Fit | None, mode: str) -> _Shown:
    with _opened(path) as opened:
        shown = _shown(opened)
        image = _fitted(shown.image, fit) if fit else shown.image
        return shown._replace(image=image.convert(mode))


def _pixels(
    paths: list[Path], fit: Fit | None, mode: str, facts: Facts
) -> Generator[NDArray[np.uint8], None, None]:
    """Yields the pixels (H, W, C) of images in their order, decoded on all cores."""
    workers, size = runtime.cores(), None
    with ThreadPoolExecutor(workers) as pool, bar_of_notes("decoding", len(paths)) as advance:
        todo = iter(paths)

        def begun(count: int) -> Iterator[Future[_Shown]]:
            return (pool.submit(_decoded, path, fit, mode) for path in islice(todo, count))

        waiting = deque(begun(_AHEAD * workers))
        for done, path in enumerate(paths, 1):
            shown = waiting.popleft().result()
            waiting.extend(begun(1))
            size = size or shown.image.size
            if shown.image.size != size:
                sizes = ["x".join(map(str, pair)) for pair in (shown.image.size, size)]
                received = f"{sizes[0]} pixels, and {sizes[1]} in {paths[0]}"
                advice = "Give --image-size H,W, or --resize stretch for a trained model"
                raise unexpected(path, "all images of one size", received, advice)
            facts.blended += shown.is_blended
            facts.blank += shown.is_blank
            advance(done)
            yield np.atleast_3d(np.asarray(shown.image))


SOURCES = (
    Reader(DATA_FORMS["class folders"], holds_class_folders, read_class_folders, takes_fit=True),
)
