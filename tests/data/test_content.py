"""What a data set holds: its checksums are those of the pixels, and name what differs."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from hostile import changed_data
from PIL import Image

from kerasnorm.config import DataConfig
from kerasnorm.data import prepare
from kerasnorm.data.content import Content
from kerasnorm.data.sources import loading, locate


def content(place, seed=0, **fields):
    return prepare(DataConfig(data=str(place), **fields), seed).content


def test_checksums_are_those_of_the_files_pixels_in_their_order(tmp_path):
    data = changed_data.write(tmp_path / "d")
    found = content(data)
    paths = [data / "test" / name / f"{i}.png" for name in changed_data.CLASSES for i in range(3)]
    pixels = b"".join(Image.open(path).tobytes() for path in paths)
    labels = np.repeat(np.arange(4, dtype="<i4"), 3).tobytes()
    assert found.sha256["test images"] == hashlib.sha256(pixels).hexdigest()
    assert found.sha256["test labels"] == hashlib.sha256(labels).hexdigest()
    assert found.class_names == changed_data.CLASSES
    assert found.image_shape == (8, 8, 3)
    assert found.counts == {"train": (5, 5, 5, 5), "test": (3, 3, 3, 3)}


def test_neither_seed_nor_preprocessing_changes_the_content(tmp_path):
    data = changed_data.write(tmp_path / "d")
    held_out = [
        content(data, seed, validation=8, preprocessing=preprocessing)
        for seed in (0, 1)
        for preprocessing in ("standardize", "equalize")
    ]
    assert held_out == [content(data)] * 4
    assert content(data, train_size=12) != content(data)


def test_a_content_survives_json(tmp_path):
    found = content(changed_data.write(tmp_path / "d"))
    document = json.loads(json.dumps(dataclasses.asdict(found)))
    assert Content.read(document) == found
    del document["sha256"]["test images"]
    assert Content.read(document) is None
    assert Content.read({"name": "cifar10", "source": "of an earlier version"}) is None


@pytest.mark.parametrize("changed", changed_data.CHANGED, ids=lambda item: item.name)
def test_what_differs_is_named(tmp_path, changed):
    before = content(changed_data.write(tmp_path / "d"))
    differences = before.differences(content(changed.make(tmp_path)))
    assert changed.expected in "; ".join(differences)


@pytest.mark.parametrize("same", changed_data.SAME, ids=lambda item: item.name)
def test_the_same_images_elsewhere_have_the_same_content(tmp_path, same):
    before = content(changed_data.write(tmp_path / "d"))
    assert content(same.make(tmp_path)) == before


def test_a_place_is_one_however_it_is_spelled(tmp_path, monkeypatch):
    data = changed_data.write(tmp_path / "d")
    (tmp_path / "link").symlink_to("d")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    spelled = ("d", "d/", "./d", "link", "~/d", "../" + tmp_path.name + "/d", str(data))
    assert {locate(text) for text in spelled} == {str(data.resolve())}
    for name in ("auto", "cifar10", "shapes", ""):
        assert locate(name) == name
    config = DataConfig(data="d/", train_size=9, validation=2, flip=0.5)
    assert loading(config) == DataConfig(data=str(data.resolve()), train_size=9)


def test_of_many_classes_those_are_named_that_differ(tmp_path):
    before = content(changed_data.write(tmp_path / "d"))
    many = tuple(f"class {number:02}" for number in range(40))
    full = dataclasses.replace(before, class_names=many)
    for names, text in (
        ((*many[:39], "fox"), "the classes fox instead of class 39"),
        (many[:39], "the classes none instead of class 39"),
        (many[::-1], "the classes class 39, class 38,"),
    ):
        other = dataclasses.replace(full, class_names=names)
        assert full.differences(other)[0].startswith(text)
