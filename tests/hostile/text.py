"""Names, files, caches and variables that people really have.

Each entry of `INPUTS` is a name, a function that makes the input in an empty folder, and what must
happen. What the function returns depends on the list that the entry is from.
"""

import codecs
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class Accepted(NamedTuple):
    """All goes well, with these texts among the warnings."""

    notes: tuple[str, ...] = ()


class Refused(NamedTuple):
    """An error with this exit code and these texts in its message."""

    code: int
    texts: tuple[str, ...]


def undecoded(name: bytes) -> str:
    """A file's name as Python shows bytes that are not UTF-8."""
    return name.decode("utf-8", "surrogateescape")


def class_folder(name: str) -> Callable[[Path], Path]:
    """A folder of a class with five tiny images, in a data set that may hold other classes."""

    def make(data: Path) -> Path:
        pixels = np.random.Generator(np.random.PCG64([0])).integers(0, 256, (5, 6, 6, 3), np.uint8)
        (data / name).mkdir(parents=True)
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(data / name / f"{number}.png")
        return data

    return make


def place(name: str) -> Callable[[Path], Path]:
    """A folder that holds a data set, and will hold a run."""

    def make(folder: Path) -> Path:
        for one in ("cat", "dog"):
            class_folder(one)(folder / name / "data")
        return folder / name

    return make


def beside(name: str, content: bytes | None = b"") -> Callable[[Path], Path]:
    """A folder for a run that holds one file, or one folder where there is no content."""

    def make(folder: Path) -> Path:
        if content is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(content)
        return folder

    return make


def config(content: bytes) -> Callable[[Path], Path]:
    """A config file that sets the seed to 3."""

    def make(folder: Path) -> Path:
        (folder / "config.toml").write_bytes(content)
        return folder / "config.toml"

    return make


def cached(name: str, content: bytes | None) -> Callable[[Path], Path]:
    """A cache that holds one file, or one folder where there is no content."""

    def make(folder: Path) -> Path:
        (folder / "cache" / name).parent.mkdir(parents=True)
        return beside(name, content)(folder / "cache")

    return make


def unfinished_archive() -> bytes:
    """The beginning of a CIFAR-10 archive, as an interrupted download leaves it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.size = 10_000
        tar.addfile(member, io.BytesIO(np.random.default_rng(0).bytes(member.size)))
    return file.getvalue()[:-100]


def file_as_cache(folder: Path) -> Path:
    (folder / "cache").write_bytes(b"")
    return folder / "cache"


def variables(**environment: str) -> Callable[[Path], dict[str, str]]:
    return lambda _: environment


NAMES = {
    "mathematics": "$a$",
    "a dollar": "5$ or less",
    "broken mathematics": r"$\frac{$",
    "subscript and brace": "a_b^{c",
    "rich's markup": "[red]x[b]",
    "an emoji code": ":car:",
    "HTML": "<b>&amp;",
    "a template": "{{ 1 }} {% x %}",
    "a comma and quotes": 'a, "b"',
    "a formula": "=1+1",
    "an option": "--help",
    "two lines": "a\nb",
    "Japanese": "日本語",
    "Arabic": "عربي",
    "an emoji": "😀",
    "a combining accent": "e\u0301",
}
ODD_PLACES = ("$x$", "my run", "日本", undecoded(b"a\xff"), "100%d")
TOML = "# 日本語\n[train]\nseed = 3\n"
FALLS_BACK = "taking the generated data set shapes"
PASSED_OVER = Accepted(("is passed over", FALLS_BACK))
NO_USER = Refused(6, ("other files",))
PY = "cifar-10-batches-py"

CLASSES = [
    *((f"class named by {what}", class_folder(name), Accepted()) for what, name in NAMES.items()),
    (
        "class named by bytes that are not UTF-8",
        class_folder(undecoded(b"caf\xe9")),
        Refused(3, ("expected class names in UTF-8", "caf", "Rename")),
    ),
]
PLACES = [(f"data and run in a folder {name!a}", place(name), Accepted()) for name in ODD_PLACES]
FOLDERS = [
    ("--out with .gitkeep", beside(".gitkeep"), Accepted()),
    ("--out with .gitignore", beside(".gitignore", b"*"), Accepted()),
    ("--out with .DS_Store", beside(".DS_Store", b"\0"), Accepted()),
    ("--out with NFS's deleted file", beside(".nfs000012", b"x"), Accepted()),
    ("--out with a queue's log", beside("slurm-7.out", b"x"), Accepted()),
    ("--out with a log", beside("train.log", b"x"), Accepted()),
    ("--out at a volume's root", beside("lost+found", None), Accepted()),
    ("--out with someone's text", beside("thesis.tex", b"x"), NO_USER),
    ("--out with someone's empty file", beside("thesis.tex"), NO_USER),
    ("--out in a repository", beside(".git", None), NO_USER),
    ("--out with a folder named as a log", beside("a.log", None), NO_USER),
]
CONFIGS = [
    ("config with a byte order mark", config(codecs.BOM_UTF8 + TOML.encode()), Accepted()),
    ("config in UTF-16", config(TOML.encode("utf-16")), Accepted()),
    ("config with Windows lines", config(TOML.replace("\n", "\r\n").encode()), Accepted()),
    ("half a config in UTF-16", config(TOML.encode("utf-16")[:-1]), Refused(2, ("valid TOML",))),
]
CACHES = [
    ("empty folder in the cache", cached(PY, None), PASSED_OVER),
    ("folder without data in the cache", cached(f"{PY}/readme.html", b"x"), PASSED_OVER),
    ("one of seven files in the cache", cached(f"{PY}/test_batch", b"x"), PASSED_OVER),
    (
        "interrupted download in the cache",
        cached("cifar-10-python.tar.gz", unfinished_archive()),
        PASSED_OVER,
    ),
    ("empty download in the cache", cached("cifar-10-python.tar.gz", b""), PASSED_OVER),
    ("login page in the cache", cached("cifar-10-python.tar.gz", b"<html>Log in"), PASSED_OVER),
    ("file where the cache should be", file_as_cache, Accepted((FALLS_BACK,))),
]
VARIABLES = [
    (
        "misspelt variable",
        variables(KERASNORM_EPOCH="7"),
        Accepted(("KERASNORM_EPOCH has no meaning here. Did you mean KERASNORM_EPOCHS?",)),
    ),
    (
        "variable of an earlier name",
        variables(KERASNORM_TREATMENT="none"),
        Accepted(("Did you mean KERASNORM_PREPROCESSING?",)),
    ),
    ("variable of nothing", variables(KERASNORM_XQZ="1"), Accepted(("KERASNORM_XQZ has no",))),
    ("variables that have a meaning", variables(KERASNORM_SEED="3", KERASNORM_CACHE="c"),
     Accepted()),
]  # fmt: skip
INPUTS = [*CLASSES, *PLACES, *FOLDERS, *CONFIGS, *CACHES, *VARIABLES]
