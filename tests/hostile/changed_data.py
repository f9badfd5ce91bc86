"""Folders of images that changed, moved, or have other classes than a model was trained on.

`write` makes the folder that a run is trained on. Each input changes it, or makes another one, and
returns the place that the user then names.
"""

import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

CLASSES = ("a b", "crème", "dog", "ear")
TRAIN, TEST = 5, 3  # images per class


class Input(NamedTuple):
    """One input.

    Attributes:
        name: What happened to the data.
        make: Changes the data set "d" in a folder; returns where the data are now.
        expected: Words of the refusal; empty where the data are the same.
    """

    name: str
    make: Callable[[Path], Path]
    expected: str


def write(
    place: Path, names: tuple[str, ...] = CLASSES, shape: tuple[int, ...] = (8, 8, 3)
) -> Path:
    """Writes class folders of PNG files, train and test, and returns their folder."""
    for half, count in (("train", TRAIN), ("test", TEST)):
        for label, name in enumerate(names):
            folder = place / half / name
            folder.mkdir(parents=True)
            rng = np.random.default_rng([label, count])
            for number in range(count):
                # Each class has a brightness of its own, so that it is easily learned.
                pixels = rng.integers(0, 60, shape, np.uint8) + np.uint8(60 * (label % 4))
                Image.fromarray(pixels.squeeze()).save(folder / f"{number}.png")
    return place


def _changed(change: Callable[[Path], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        change(folder / "d")
        return folder / "d"

    return make


def _rewritten(**options) -> Callable[[Path], Path]:
    def change(data: Path) -> None:
        shutil.rmtree(data)
        write(data, **options)

    return _changed(change)


def _swap_folders(data: Path) -> None:
    first, second = (data / "train" / name for name in CLASSES[2:])
    first.rename(data / "swap")
    second.rename(first)
    (data / "swap").rename(second)


def _change_pixel(data: Path) -> None:
    path = data / "train/dog/0.png"
    pixels = np.array(Image.open(path))
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(path)


def _rename_class(data: Path) -> None:
    for half in ("train", "test"):
        (data / half / "dog").rename(data / half / "wolf")


def _remove_class(data: Path) -> None:
    for half in ("train", "test"):
        shutil.rmtree(data / half / "ear")


def _add_class(data: Path) -> None:
    for half in ("train", "test"):
        shutil.copytree(data / half / "dog", data / half / "fox")


def _save_as_bmp(data: Path) -> None:
    for path in data.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()


def _age(data: Path) -> None:
    for path in data.rglob("*.png"):
        os.utime(path, (0, 0))


def _moved(to: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / to).parent.mkdir(parents=True, exist_ok=True)
        return (folder / "d").rename(folder / to)

    return make


def _spelled(text: str) -> Callable[[Path], Path]:
    # A Path would normalize the text away.
    return lambda folder: f"{folder}/{text}"  # type: ignore[return-value]


def _linked(folder: Path) -> Path:
    (folder / "link").symlink_to("d")
    return folder / "link"


def _copied(folder: Path) -> Path:
    return Path(shutil.copytree(folder / "d", folder / "copy"))


CHANGED = [
    Input(
        "image added",
        _changed(lambda d: shutil.copy(d / "train/dog/0.png", d / "train/dog/9.png")),
        "21 train images instead of 20",
    ),
    Input(
        "test image removed",
        _changed(lambda d: (d / "test/dog/0.png").unlink()),
        "11 test images instead of 12",
    ),
    Input(
        "image moved to another class",
        _changed(lambda d: (d / "train/dog/0.png").rename(d / "train/ear/9.png")),
        "other numbers of train images per class",
    ),
    Input("class folders swapped", _changed(_swap_folders), "other train images"),
    Input("one pixel changed", _changed(_change_pixel), "other train images"),
    Input(
        "order of files changed",
        _changed(lambda d: (d / "test/dog/0.png").rename(d / "test/dog/9.png")),
        "other test images",
    ),
    Input(
        "class renamed",
        _changed(_rename_class),
        "the classes a b, crème, ear, wolf instead of a b, crème, dog, ear",
    ),
    Input("class added", _changed(_add_class), "the classes a b, crème, dog, ear, fox instead"),
    Input("class removed", _changed(_remove_class), "the classes a b, crème, dog instead"),
    Input("larger images", _rewritten(shape=(9, 8, 3)), "images of shape (9, 8, 3) instead of (8"),
    Input("gray images", _rewritten(shape=(8, 8, 1)), "images of shape (8, 8, 1) instead of (8"),
]
SAME = [
    Input("folder moved", _moved("e"), ""),
    Input("folder moved to a name with spaces", _moved("my data/new one"), ""),
    Input("folder moved to a name of markup", _moved("$x^2$ [é] 'q'"), ""),
    Input("folder copied", _copied, ""),
    Input("linked", _linked, ""),
    Input("spelled with a slash at its end", _spelled("d/"), ""),
    Input("spelled with dots", _spelled("./d/../d/."), ""),
    Input("saved in another format", _changed(_save_as_bmp), ""),
    Input("times of files changed", _changed(_age), ""),
    Input(
        "hidden file added", _changed(lambda d: (d / "train/dog/.DS_Store").write_bytes(b"x")), ""
    ),
]


def _classes(*names: str) -> Callable[[Path], Path]:
    return lambda folder: write(folder / "other", names)


# Other folders, on which a model of `CLASSES` is to be evaluated.
CLASS_NAMES = [
    Input("same names", _classes(*CLASSES), ""),
    Input(
        "names with combining characters",
        _classes(*(unicodedata.normalize("NFD", name) for name in CLASSES)),
        "",
    ),
    Input("a name with a number before it", _classes("0 a b", *CLASSES[1:]), "in the data: 0 a b"),
    Input("a name in capitals", _classes("a b", "crème", "Dog", "ear"), "in the model: dog;"),
    Input("one class less", _classes(*CLASSES[:3]), "with 3 classes"),
    Input("one class more", _classes(*CLASSES, "fox"), "in the data: fox"),
    Input("a twin of each class", _classes(*CLASSES, *map(str.upper, CLASSES)), "with 8 classes"),
]
INPUTS = [*CHANGED, *SAME, *CLASS_NAMES]
