"""The `.npz` and IDX readers: what they give, and how they refuse damaged and hostile files."""

import gzip
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kerasnorm.data import arrays
from kerasnorm.data.arrays import IDX_FILES
from kerasnorm.data.sources import load, read, with_place
from kerasnorm.errors import DataError


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed]))


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.trace,)


def npz_arrays(**changes: object) -> dict[str, np.ndarray]:
    sound = {
        "x_train": rng(1).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8),
        "y_train": np.array([0, 1, 2, 0, 1, 2]),
        "x_test": rng(2).integers(0, 256, (3, 5, 4, 3), dtype=np.uint8),
        "y_test": np.array([2, 1, 0]),
    }
    return {key: value for key, value in (sound | changes).items() if value is not None}


def write_npz(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "my data.npz"
    np.savez(path, **npz_arrays(**changes))
    return path


def test_npz(tmp_path: Path) -> None:
    dataset = read(write_npz(tmp_path))
    sound = npz_arrays()
    assert dataset.name == "my-data"
    assert dataset.class_names == ("0", "1", "2")
    assert dataset.image_shape == (5, 4, 3)
    assert np.array_equal(dataset.train.images, sound["x_train"])
    assert np.array_equal(dataset.test.labels, [2, 1, 0])
    assert dataset.train.labels.dtype == np.int32


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, np.int64, np.uint16])
def test_npz_of_other_numbers(kind: type, tmp_path: Path) -> None:
    images = npz_arrays()["x_train"]
    dataset = read(write_npz(tmp_path, x_train=images.astype(kind)))
    assert np.array_equal(dataset.train.images, images)


def test_npz_rounds(tmp_path: Path) -> None:
    images = np.full((6, 1, 1, 3), 41.6, np.float32)
    path = write_npz(tmp_path, x_train=images, x_test=images[:3])
    assert read(path).train.images.max() == 42


def test_npz_of_gray_images_and_column_labels(tmp_path: Path) -> None:
    gray = npz_arrays()["x_train"][..., 0]
    path = write_npz(
        tmp_path, x_train=gray, x_test=gray[:3], y_train=npz_arrays()["y_train"][:, None]
    )
    dataset = read(path)
    assert dataset.image_shape == (5, 4, 1)
    assert np.array_equal(dataset.train.images[..., 0], gray)
    assert dataset.train.labels.tolist() == [0, 1, 2, 0, 1, 2]


SOUND = npz_arrays()["x_train"]
WITH_NAN = SOUND.astype(np.float32)
WITH_NAN[0, 0, 0, 0] = np.nan
WITH_INFINITY = SOUND.astype(np.float32)
WITH_INFINITY[-1] = np.inf


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, r"arrays x_train, y_train, x_test\. Save y_test too"),
        ({"x_train": SOUND / 255}, "floats from 0.* to 1, which look scaled. Multiply .* by 255"),
        ({"x_train": SOUND / 127.5}, "floats from 0.* to 2, which look scaled"),
        ({"x_train": SOUND / 255 * 1.0001}, "floats .* look scaled"),
        ({"x_test": SOUND[:3] / 60 + 2.5}, "x_test: .* floats .* look scaled"),
        ({"x_train": SOUND.astype(np.int16) - 1}, "x_train: expected finite pixels from 0 to 255"),
        ({"x_train": SOUND * 1.5}, "x_train: expected finite pixels from 0 to 255"),
        ({"x_train": WITH_NAN}, "expected finite pixels.* from nan to nan"),
        ({"x_train": WITH_INFINITY}, "expected finite pixels.* to inf"),
        ({"x_train": SOUND.astype(bool)}, "expected pixels as numbers.* type bool"),
        ({"x_train": SOUND.astype(str)}, "expected pixels as numbers"),
        ({"x_train": SOUND.reshape(6, -1)}, r"shape \(N, H, W, C\).* shape \(6, 60\)"),
        ({"x_train": SOUND[:0]}, r"none of them 0.* shape \(0, 5, 4, 3\)"),
        ({"x_train": SOUND[:, :0]}, r"none of them 0.* shape \(6, 0, 4, 3\)"),
        ({"x_train": np.zeros((6, 3, 8, 8), np.uint8)}, "looks like channels first"),
        ({"x_train": SOUND[:5]}, "train set: expected one label per image.* 5 images and 6"),
        ({"x_test": SOUND[:3, :4]}, r"test set: expected images .*\(5, 4, 3\).*: \(4, 4, 3\)"),
        ({"y_train": np.eye(6)[:, :3]}, r"One-hot labels: save y\.argmax"),
        ({"y_train": np.arange(6) / 2}, "expected labels as whole numbers.* type float64"),
        ({"y_train": np.arange(6) - 1}, "expected labels from 0 on.* from -1 to 4"),
        ({"y_train": np.arange(6) * 10**9}, "expected labels from 0 on"),
        ({"y_train": np.array([0, 1, 0, 1, 0, 2**31 - 1])}, "expected labels from 0 to 6"),
        ({"y_train": np.array([1, 2, 1, 2, 1, 2])}, "empty class 0. Remove"),
        ({"y_test": np.array([0, 1, 3])}, "test set: expected labels from 0 to 2.* 0 to 3"),
        (
            {"y_train": np.array([{}] * 6)},
            r"y_train: .* Received: objects of Python, which are not opened.*whole numbers",
        ),
    ],
)
def test_npz_refuses(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"my data\.npz.*{message}"):
        read(write_npz(tmp_path, **changes))


@pytest.mark.parametrize(
    "pixels", [np.minimum(SOUND, 9).astype(float), np.maximum(SOUND / 2, 11.5), SOUND * 0.99]
)
def test_npz_rounds_floats_of_the_scale_of_pixels(pixels: np.ndarray, tmp_path: Path) -> None:
    images = read(write_npz(tmp_path, x_train=pixels)).train.images
    assert np.array_equal(images, np.rint(pixels))


def test_npz_runs_no_pickle(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    path = write_npz(tmp_path, y_train=np.array([Evil(trace)] * 6))
    with pytest.raises(DataError, match="y_train"):
        read(path)
    assert not trace.exists()


def test_npz_damaged(tmp_path: Path) -> None:
    path = write_npz(tmp_path)
    content = path.read_bytes()
    for cut in (0, 4, 100, len(content) // 2, len(content) - 5):
        path.write_bytes(content[:cut])
        with pytest.raises(DataError, match=r"my data.npz: expected "):
            read(path)
    path.write_bytes(content[:300] + bytes(200) + content[500:])
    with pytest.raises(DataError, match=r"my data\.npz: .*(CRC|Bad)"):
        read(path)


def test_npz_that_is_no_zip_of_arrays(tmp_path: Path) -> None:
    path = tmp_path / "text.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for key in npz_arrays():
            archive.writestr(f"{key}.npy", b"no array")
    with pytest.raises(DataError, match=r"text.npz"):
        read(path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(DataError, match=r"one\.npz: expected an \.npz file with the arrays"):
        read(tmp_path / "one.npz")


def test_npz_of_huge_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "LARGEST_ARRAY", 1000)
    path = tmp_path / "big.npz"
    np.savez_compressed(path, **npz_arrays(x_test=np.zeros((3, 50, 50, 3), np.uint8)))
    with pytest.raises(DataError, match=r"x_test: expected at most .* It was not read"):
        read(path)


def idx(values: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, values.ndim))
        + struct.pack(f">{values.ndim}I", *values.shape)
        + (values.tobytes())
    )


def idx_folder(folder: Path, *, zipped: bool = True) -> Path:
    folder.mkdir()
    for number, (images, labels) in enumerate(IDX_FILES):
        pixels = rng(number).integers(0, 256, (4, 6, 5), dtype=np.uint8)
        for name, values in ((images, pixels), (labels, np.arange(4, dtype=np.uint8))):
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(values)))
            else:
                (folder / name).write_bytes(idx(values))
    return folder


@pytest.mark.parametrize("zipped", [True, False])
def test_idx(zipped: bool, tmp_path: Path) -> None:
    dataset = read(idx_folder(tmp_path / "digits", zipped=zipped))
    assert dataset.name == "digits"
    assert dataset.image_shape == (6, 5, 1)
    assert dataset.class_names == ("0", "1", "2", "3")
    expected = rng(1).integers(0, 256, (4, 6, 5), dtype=np.uint8)
    assert np.array_equal(dataset.test.images[..., 0], expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it starts with nothing"),
        (idx(np.zeros(4, np.uint8)), "it starts with 00 00 08 01"),
        (idx(np.zeros((4, 6, 5), np.uint8))[:-1], "needs 120 bytes, it has 119 bytes"),
        (idx(np.zeros((4, 6, 5), np.uint8)) + b"x", "needs 120 bytes, it has more"),
        (idx(np.zeros((4, 6, 5), np.uint8))[:9], "damaged"),
        (bytes((0, 0, 8, 3)) + b"\xff" * 12, "expected at most 4096 MiB"),
        (b"\x1f\x8b\x08" + bytes(50), "damaged"),
        (gzip.compress(idx(np.zeros((4, 6, 5), np.uint8)), mtime=0)[:-12], "damaged"),
    ],
)
def test_idx_damaged(content: bytes, message: str, tmp_path: Path) -> None:
    folder = idx_folder(tmp_path / "digits")
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=rf"t10k-images-idx3-ubyte\.gz: .*{message}"):
        read(folder)


def test_idx_missing(tmp_path: Path) -> None:
    folder = idx_folder(tmp_path / "digits")
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.gz: .*no such file"):
        read(folder)


def test_arrays_are_saved_once_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASNORM_CACHE", str(tmp_path))
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 256, (12, 4, 5, 3), np.uint8), np.arange(12) % 3
    given = (x[:8], y[:8], x[8:], y[8:])
    place = with_place({"data": given, "epochs": 2})
    assert place["epochs"] == 2
    data = load(place["data"])
    np.testing.assert_array_equal(data.train.images, x[:8])
    np.testing.assert_array_equal(data.test.labels, y[8:])
    assert with_place({"data": given}) == {"data": place["data"]}
    assert with_place({"data": (*given, x[:3], y[:3])})["data"] != place["data"]
    assert len(load(with_place({"data": (*given, x[:3], y[:3])})["data"]).validation) == 3
    assert with_place({"data": tmp_path}) == {"data": str(tmp_path)}
    assert with_place({"data": "shapes"}) == {"data": "shapes"}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((1, 2, 3), "4 or 6 arrays"),
        (([object()], [0], [object()], [0]), "np.stack"),
        (([[1], [1, 2]], [0], [[1]], [0]), "x_train: expected an array of numbers"),
    ],
)
def test_other_arguments_than_arrays_are_refused(tmp_path, monkeypatch, given, text):
    monkeypatch.setenv("KERASNORM_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=text):
        with_place({"data": given})
    assert list(tmp_path.iterdir()) == []
