"""Images decoded into the cache: read as an array is, found again, decoded anew, and removed."""

import errno
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import keras
import numpy as np
import pytest
from filelock import FileLock
from helpers import command, tiny
from hostile import changed_data
from PIL import Image

from kerasnorm import progress
from kerasnorm.analysis import inputs
from kerasnorm.config import DataConfig
from kerasnorm.data import pictures, prepare, stored
from kerasnorm.data.dataset import Fit, joined
from kerasnorm.data.sources import load
from kerasnorm.data.stored import StoredImages
from kerasnorm.errors import DataError
from kerasnorm.inspection import evaluation

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 3, 2, 4), dtype=np.uint8)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, in which the images of every folder are stored."""
    monkeypatch.setattr(stored, "IN_MEMORY", 0)
    monkeypatch.setenv("KERASNORM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "decoded"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return changed_data.write(tmp_path / "my data")


def in_memory(path: Path, monkeypatch: pytest.MonkeyPatch, *, seed: int = 0, **fields):
    with monkeypatch.context() as patch:
        patch.setattr(stored, "IN_MEMORY", 2**40)
        return prepare(DataConfig(data=str(path), **fields), seed)


def from_cache(path: Path, **fields):
    return prepare(DataConfig(data=str(path), **fields), 0)


def names(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*/*") if path.name != ".lock")


def test_stored_images_are_not_searched_for_training_images(cache, folder, monkeypatch):
    """All of them would have to be read; those of the same folder in memory are searched."""
    assert in_memory(folder, monkeypatch).leaked is not None
    assert from_cache(folder).leaked is None


def assert_same(found, expected) -> None:
    assert found.content == expected.content
    assert found.splits.keys() == expected.splits.keys()
    for name, split in expected.splits.items():
        assert isinstance(found.splits[name].images, StoredImages)
        assert isinstance(split.images, np.ndarray)
        np.testing.assert_array_equal(found.splits[name].images, split.images)
        np.testing.assert_array_equal(found.splits[name].labels, split.labels)


@pytest.fixture
def images(tmp_path: Path) -> StoredImages:
    np.save(tmp_path / "x.npy", PIXELS)
    return StoredImages.open(tmp_path / "x.npy")


@pytest.mark.parametrize(
    "key",
    [
        3, -1, np.int64(2), slice(None), slice(1, 6, 2), slice(5, 2), slice(None, None, -1),
        np.array([4, 0, 4]), [1, 2], np.arange(7) % 2 == 0, np.array([], np.int64),
        (slice(2, 4), ..., 1), (slice(None), 0), (5, ..., 0), (..., 2), (np.array([6, 1]), 2, 1, 3),
    ],
    ids=str,
)  # fmt: skip
def test_stored_images_are_indexed_as_arrays_are(key, images):
    np.testing.assert_array_equal(images[key], PIXELS[key])
    assert images[key].dtype == np.uint8


def test_stored_images_look_like_an_array(images):
    assert (images.shape, images.ndim, images.dtype, len(images)) == ((7, 3, 2, 4), 4, np.uint8, 7)
    np.testing.assert_array_equal(np.asarray(images, np.float32), PIXELS.astype(np.float32))
    np.testing.assert_array_equal(list(images), PIXELS)
    for key in (7, np.array([0, 7])):
        with pytest.raises(IndexError):
            images[key]
    with pytest.raises(IndexError, match="one dimension"):
        images[None]


def test_selected_and_changed_images_are_read_when_they_are_needed(images):
    taken = images.select(np.array([5, 1, 3])).select(slice(1, None)).changed(lambda x: 255 - x)
    again = images.select(np.array([0])).changed(taken.changes[0])
    os.rename(images.path, images.path.with_suffix(".away"))
    both = stored.concatenated([taken, again])
    assert (taken.shape, both.shape) == ((2, 3, 2, 4), (3, 3, 2, 4))
    with pytest.raises(DataError, match=r"x\.npy: .*No such file.*decoded anew"):
        taken[0]
    os.rename(images.path.with_suffix(".away"), images.path)
    np.testing.assert_array_equal(both, 255 - PIXELS[[1, 3, 0]])
    mixed = stored.concatenated([taken, images])  # of other changes
    np.testing.assert_array_equal(mixed, np.concatenate([255 - PIXELS[[1, 3]], PIXELS]))
    os.truncate(images.path, images.path.stat().st_size - 1)
    with pytest.raises(DataError, match=r"ends too early"):
        images[6]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"preprocessing": "equalize", "validation": 8},
        {"image_size": (6, 5), "resize": "crop", "train_size": 12, "test_size": 8},
    ],
    ids=["plain", "equalized", "fewer"],
)
def test_the_cache_holds_what_the_memory_would(fields, folder, cache, monkeypatch):
    expected = in_memory(folder, monkeypatch, **fields)
    found = from_cache(folder, **fields)
    assert_same(found, expected)
    assert_same(from_cache(folder, **fields), expected)
    all_images = [joined(one.splits.values()).images for one in (found, expected)]
    assert isinstance(all_images[0], StoredImages)
    np.testing.assert_array_equal(*all_images)
    assert found.without_images().content == expected.content
    (place,) = cache.iterdir()
    assert place.name.startswith("my-data-")


def test_folders_with_a_split_of_their_own_and_without_any(tmp_path, folder, cache, monkeypatch):
    shutil.copytree(folder / "test", folder / "val")
    assert_same(from_cache(folder), in_memory(folder, monkeypatch))
    alone = folder / "train"  # every fifth image is a test image
    assert_same(from_cache(alone), in_memory(alone, monkeypatch))


def test_gray_images_stay_gray_and_one_color_makes_all_rgb(tmp_path, cache, monkeypatch):
    folder = changed_data.write(tmp_path / "gray", shape=(8, 8, 1))
    assert from_cache(folder).image_shape == (8, 8, 1)
    Image.new("RGBA", (8, 8), (9, 8, 7, 0)).save(folder / "test" / "dog" / "9.png")
    found = from_cache(folder)
    assert found.image_shape == (8, 8, 3)
    assert_same(found, in_memory(folder, monkeypatch))


def test_a_second_start_neither_decodes_nor_hashes(folder, cache, monkeypatch, caplog):
    Image.new("RGBA", (8, 8), (255, 255, 255, 9)).save(folder / "train" / "dog" / "0.png")
    monkeypatch.setattr(stored, "IN_MEMORY", 32 * 8 * 8 * 3)
    first = from_cache(folder, image_size=(8, 8))
    monkeypatch.setattr(pictures, "_opened", None)
    monkeypatch.setattr(stored, "CHUNK", 5 * 8 * 8 * 3)
    reads = Reads(monkeypatch, 5)
    caplog.clear()
    assert from_cache(folder, image_size=(8, 8)).content == first.content
    assert reads.images <= 10  # the first ones show that pixels are above 1, checked twice
    assert "1 images are plain white then" in caplog.text
    assert load(str(folder), train_size=12, fit=Fit((8, 8), "stretch")).loaded is None


def test_other_files_sizes_or_versions_are_decoded_anew(folder, cache, monkeypatch):
    def places():
        return {place.name for place in cache.iterdir()}

    from_cache(folder)
    for count, change in enumerate(
        (
            lambda: os.utime(folder / "test" / "dog" / "0.png", ns=(1, 1)),
            lambda: shutil.copy(*(folder / "test" / "dog" / name for name in ("0.png", "7.png"))),
            lambda: os.remove(folder / "test" / "dog" / "2.png"),
            lambda: monkeypatch.setattr(pictures.PIL, "__version__", "0"),
        ),
        2,
    ):
        change()
        assert_same(from_cache(folder), in_memory(folder, monkeypatch))
        assert len(places()) == count
    for resize in ("pad", "crop"):
        from_cache(folder, image_size=(4, 4), resize=resize)
    assert len(places()) == count + 2


def as_bitmaps(folder: Path, change) -> None:
    """Rewrites the images, changed, as uncompressed files of one time, as archives may have."""
    for path in sorted(folder.rglob("*.*g")) + sorted(folder.rglob("*.bmp")):
        with Image.open(path) as image:
            pixels = change(np.asarray(image))
        path.unlink()
        Image.fromarray(pixels).save(path.with_suffix(".bmp"))
        os.utime(path.with_suffix(".bmp"), ns=(10**18, 10**18))


@pytest.mark.parametrize("is_in_place", [True, False])
def test_other_pixels_of_equal_sizes_and_times_are_decoded_anew(
    is_in_place, tmp_path, cache, monkeypatch
):
    first = changed_data.write(tmp_path / "a" / "data")
    second = first if is_in_place else changed_data.write(tmp_path / "b" / "data")
    as_bitmaps(first, lambda x: x)
    before = from_cache(first)
    as_bitmaps(second, lambda x: 255 - x)
    after = from_cache(second)
    assert_same(after, in_memory(second, monkeypatch))
    np.testing.assert_array_equal(after.train.images, 255 - before.train.images[:])


def resave(change):
    return lambda place: np.save(place / "images.npy", change(np.load(place / "images.npy")))


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: os.truncate(place / "images.npy", 1000),
        lambda place: os.truncate(place / "images.npy", 0),
        lambda place: (place / "images.npy").write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'"),
        lambda place: os.truncate(place / "images.npy", 10**6),
        resave(lambda x: x[:-1]),
        resave(lambda x: x.astype(np.int8)),
        resave(np.asfortranarray),
        lambda place: (place / "content.json").write_text("[]"),
        lambda place: (place / "content.json").write_text("{}"),
    ],
)
def test_damaged_files_are_decoded_anew(damage, folder, cache, monkeypatch, caplog):
    from_cache(folder)
    (place,) = cache.iterdir()
    damage(place)
    assert_same(from_cache(folder), in_memory(folder, monkeypatch))
    assert f"{place} is damaged" in caplog.text
    assert [path.name for path in cache.iterdir()] == [place.name]
    caplog.clear()
    from_cache(folder)
    assert not caplog.text


def test_files_that_vanish_are_named(folder, cache):
    found = from_cache(folder)
    assert stored.clear() > 32 * 8 * 8 * 3
    with pytest.raises(DataError, match=r"images\.npy: .*No such file.*decoded anew"):
        found.train.images[0]


def test_a_damaged_image_leaves_nothing_that_counts(folder, cache, monkeypatch):
    broken = [folder / "test" / "dog" / "1.png", folder / "train" / "a b" / "0.png"]
    contents = [path.read_bytes() for path in broken]
    for path, content in zip(broken, contents, strict=True):
        path.write_bytes(content[:-30])
    with pytest.raises(DataError, match=r"test/dog/1\.png: expected an image"):  # the first one
        from_cache(folder)
    assert names(cache) == []
    for path, content in zip(broken, contents, strict=True):
        path.write_bytes(content)
    assert_same(from_cache(folder), in_memory(folder, monkeypatch))


@pytest.mark.parametrize("fields", [{}, {"image_size": (50, 60)}])
def test_images_without_room_are_refused_before_they_are_decoded(
    fields, folder, cache, monkeypatch
):
    monkeypatch.setattr(stored.shutil, "disk_usage", lambda path: Usage(free=6000))
    size = "50x60, 0.3 MB" if fields else "8x8, 0.0 MB"
    with pytest.raises(DataError, match=rf"32 images of {size}.*0\.0 MB free in .*--image-"
                       r"size H,W.*KERASNORM_CACHE"):  # fmt: skip
        from_cache(folder, **fields)


Usage = namedtuple("Usage", "free")


def test_a_full_disk_leaves_nothing_that_counts(folder, cache, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("kerasnorm.files.fsync", full)
        with pytest.raises(DataError, match=r"No space left on device in .*KERASNORM_CACHE"):
            from_cache(folder)
    assert names(cache) == []
    (place,) = cache.iterdir()
    (place / ".images.npy.0.tmp").write_bytes(b"of a process that was killed")
    assert_same(from_cache(folder), in_memory(folder, monkeypatch))
    assert names(cache) == ["content.json", "images.npy"]


def test_a_cache_that_cannot_be_made_is_refused(folder, cache):
    cache.parent.write_text("a file")
    with pytest.raises(DataError, match=r"expected room in the cache for images.*KERASNORM_CACHE"):
        from_cache(folder)


def test_one_of_two_processes_decodes(folder, cache, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "kerasnorm")
    from_cache(folder)
    (place,) = cache.iterdir()
    (place / "content.json").rename(cache / "later")
    monkeypatch.setattr(pictures, "_store", None)
    found = []
    waiting = threading.Thread(target=lambda: found.append(from_cache(folder)))
    with FileLock(place / ".lock"):
        waiting.start()
        deadline = time.monotonic() + 20
        while "Waiting for another process" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stored.clear() == 0  # nothing is removed under a process that decodes
        (cache / "later").rename(place / "content.json")
    waiting.join(20)
    assert_same(found[0], in_memory(folder, monkeypatch))


def test_the_command_lists_and_clears_what_is_decoded(folder, cache):
    from_cache(folder)
    (cache / "unfinished-0").mkdir()
    (cache / "unfinished-0" / ".images.npy.0.tmp").write_bytes(bytes(1_500_000))
    (entry, rest) = json.loads(command.call("data", "--json")[0])["decoded"]
    size = sum(file.stat().st_size for file in Path(entry["path"]).iterdir())
    assert entry == {"path": entry["path"], "bytes": size, "folder": str(folder.resolve())}
    assert rest == {"path": str(cache / "unfinished-0"), "bytes": 1_500_000, "folder": None}
    out = command.call("data")[0]
    assert f"0.0 MB in {entry['path']}, of {folder.resolve()}" in out
    assert f"1.5 MB in {rest['path']}, of unfinished" in out
    assert "leave out SOURCE" in command.call("data", "shapes", "--clear", code=2)[1]
    assert command.call("data", "--clear")[0] == "freed 1.5 MB\n"
    assert json.loads(command.call("data", "--clear", "--json")[0]) == {"freed": 0}
    assert not list(cache.iterdir())


def test_a_bar_shows_where_notes_are_shown(folder, cache, monkeypatch, capsys):
    def shown():
        shutil.rmtree(cache, ignore_errors=True)
        from_cache(folder)
        return [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()]

    quarters = [f"decoding: {done}/32" for done in (8, 16, 24, 32)]
    monkeypatch.setattr(progress, "MANY", 32)
    assert shown() == []  # a library
    monkeypatch.setattr(logging.getLogger("kerasnorm"), "level", logging.INFO)
    logging.getLogger("kerasnorm").manager._clear_cache()
    assert shown() == quarters
    with monkeypatch.context() as patch:
        patch.setattr(sys.stderr, "rich_proxied_file", sys.stderr, raising=False)
        assert shown() == []
    monkeypatch.setattr(progress, "MANY", 33)
    assert shown() == []


class Reads:
    """Limits how many images are read at a time."""

    def __init__(self, monkeypatch, most):
        self.images, read = 0, StoredImages._read

        def counted(images, rows):
            assert len(rows) <= most
            self.images += len(rows)
            return read(images, rows)

        monkeypatch.setattr(StoredImages, "_read", counted)


def results(run):
    rows = [{k: v for k, v in row.items() if "second" not in k} for row in run.history]
    metrics = {k: v for k, v in run.metrics.items() if "second" not in k}
    weights = [w.tobytes() for w in run.model().get_weights()]
    return rows, metrics, weights, run.evaluate(split="all")


def small_batches(monkeypatch):
    monkeypatch.setattr(stored, "CHUNK", 6 * 8 * 8 * 3)
    monkeypatch.setattr(evaluation, "MOST_PIXELS", 1)  # of 8x8: batches of 500 // 64 images


@pytest.mark.long
@pytest.mark.backend("any", slow_on="tensorflow")
@pytest.mark.parametrize("engine", ["native", pytest.param("keras", marks=pytest.mark.slow)])
def test_training_is_the_same_to_the_bit_and_reads_few_images_at_a_time(
    engine, folder, cache, tmp_path, monkeypatch
):
    small_batches(monkeypatch)
    config = {
        "data": str(folder), "epochs": 1, "batch_size": 6, "validation": 8, "engine": engine,
        "preprocessing": "equalize", "cutout": 0.5, "cutout_size": 2, "shift_scale_rotate": 0.5,
        "widths": tiny.WIDTHS, "device": "cpu", "backend": keras.backend.backend(),
    }  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(stored, "IN_MEMORY", 2**40)
        expected = results(tiny.train(out=tmp_path / "memory", **config))
    reads = Reads(monkeypatch, 7)
    found = results(tiny.train(out=tmp_path / "stored", **config))
    assert found == expected
    assert reads.images > 0


@pytest.mark.slow
@pytest.mark.backend("any")
def test_no_command_reads_a_whole_split(cache, tmp_path, monkeypatch):
    small_batches(monkeypatch)
    monkeypatch.setattr(inputs, "SAMPLES", 500)
    monkeypatch.setattr("kerasnorm.formats.safety.process.BATCH", 6)
    monkeypatch.setattr(changed_data, "TRAIN", 15)
    folder = changed_data.write(tmp_path / "d")
    run = tmp_path / "run"
    tiny.train(
        out=run, data=str(folder), epochs=1, batch_size=6, widths=tiny.WIDTHS, device="cpu",
        backend=keras.backend.backend(), norm="bn", validation=8,
    )  # fmt: skip
    reads = Reads(monkeypatch, 7)
    for words in (
        ("evaluate", run, "--split", "train"),
        ("misclassified", run, "--split", "all", "--out", tmp_path / "mistakes.png"),
        ("plot", run),
        ("statistics", run, "--images", 5, "--out", tmp_path / "statistics"),
        ("landscape", run, "--steps", 4, "--lines", 2, "--points", 3, "--out", tmp_path / "l"),
        ("inputs", "--data", folder, "--out", tmp_path / "inputs"),
        ("recalibrate", run, "--batch-size", 6),
        ("export", run, "--format", "onnx", "--accuracy"),
        ("evaluate", run / "exports" / "model.onnx", "--split", "all"),
        ("data", folder),
    ):
        before = reads.images
        command.call(*words)
        assert reads.images > before, words
