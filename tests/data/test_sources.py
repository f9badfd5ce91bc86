"""`load`: names, auto, paths, sizes, and the cache."""

import dataclasses
import gzip
import hashlib
import importlib
import io
import pickle
import struct
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from kerasnorm.config import SETTINGS, DataConfig
from kerasnorm.data import describe_cache, load, prepare, sources
from kerasnorm.data.download import DownloadError, RemoteFile
from kerasnorm.data.preprocessing import equalize, equalized
from kerasnorm.data.shapes import shapes
from kerasnorm.data.sources import OFFICIAL
from kerasnorm.errors import DataError

NAMES = [b"cat", b"dog"]
CONFIG = {"data": "shapes", "train_size": 100, "test_size": 20}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network: every official address leads nowhere."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("KERASNORM_CACHE", str(folder))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(sources, "RETRIES", 0)
    for name, official in OFFICIAL.items():
        urls = ("http://127.0.0.1:1/nowhere",)
        files = tuple(file._replace(urls=urls) for file in official.files)
        monkeypatch.setitem(OFFICIAL, name, dataclasses.replace(official, files=files))
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, ThreadingHTTPServer]]:
    """A folder that is served on this machine, and its server."""
    folder = tmp_path / "site"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield folder, server
        server.shutdown()
        thread.join()


def cifar10_files(count: int = 10) -> dict[str, bytes]:
    """The files of a small CIFAR-10 of two classes, `count` images a batch."""
    rng = np.random.Generator(np.random.PCG64([0]))
    files = {"batches.meta": pickle.dumps({b"label_names": NAMES}, 2)}
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        data = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        files[name] = pickle.dumps({b"data": data, b"labels": [0, 1] * (count // 2)}, 2)
    return files


def cifar10_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in cifar10_files().items():
        (folder / name).write_bytes(content)
    return folder


def cifar10_archive(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in cifar10_files().items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def serve(name: str, site: tuple[Path, ThreadingHTTPServer], monkeypatch: pytest.MonkeyPatch):
    """Makes the files of a data set those that lie in the site's folder."""
    folder, server = site
    files = []
    for file in OFFICIAL[name].files:
        stem = Path(file.path).name
        content = (folder / stem).read_bytes()
        url = f"http://127.0.0.1:{server.server_port}/{stem}"
        checksum = f"sha256:{hashlib.sha256(content).hexdigest()}"
        files.append(RemoteFile(file.path, (url,), checksum, len(content)))
    official = dataclasses.replace(OFFICIAL[name], files=tuple(files))
    monkeypatch.setitem(OFFICIAL, name, official)


def test_a_path(cache: Path, tmp_path: Path) -> None:
    folder = cifar10_folder(tmp_path / "cifar")
    dataset = load(str(folder))
    assert dataset.name == "cifar10"
    assert dataset.source == str(folder)
    assert dataset.class_counts == {"train": (25, 25), "test": (5, 5)}
    assert not cache.exists()


def test_a_path_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cifar10_folder(tmp_path / "cifar")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load("~/cifar").name == "cifar10"


def test_sizes_of_a_path(tmp_path: Path) -> None:
    folder = str(cifar10_folder(tmp_path / "cifar"))
    small = load(folder, train_size=20, test_size=4)
    assert small.class_counts == {"train": (10, 10), "test": (2, 2)}
    again = load(folder, train_size=20, test_size=4)
    assert np.array_equal(small.train.images, again.train.images)
    with pytest.raises(DataError, match=r"train_size: expected at most the 50 .*train_size=51"):
        load(folder, train_size=51)


def test_shapes() -> None:
    dataset = load("shapes", train_size=30, test_size=20)
    assert dataset.name == "shapes"
    assert dataset.class_counts == {"train": (3,) * 10, "test": (2,) * 10}


def test_shapes_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    few = dataclasses.replace(sources.GENERATED["shapes"], train_size=40, test_size=10)
    monkeypatch.setitem(sources.GENERATED, "shapes", few)
    dataset = load("shapes")
    assert (len(dataset.train), len(dataset.test)) == (40, 10)


def test_too_few_shapes_name_the_empty_classes() -> None:
    with pytest.raises(DataError, match="empty class "):
        load("shapes", train_size=3, test_size=1)


@pytest.mark.parametrize(
    ("data", "advice"),
    [
        ("cifr10", "Did you mean cifar10?"),
        ("fashion-mnist", "Did you mean fashion_mnist?"),
        ("/no/such/path", "Check the path."),
        ("no\0such", "Check the path."),
        ("x" * 5000, "expected"),
        ("", "Check the path."),
    ],
)
def test_neither_name_nor_path(data: str, advice: str, cache: Path) -> None:
    with pytest.raises(DataError, match=r"expected .*a folder cifar-10-batches-py") as caught:
        load(data)
    assert advice in str(caught.value)


def test_auto_offline_takes_shapes_and_says_so_in_one_line(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kerasnorm")
    dataset = load("auto", train_size=20, test_size=10)
    lines = caplog.messages
    assert dataset.name == "shapes"
    assert len(dataset.train) == 20
    assert dataset.source.endswith("(auto: cifar10 is not cached and does not download)")
    assert len(lines) == 1
    assert lines[0].startswith("auto: taking the generated data set shapes, because cifar10 is not")
    assert str(cache) in lines[0]
    assert "Errno" in lines[0]
    assert "\n" not in lines[0]


def test_auto_speaks_through_logging_by_default(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load("auto", train_size=20, test_size=10)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_auto_takes_what_is_cached(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kerasnorm")
    cifar10_folder(cache / "cifar-10-batches-py")
    dataset = load("auto", test_size=4)
    assert (dataset.name, len(dataset.test), caplog.messages) == ("cifar10", 4, [])


def test_auto_downloads_and_later_needs_no_network(
    cache: Path,
    site: tuple[Path, ThreadingHTTPServer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "kerasnorm")
    cifar10_archive(site[0] / "cifar-10-python.tar.gz")
    serve("cifar10", site, monkeypatch)
    first = load("auto")
    assert first.source == str(cache / "cifar-10-python.tar.gz")
    assert [line.split()[0] for line in caplog.messages] == ["Downloading"]

    (site[0] / "cifar-10-python.tar.gz").unlink()
    for data in ("auto", "cifar10"):
        again = load(data)
        assert np.array_equal(again.train.images, first.train.images)
    assert len(caplog.messages) == 1


def test_a_damaged_archive_in_the_cache_is_named_and_downloaded_again(
    cache: Path,
    site: tuple[Path, ThreadingHTTPServer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "kerasnorm")
    whole = cifar10_archive(site[0] / "cifar-10-python.tar.gz").read_bytes()
    serve("cifar10", site, monkeypatch)
    (cache / "cifar-10-batches-py").mkdir(parents=True)
    archive = cache / "cifar-10-python.tar.gz"
    for damaged in (whole[:1000], whole[:999] + bytes(99) + whole[1098:], b""):
        archive.write_bytes(damaged)
        for data in ("auto", "cifar10"):
            assert load(data).source == str(archive)
        assert archive.read_bytes() == whole
    assert sum(str(archive) in text and "passed over" in text for text in caplog.messages) == 3
    assert sum("Downloading" in text for text in caplog.messages) == 3


def test_a_damaged_archive_that_does_not_download_stays_and_auto_takes_shapes(
    cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archive = cifar10_archive(cache / "cifar-10-python.tar.gz")
    damaged = archive.read_bytes()[:1000]
    archive.write_bytes(damaged)
    with pytest.raises(DownloadError, match="cifar-10-python"):
        load("cifar10")
    assert load("auto", train_size=20, test_size=10).name == "shapes"
    assert archive.read_bytes() == damaged
    assert all("cifar-10-python" in text for text in caplog.messages[:2])


def test_a_file_of_several_that_is_damaged_is_downloaded_alone(
    cache: Path,
    site: tuple[Path, ThreadingHTTPServer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for half in ("train", "t10k"):
        images = np.arange(20 * 28 * 28).astype(np.uint8).reshape(20, 28, 28)
        (site[0] / f"{half}-images-idx3-ubyte.gz").write_bytes(idx(images))
        labels = np.arange(20, dtype=np.uint8) % 10
        (site[0] / f"{half}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    serve("fashion_mnist", site, monkeypatch)
    load("fashion_mnist")
    damaged = cache / "fashion-mnist" / "train-labels-idx1-ubyte.gz"
    damaged.write_bytes(damaged.read_bytes()[:20])
    caplog.set_level("INFO", "kerasnorm")
    caplog.clear()
    assert load("fashion_mnist").class_counts["train"] == (2,) * 10
    assert ["Downloading" in text for text in caplog.messages] == [False, True]
    assert "train-labels" in caplog.messages[1]


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_name_that_does_not_download(name: str, cache: Path) -> None:
    with pytest.raises(DownloadError, match="Check the network"):
        load(name)


@pytest.mark.parametrize(
    "place", ["cifar-10-batches-py", "cifar-10-python.tar.gz", "cifar-10-batches-bin"]
)
def test_official_files_in_the_cache_are_taken(place: str, cache: Path) -> None:
    # What the folder holds decides, so that the last case stands for any layout.
    make = cifar10_archive if place.endswith(".gz") else cifar10_folder
    make(cache / place)
    assert load("cifar10").source == str(cache / place)


def idx(values: np.ndarray) -> bytes:
    shape = struct.pack(f">{values.ndim}I", *values.shape)
    return gzip.compress(bytes((0, 0, 8, values.ndim)) + shape + values.tobytes())


def test_fashion_mnist_file_by_file(
    cache: Path,
    site: tuple[Path, ThreadingHTTPServer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "kerasnorm")
    for half in ("train", "t10k"):
        images = np.arange(20 * 28 * 28).astype(np.uint8).reshape(20, 28, 28)
        (site[0] / f"{half}-images-idx3-ubyte.gz").write_bytes(idx(images))
        labels = np.arange(20, dtype=np.uint8) % 10
        (site[0] / f"{half}-labels-idx1-ubyte.gz").write_bytes(idx(labels))
    serve("fashion_mnist", site, monkeypatch)
    last = site[0] / "t10k-labels-idx1-ubyte.gz"
    content = last.read_bytes()
    last.unlink()
    with pytest.raises(DownloadError, match="404"):
        load("fashion_mnist")
    assert describe_cache()[2]["path"] is None

    last.write_bytes(content)
    dataset = load("fashion_mnist")
    assert (
        len(caplog.messages) == 4
    )  # each file once: the second call resumes after the files of the first
    assert dataset.name == "fashion_mnist"
    assert dataset.image_shape == (28, 28, 1)
    assert dataset.class_names[0] == "T-shirt/top"
    assert dataset.class_counts["train"] == (2,) * 10


def test_mnist_is_an_npz(
    cache: Path, site: tuple[Path, ThreadingHTTPServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.zeros((10, 28, 28), np.uint8)
    labels = np.arange(10, dtype=np.uint8)
    path = site[0] / "mnist.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
    serve("mnist", site, monkeypatch)
    dataset = load("mnist")
    assert dataset.name == "mnist"
    assert dataset.class_names == tuple("0123456789")


def test_the_validation_split_is_stratified_disjoint_and_a_function_of_the_seed():
    first, again, other = (prepare(DataConfig(**CONFIG, validation=30), seed) for seed in (0, 0, 1))
    assert len(first.train) == 70
    assert np.bincount(first.validation.labels).tolist() == [3] * 10
    assert np.array_equal(first.validation.images, again.validation.images)
    assert not np.array_equal(first.validation.images, other.validation.images)
    everything = {image.tobytes() for image in shapes(100, 20).train.images}
    parts = [{image.tobytes() for image in part.images} for part in (first.train, first.validation)]
    assert parts[0] | parts[1] == everything
    assert not parts[0] & parts[1]


def test_equalization_reaches_every_split():
    raw = prepare(DataConfig(**CONFIG, validation=30), 0)
    preprocessed = prepare(DataConfig(**CONFIG, validation=30, preprocessing="equalize"), 0)
    for name, split in raw.splits.items():
        assert np.array_equal(preprocessed.splits[name].images, equalize(split.images))
    assert "equalized" in equalized(raw).source


def test_describe_cache(cache: Path) -> None:
    names = [entry["name"] for entry in describe_cache()]
    assert names == ["cifar10", "cifar100", "fashion_mnist", "mnist"]
    assert all(entry["state"] == "not cached" for entry in describe_cache())
    folder = cifar10_folder(cache / "cifar-10-batches-py")
    size = sum(file.stat().st_size for file in folder.iterdir())
    entry = describe_cache()[0]
    assert entry == {
        "name": "cifar10",
        "path": str(folder),
        "bytes": size,
        "state": f"{size / 1e6:.1f} MB in {folder}",
    }


def test_help_readme_and_errors_name_every_form_of_data(tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load(str(tmp_path / "nothing"))
    for reader in sources.READERS:
        for text in (SETTINGS["data"].field.metadata["help"], str(caught.value), readme):
            assert reader.description in " ".join(text.replace("`", "").split())


def test_what_is_incomplete_is_not_listed_as_cached(cache: Path) -> None:
    (cache / "cifar-10-batches-py").mkdir(parents=True)
    assert describe_cache()[0]["state"] == "not cached"
    (cache / "cifar-10-python.tar.gz").write_bytes(bytes(10**6))
    state = describe_cache()[0]["state"]
    assert state.startswith("1.0 MB in")
    assert state.endswith("of 170.5 MB: it is incomplete")


def test_data_needs_no_keras() -> None:
    code = (
        "import sys, kerasnorm.data\n"
        "sys.exit(bool({'keras', 'filelock', 'pooch', 'requests'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_face() -> None:
    face = importlib.import_module("kerasnorm.data")
    assert all(hasattr(face, name) for name in face.__all__)
