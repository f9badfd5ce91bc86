"""Folders, arrays and files given as `--data`: what is read of each, or how it is refused.

Each entry of `INPUTS` is a name, a function that makes the input in an empty folder and returns
what to give as `--data`, and what must happen.
"""

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, features


class Read(NamedTuple):
    """The data are read.

    Attributes:
        train: Images of the training set by class.
        test: Images of the test set by class.
        validation: Images of the validation split by class; None where there is none.
        notes: Texts that stand on stderr.
        shape: Shape of an image.
    """

    train: dict[str, int]
    test: dict[str, int]
    validation: dict[str, int] | None = None
    notes: tuple[str, ...] = ()
    shape: tuple[int, int, int] = (5, 6, 3)


class Refused(NamedTuple):
    """The data are refused, with exit code 3 and a message that holds these texts."""

    texts: tuple[str, ...]


def picture(path: Path, color: object = (10, 20, 30), mode: str = "RGB", size=(6, 5), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)
    return path


def classes(folder: Path, *names: str, count: int = 5) -> Path:
    for name in names:
        for number in range(count):
            picture(folder / name / f"{number}.png", (number, 100, 200))
    return folder


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


FLAT = Read({"cat": 4, "dog": 4}, {"cat": 1, "dog": 1})
SPLIT = Read({"cat": 5, "dog": 5}, {"cat": 5, "dog": 5})
MANY = ["tif", "tiff", "jfif", "jpe", "jpeg", "webp", "bmp", "gif", "ppm", "tga"]
MANY += ["jp2"] * features.check("jpg_2000") + ["avif"] * features.check("avif")


def beside(name: str, content: bytes | None = None, color: object = (1, 2, 3)):
    """Class folders with one more file in `cat`: an image by its suffix, or the content."""

    def make(folder: Path) -> Path:
        classes(folder, "cat", "dog")
        path = folder / "cat" / name
        touch(path, content) if content is not None else picture(path, color)
        return folder

    return make


def splits(*names: str, inside: str = ""):
    def make(folder: Path) -> Path:
        for name in names:
            classes(folder / inside / name, "cat", "dog")
        return folder

    return make


def with_files(make: Callable[[Path], Path], *names: str):
    """An input with more files, which hold a letter, or an image where the suffix is .png."""

    def made(folder: Path) -> Path:
        for name in names:
            picture(folder / name) if name.endswith(".png") else touch(folder / name)
        return make(folder)

    return made


def nested(folder: Path) -> Path:
    for name in ("cat", "dog"):
        classes(folder / name, "day", "night")
    return folder


def linked_around(folder: Path) -> Path:
    (classes(folder, "cat", "dog") / "cat" / "loop").symlink_to(folder, target_is_directory=True)
    return folder


def linked_classes(folder: Path) -> Path:
    classes(folder / "store", "cat", "dog")
    (folder / "data").mkdir()
    for name in ("cat", "dog"):
        (folder / "data" / name).symlink_to(folder / "store" / name, target_is_directory=True)
    return folder / "data"


def links_in_a_circle(*names: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        classes(folder, "cat", "dog")
        for name, other in zip(names, (*names[1:], names[0]), strict=True):
            (folder / "cat" / name).symlink_to(folder / "cat" / other)
        return folder

    return make


def broken_link(folder: Path) -> Path:
    (classes(folder, "cat", "dog") / "cat" / "x.png").symlink_to(folder / "nowhere.png")
    return folder


def named_train_and_test(folder: Path) -> Path:
    return classes(folder, "bus", "car", "train", "test")


def classes_of_folders_named_train(folder: Path) -> Path:
    for name in ("bus", "train"):
        classes(folder / name, "day", "night")
    return folder


def beside_splits(folder: Path) -> Path:
    classes(folder / "backup", "old")
    return splits("train", "test")(folder)


def train_beside_another(folder: Path) -> Path:
    classes(folder, "extra")
    return splits("train")(folder)


def unlabelled_test(folder: Path) -> Path:
    for number in range(3):
        picture(folder / "test" / f"{number}.png")
    return splits("train")(folder)


def unlabelled(folder: Path) -> Path:
    for name in ("train", "test"):
        picture(folder / name / "cat.0.png")
    return folder


def loose(folder: Path) -> Path:
    for number in range(12):
        picture(folder / f"{number}.png")
    return folder


def unknown_class(folder: Path) -> Path:
    classes(folder / "train", "cat", "dog")
    classes(folder / "val", "cat", "cow")
    return classes(folder / "test", "cat", "dog").parent


def mixed_sizes(folder: Path) -> Path:
    picture(classes(folder, "cat", "dog") / "cat" / "x.png", size=(7, 5))
    return folder


def turned(folder: Path) -> Path:
    """Portraits that a camera stored lying on their side, beside upright ones."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("cat", "dog"):
        for number in range(5):
            size = (6, 5) if number % 2 else (5, 6)
            options = {} if number % 2 else {"exif": exif}
            picture(folder / name / f"{number}.jpg", size=size, **options)
    return folder


def icons(folder: Path) -> Path:
    """White drawings on nothing, of which white paper would leave nothing."""
    for number in range(5):
        picture(folder / "cat" / f"{number}.png", (255, 255, 255, 90), "RGBA")
        picture(folder / "dog" / f"{number}.png", (9, 9, 9, 90), "RGBA")
    return folder


def masks(folder: Path) -> Path:
    for name in ("cat", "dog"):
        for number in range(5):
            picture(folder / name / f"{number}.png", number % 2, "L")
    return folder


def deep(folder: Path) -> Path:
    picture(classes(folder, "cat", "dog") / "cat" / "x.png", 3000, "I;16")
    return folder


def arrays(name: str = "data.npz", without: tuple[str, ...] = (), **changes: object):
    """An `.npz` file of 6 training images of 3 classes and 3 test images."""

    def make(folder: Path) -> Path:
        rng = np.random.Generator(np.random.PCG64([0]))
        found = {
            "x_train": rng.integers(0, 256, (6, 5, 6, 3), np.uint8),
            "y_train": np.arange(6) % 3,
            "x_test": rng.integers(0, 256, (3, 5, 6, 3), np.uint8),
            "y_test": np.arange(3),
        }
        kept = {key: value for key, value in (found | changes).items() if key not in without}
        with (folder / name).open("wb") as file:
            np.savez(file, **kept)
        return folder / name

    return make


def file(name: str, content: bytes = b"x"):
    return lambda folder: touch(folder / name, content)


def one_array(folder: Path) -> Path:
    np.save(folder / "x.npy", np.zeros((3, 5, 6, 3), np.uint8))
    return folder / "x.npy"


def pickled(folder: Path) -> Path:
    return touch(folder / "data.pkl", pickle.dumps({"x": [1]}))


def zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "pets.zip", "w") as archive:
        for number in range(2000):
            archive.writestr(f"pets/cat/{number}.png", b"x")
    return folder / "pets.zip"


def cifar(*names: str):
    """A folder around official folders of tiny binary CIFAR-10 and pickled CIFAR-100."""

    def make(folder: Path) -> Path:
        if "cifar-10-batches-bin" in names:
            inside = folder / "cifar-10-batches-bin"
            records = b"".join(bytes([label]) + bytes(range(256)) * 12 for label in (0, 1))
            touch(inside / "batches.meta.txt", b"cat\ndog\n")
            for name in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"):
                touch(inside / name, records)
        if "cifar-100-python" in names:
            touch(folder / "cifar-100-python" / "meta")
        return folder

    return make


def idx(folder: Path) -> Path:
    for half in ("train", "t10k"):
        pixels = bytes(range(60))
        head = struct.pack(">4B3I", 0, 0, 8, 3, 2, 5, 6)
        touch(folder / f"{half}-images-idx3-ubyte", head + pixels)
        touch(folder / f"{half}-labels-idx1-ubyte", struct.pack(">4BI2B", 0, 0, 8, 1, 2, 0, 1))
    return folder


NUMBERS = Read({"0": 2, "1": 2, "2": 2}, {"0": 1, "1": 1, "2": 1})
PLANES = np.zeros((6, 3, 8, 9), np.uint8)
SOUND = np.arange(6 * 5 * 6 * 3, dtype=np.uint8).reshape(6, 5, 6, 3)
FORMS = ("DIR/train/CLASS", "x_train", "cifar-10-batches-py", "IDX files")
VALIDATED = SPLIT._replace(validation={"cat": 5, "dog": 5})
HELD_OUT = Read({"cat": 4, "dog": 4}, {"cat": 1, "dog": 1}, notes=("every fifth image",))

INPUTS: list[tuple[str, Callable[[Path], Path], Read | Refused]] = [
    ("flat", lambda folder: classes(folder, "cat", "dog"), HELD_OUT),
    *[
        # Sorted by name it is the sixth image, which stays in the training set.
        (f"a .{suffix} beside PNGs", beside(f"x.{suffix}"),
         Read({"cat": 5, "dog": 4}, {"cat": 1, "dog": 1}))
        for suffix in (*MANY, "TIF")
    ],
    ("a .heic beside PNGs", beside("x.heic", b"ftypheic"),
     FLAT._replace(notes=("passed over files that are no image of a format that is read ",
                          "(1 .heic): 1, such as cat/x.heic"))),
    ("notes and tables", with_files(beside("a.txt", b"x"), "labels.csv", "dog/b.txt"),
     FLAT._replace(notes=("(2 .txt, 1 .csv): 3, such as ",))),
    ("hidden files", with_files(beside(".DS_Store", b"x"), "dog/._1.png", "__MACOSX/cat/._1.png"),
     FLAT._replace(notes=("passed over hidden files and folders: 3, such as ",))),
    ("nested folders", nested, Read({"cat": 8, "dog": 8}, {"cat": 2, "dog": 2})),
    ("a link to the folder around", linked_around, FLAT._replace(notes=("such as cat/loop",))),
    ("a link to itself", links_in_a_circle("o"), FLAT._replace(notes=("such as cat/o",))),
    ("links to each other", links_in_a_circle("a", "b"), FLAT._replace(notes=("): 2, such",))),
    ("a link to itself as image", links_in_a_circle("x.png"), Refused(("x.png", "symbolic links"))),
    ("links as class folders", linked_classes, FLAT),
    ("a broken link", broken_link, Refused(("x.png", "no such file"))),
    ("train and test", splits("train", "test"), SPLIT),
    ("Training and Testing", splits("Training", "Testing"), SPLIT),
    *[
        (f"train, {name} and test", splits("train", name, "test"), VALIDATED)
        for name in ("val", "valid", "validation")
    ],
    ("train and val alone", splits("train", "val"),
     SPLIT._replace(notes=("val taken as the test set",))),
    ("train alone", splits("train"), HELD_OUT),
    ("train and an empty test", with_files(splits("train"), "test/.keep"), HELD_OUT),
    ("val and valid", splits("train", "val", "valid"), Refused(("mean the same",))),
    ("test and val without train", splits("test", "val"), Refused(("split folders (train",))),
    ("splits in a wrapper", splits("train", "test", inside="data/v1"), SPLIT),
    ("splits in a wrapper beside notes",
     with_files(splits("train", "test", inside="data"), "docs/a.txt"), SPLIT),
    ("classes in a wrapper", lambda folder: classes(folder / "pets", "cat", "dog").parent, FLAT),
    ("a wrapper with a cover picture",
     with_files(splits("train", "test", inside="data"), "cover.png", "data/cover.png"),
     SPLIT._replace(notes=("images outside of the class folders: 2, such as cover.png",))),
    ("classes named train and test", named_train_and_test,
     Read(dict.fromkeys(["bus", "car", "test", "train"], 4),
          dict.fromkeys(["bus", "car", "test", "train"], 1))),
    ("a class train with folders", classes_of_folders_named_train,
     Read({"bus": 8, "train": 8}, {"bus": 2, "train": 2})),
    ("other images beside the splits", beside_splits,
     SPLIT._replace(notes=("images outside of the class folders: 5, such as backup/old/0.png",))),
    ("train beside one other folder", train_beside_another,
     Refused(("train with cat, dog, beside extra", "Move the folders"))),
    ("a test set without labels", unlabelled_test,
     HELD_OUT._replace(notes=("outside of the class folders: 3, such as test/0.png",))),
    ("train and test without classes", unlabelled, Refused(("no class folders in train",))),
    ("images without class folders", loose, Refused(("12 image", "one folder per class", *FORMS))),
    ("an empty folder", lambda folder: folder, Refused(("a folder of none", *FORMS))),
    ("an empty class",
     with_files(lambda folder: classes(folder, "cat", "dog"), "cow/1.heic", "cow/2.heic", "cow/.x"),
     Refused(("empty class cow", "2 .heic", "1 hidden"))),
    ("a class of the validation split alone", unknown_class, Refused(("val", "cow"))),
    ("images of mixed sizes", mixed_sizes, Refused(("x.png", "7x5", "--image-size H,W"))),
    ("photos turned by EXIF", turned, FLAT),
    ("white icons on nothing", icons, FLAT._replace(
        notes=("blended the transparency of 10 images over white", "5 images are plain white"))),
    ("masks of 0 and 1", masks, Refused(("0 and 1 only", "Multiply them by 255"))),
    ("16 bits per channel", deep, Refused(("8 bits per channel",))),
    ("an image that is text", beside("x.png", b"404 not found"), Refused(("x.png", "damaged"))),
    ("too few images for a test set", lambda folder: classes(folder, "cat", "dog", count=3),
     Refused(("no class has five images", "a test folder"))),
    ("x_val in an .npz", arrays(x_val=SOUND, y_val=np.arange(6) % 3),
     NUMBERS._replace(validation={"0": 2, "1": 2, "2": 2})),
    ("x_val alone in an .npz",
     arrays(without=("x_test", "y_test"), x_val=SOUND, y_val=np.arange(6) % 3),
     NUMBERS._replace(test={"0": 2, "1": 2, "2": 2}, notes=("x_val and y_val are the test set",))),
    ("x_val without y_val", arrays(x_val=SOUND), Refused(("Save y_val too",))),
    ("other arrays in an .npz", arrays(names=np.arange(3), ids=np.arange(6)),
     NUMBERS._replace(notes=("passed over other arrays: names, ids",))),
    ("a thousand arrays in an .npz",
     arrays(without=("x_test",), **{f"a{n}": np.zeros(1) for n in range(1000)}),
     Refused(("and 998 more", "Save x_test too"))),
    ("whole labels as floats", arrays(y_train=np.arange(6) % 3 / 1.0),
     Refused(("type float64", 'y.astype("int64")'))),
    ("measured labels", arrays(y_train=np.arange(6) / 4), Refused(("type float64", "whole"))),
    ("labels as text", arrays(y_train=np.array(["cat", "dog"] * 3)),
     Refused(("type <U3", "np.unique(y, return_inverse=True)[1]"))),
    ("labels as truth values", arrays(y_train=np.arange(6) > 2),
     Refused(("type bool", 'y.astype("int64")'))),
    ("one-hot labels", arrays(y_train=np.eye(3)[np.arange(6) % 3]), Refused(("y.argmax(axis=1)",))),
    ("labels as objects", arrays(y_train=np.array([None] * 6)),
     Refused(("y_train", "objects of Python", "save whole numbers"))),
    ("images as objects", arrays(x_train=np.array([None] * 6)),
     Refused(("x_train", "np.stack(list(x))"))),
    ("channels first", arrays(x_train=PLANES),
     Refused(("channels first", "transpose(0, 2, 3, 1)"))),
    ("four channels first", arrays(x_train=np.zeros((6, 4, 8, 9), np.uint8)),
     Refused(("channels first",))),
    ("images last", arrays(x_train=np.zeros((8, 8, 3, 60), np.uint8)),
     Refused(("images last", "transpose(3, 0, 1, 2)"))),
    ("arrays of 0 and 1", arrays(x_train=(SOUND > 90).astype(np.uint8)),
     Refused(("0 and 1 only in the train set", "Multiply them by 255"))),
    ("test arrays of 0 and 1", arrays(x_test=(SOUND[:3] > 90).astype(np.uint8)),
     Refused(("0 and 1 only in the test set", "Multiply them by 255"))),
    ("validation arrays of 0 and 1",
     arrays(x_val=(SOUND[:3] > 90).astype(np.uint8), y_val=np.arange(3)),
     Refused(("0 and 1 only in the validation set", "Multiply them by 255"))),
    ("an .npz called data", arrays("data"), NUMBERS),
    ("one .npy", one_array, Refused(("(.npy)", "np.savez", *FORMS))),
    ("a .pkl", pickled, Refused(("(.pkl)", "can run code", "np.savez", *FORMS))),
    ("a .zip of images", zipped, Refused(("(.zip)", "Unpack it", *FORMS))),
    ("a table", file("labels.csv"), Refused(("(.csv)", "one folder per class", *FORMS))),
    ("one image", lambda folder: picture(folder / "cat.png"),
     Refused(("(.png)", "holds the class folders", *FORMS))),
    ("a model", file("model.keras"), Refused(("This is a model", *FORMS))),
    ("a file without suffix", file("data"), Refused(("without suffix", *FORMS))),
    ("no such path", lambda folder: folder / "nothing", Refused(("no such file", *FORMS))),
    ("a path of 5000 letters", lambda folder: Path("x" * 5000), Refused(("Received",))),
    ("the folder around CIFAR-10", cifar("cifar-10-batches-bin"),
     Read({"cat": 5, "dog": 5}, {"cat": 1, "dog": 1}, shape=(32, 32, 3))),
    ("the folder around two CIFARs", cifar("cifar-10-batches-bin", "cifar-100-python"),
     Refused(("cifar-10-batches-bin and cifar-100-python", "Give one of the two"))),
    ("IDX files unzipped", idx, Read({"0": 1, "1": 1}, {"0": 1, "1": 1}, shape=(5, 6, 1))),
]  # fmt: skip

if os.name == "posix" and os.geteuid() != 0:  # root reads everything

    def locked(folder: Path) -> Path:
        (classes(folder, "cat", "dog") / "cat").chmod(0)
        return folder

    INPUTS.append(
        ("a class that may not be read", locked, Refused(("cat: expected", "no permission")))
    )
