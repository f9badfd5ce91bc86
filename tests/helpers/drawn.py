"""Runs, images and PNG files for the tests of pictures."""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from kerasnorm.config import resolve
from kerasnorm.plots.style import Picture
from kerasnorm.training.run import Run

NAMES = ["cat", "dog", "ship"]


def make_run(norm="gn", *, epochs=5, path="run", validation=False, level=0.0, **fields) -> Run:
    config = resolve(
        {"norm": norm, "data": "shapes", "backend": "torch", "epochs": epochs} | fields
    )
    rows = []
    for epoch in range(1, epochs + 1):
        accuracy = 0.4 + 0.05 * epoch + level
        row = {"epoch": float(epoch), "lr": 0.01, "seconds": 2.0, "images_per_second": 500.0}
        for part, extra in (("train", 0.0), ("test", 0.02), ("val", 0.01)):
            is_there = part != "val" or validation
            row[f"{part}_accuracy"] = accuracy + extra if is_there else None
            row[f"{part}_loss"] = 2.0 - accuracy - extra if is_there else None
        rows.append(row)
    metrics = {
        "class_names": NAMES,
        "confusion": [[8, 1, 1], [0, 10, 0], [0, 0, 0]],
        "misclassified": entries(2),
        "steps_per_epoch": 7,
        "test_accuracy": 0.9,
    }
    return Run(Path(path), config, tuple(rows), metrics)


def entries(count: int) -> list[dict[str, object]]:
    return [
        {"index": 11 - i, "true": i % 3, "predicted": (i + 1) % 3, "confidence": 0.99 - i / 100}
        for i in range(count)
    ]


def images(count=12, height=8, width=8, channels=3) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, height, width, channels), np.uint8)


def legend_texts(picture: Picture) -> list[str]:
    return [text.get_text() for text in picture.figure.legends[0].get_texts()]


def written(picture: Picture) -> Image.Image:
    """Draws a picture into a file, so that every warning of drawing is an error here."""
    with tempfile.TemporaryDirectory() as folder:
        path = picture.save(Path(folder))
        assert path.name == f"{picture.name}.png"
        with Image.open(path) as image:
            image.load()
            return image


def words(picture: Picture) -> tuple[str, str, str]:
    """Returns the words of a picture; each part is there, and caption and alt are sentences."""
    assert picture.title
    assert picture.caption.endswith(".")
    assert picture.alt.endswith(".")
    return picture.title, picture.caption, picture.alt
