"""The official CIFAR layouts, in folders and archives: sound, incomplete, damaged and hostile."""

import gzip
import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kerasnorm.data import cifar
from kerasnorm.data.cifar import LAYOUTS
from kerasnorm.data.sources import read
from kerasnorm.errors import DataError

NAMES = ["cat", "dog", "horse", "truck"]
PY, BIN, HUNDRED = LAYOUTS


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed]))


def batch_images(number: int) -> np.ndarray:
    """Four images, one of each class, (N, H, W, C), different in each batch."""
    return rng(number).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)


def official_files(layout: cifar.Layout) -> dict[str, bytes]:
    """The files of a tiny data set in an official layout: name → content."""
    files = {}
    for number, name in enumerate([*layout.train, layout.test]):
        rows = batch_images(number).transpose(0, 3, 1, 2).reshape(4, 3072)
        if layout is BIN:
            labels = np.arange(4, dtype=np.uint8)[:, None]
            files[name] = np.hstack([labels, rows]).tobytes()
        else:
            key = b"labels" if layout is PY else b"fine_labels"
            document = {b"data": rows, key: [0, 1, 2, 3], b"filenames": [b"a", b"", b"c", b"d"]}
            files[name] = pickle.dumps(document, 2)
    if layout is BIN:
        files[layout.names] = ("\n".join(NAMES) + "\n\n").encode()
    else:
        key = b"label_names" if layout is PY else b"fine_label_names"
        files[layout.names] = pickle.dumps({key: [name.encode() for name in NAMES]}, 2)
    return files


# Lists of lists, small in a pickle, 4 ** 30 elements when unfolded.
LAUGHS: list = []
for _ in range(30):
    LAUGHS = [LAUGHS] * 4


def write_folder(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def in_folder(layout: cifar.Layout, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{layout.folder}/{name}": content for name, content in files.items()}


def expect_tiny(path: Path, layout: cifar.Layout) -> None:
    dataset = read(path)
    batches = len(layout.train)
    assert dataset.name == layout.name
    assert dataset.source == str(path)
    assert dataset.class_names == tuple(NAMES)
    expected = np.concatenate([batch_images(number) for number in range(batches)])
    assert np.array_equal(dataset.train.images, expected)
    assert np.array_equal(dataset.train.labels, list(range(4)) * batches)
    assert np.array_equal(dataset.test.images, batch_images(batches))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.folder)
def test_official_folders(layout: cifar.Layout, tmp_path: Path) -> None:
    expect_tiny(write_folder(tmp_path / "any name", official_files(layout)), layout)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.folder)
def test_official_archives(layout: cifar.Layout, mode: str, tmp_path: Path) -> None:
    files = {"readme.html": b"hello"} | in_folder(layout, official_files(layout))
    expect_tiny(write_tar(tmp_path / "archive", files, mode), layout)
    assert list(tmp_path.iterdir()) == [tmp_path / "archive"]


def test_an_archive_may_start_its_members_with_a_dot(tmp_path: Path) -> None:
    files = {f"./{name}": c for name, c in in_folder(PY, official_files(PY)).items()}
    expect_tiny(write_tar(tmp_path / "a.tar.gz", files), PY)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.folder)
def test_each_missing_file_is_named(layout: cifar.Layout, tmp_path: Path) -> None:
    for number, missing in enumerate(layout.files):
        files = {n: c for n, c in official_files(layout).items() if n != missing}
        folder = write_folder(tmp_path / f"folder{number}", files)
        with pytest.raises(DataError, match=f"{missing}: expected .* Received: no such file"):
            read(folder)
        archive = write_tar(tmp_path / f"{number}.tar", in_folder(layout, files), "w")
        with pytest.raises(DataError, match=f"Received: none, or an empty one, of {missing}"):
            read(archive)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.folder)
def test_each_truncated_file_is_named(layout: cifar.Layout, tmp_path: Path) -> None:
    for number, name in enumerate([*layout.train, layout.test]):
        files = official_files(layout)
        files[name] = files[name][: len(files[name]) // 2 + 7]
        folder = write_folder(tmp_path / f"folder{number}", files)
        with pytest.raises(DataError, match=rf"{name}: expected .* Received: .*truncated"):
            read(folder)


def test_another_layout_under_this_name(tmp_path: Path) -> None:
    files = official_files(PY) | {"data_batch_2": official_files(HUNDRED)["train"]}
    message = r"data_batch_2: expected the key 'labels'\. Received: the keys data, filenames, fine"
    with pytest.raises(DataError, match=message):
        read(write_folder(tmp_path / "mixed", files))


@pytest.mark.parametrize(
    "batch",
    [
        {"data": np.zeros((4, 3071), np.uint8), "labels": [0, 1, 2, 3]},
        {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2]},
        {"data": np.zeros((4, 3072), np.float32), "labels": [0, 1, 2, 3]},
        {"data": [1, 2], "labels": [0, 1]},
        {"data": np.zeros((4, 3072), np.uint8), "labels": 4},
        {"data": np.zeros((4, 3072), np.uint8), "labels": ["a", "b", "c", "d"]},
        {"data": np.zeros((4, 3072), np.uint8), "labels": [[0], [1, 2], [3], [4]]},
        {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 2**70]},
        {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, 1.5]},
        {"data": np.zeros((4, 3072), np.uint8), "labels": LAUGHS},
        {"data": np.zeros((4, 3072), np.uint8), "labels": [0, 1, 2, -1]},
    ],
)
def test_a_batch_of_other_content(batch: dict, tmp_path: Path) -> None:
    files = official_files(PY) | {"data_batch_3": pickle.dumps(batch, 2)}
    with pytest.raises(DataError, match=r"data_batch_3: expected .* Received: "):
        read(write_folder(tmp_path / "bad", files))


@pytest.mark.parametrize("names", [LAUGHS, [1, 2], 7, [b"\xff"]])
def test_names_that_are_no_text(names: object, tmp_path: Path) -> None:
    files = official_files(PY) | {"batches.meta": pickle.dumps({"label_names": names}, 2)}
    with pytest.raises(DataError, match=r"batches\.meta: expected a list of class names"):
        read(write_folder(tmp_path / "bad", files))


def test_a_label_without_a_name(tmp_path: Path) -> None:
    files = official_files(BIN) | {"batches.meta.txt": b"cat\ndog\nhorse\n"}
    with pytest.raises(DataError, match=r"expected labels from 0 to 2. Received: labels from 0 to"):
        read(write_folder(tmp_path / "bad", files))


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    files = official_files(BIN) | {"batches.meta.txt": b"cat\ndog\nhorse\ntruck\nunicorn\n"}
    with pytest.raises(DataError, match="empty class unicorn"):
        read(write_folder(tmp_path / "bad", files))


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", PY.files)
def test_a_hostile_pickle_runs_nothing(name: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    files = official_files(PY) | {name: pickle.dumps({"data": Evil(trace)}, 2)}
    folder = write_folder(tmp_path / "evil", files)
    archive = write_tar(tmp_path / "evil.tar.gz", in_folder(PY, files))
    for path in (folder, archive):
        with pytest.raises(DataError, match=f"{name}: .* wants to run .*refused"):
            read(path)
    assert not trace.exists()


@pytest.mark.parametrize("outside", ["../{}", "/{}", "{}/../../x", "other/{}"])
def test_members_outside_of_the_folder_are_not_read(
    outside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = in_folder(PY, official_files(PY))
    moved = {outside.format(name): content for name, content in inside.items()}
    deep = tmp_path / "deep"
    deep.mkdir()
    monkeypatch.chdir(deep)
    path = write_tar(deep / "a.tar.gz", moved)
    with pytest.raises(DataError, match="an archive without them"):
        read(path)
    expect_tiny(write_tar(path, moved | inside), PY)
    assert sorted(tmp_path.rglob("*")) == [deep, path]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_are_not_followed(kind: bytes, tmp_path: Path) -> None:
    (tmp_path / "data_batch_1").write_bytes(official_files(PY)["data_batch_1"])
    path = tmp_path / "links.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo(f"{PY.folder}/data_batch_1")
        info.type, info.linkname = kind, str(tmp_path / "data_batch_1")
        archive.addfile(info)
    with pytest.raises(DataError, match="data_batch_1: expected a regular file"):
        read(path)


def test_a_member_of_huge_size_is_not_read(tmp_path: Path) -> None:
    info = tarfile.TarInfo(f"{PY.folder}/data_batch_1")
    info.size = 2**40
    path = tmp_path / "huge.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(DataError, match=r"data_batch_1: expected at most 256 MiB.* 1048576 MiB"):
        read(path)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_bomb_is_refused_before_it_unfolds(
    kind: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "_LARGEST_ARCHIVE", 2**20)
    info = tarfile.TarInfo("filler")
    info.type, info.size = kind, 2**23
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf() + bytes(2**23)))
    assert path.stat().st_size < 2**15
    with pytest.raises(DataError, match="expected at most 1 MiB, unpacked"):
        read(path)


def test_a_file_of_huge_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "cifar", official_files(PY))
    monkeypatch.setattr(cifar, "_LARGEST_FILE", 1000)
    with pytest.raises(DataError, match="data_batch_1: expected at most"):
        read(folder)


@pytest.mark.parametrize("cut", [1, 100, 600, 3000])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_truncated_archive(mode: str, cut: int, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", in_folder(PY, official_files(PY)), mode)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"a\.tar: expected .* Received: "):
        read(path)


def test_an_archive_with_a_flipped_byte(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar.gz", in_folder(PY, official_files(PY)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DataError, match="Received: "):
        read(path)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(10240), b"\x1f\x8b", b"PK\x03\x04"])
def test_a_file_of_no_known_kind(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"file\.bin: expected "):
        read(path)
