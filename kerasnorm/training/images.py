"""The images that a saved model is judged on, labelled as it numbers its classes."""

import dataclasses
import logging
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm.config import DataConfig
from kerasnorm.data import Dataset, Split, prepare
from kerasnorm.data.content import SHOWN
from kerasnorm.data.dataset import joined
from kerasnorm.errors import ConfigError, DataError, listed
from kerasnorm.training.run_folder import check_place, is_run, read_config, read_content

if TYPE_CHECKING:
    from kerasnorm.formats.archive import SavedModel
    from kerasnorm.formats.exported import ExportedModel

logger = logging.getLogger(__name__)


def images_of(
    saved: "ExportedModel | SavedModel",
    data: str | None,
    split: str,
    resize: str | None = None,
    **options: Any,
) -> Split:
    """Returns the images of one split, or of "all", as `splits_of` does."""
    return splits_of(saved, data, (split,), resize, **options)[0]


def splits_of(
    saved: "ExportedModel | SavedModel",
    data: str | None,
    names: Sequence[str],
    resize: str | None = None,
    *,
    equalized: bool = True,
    count: int = 0,
    sample_seed: int = 0,
) -> list[Split]:
    """Returns images to evaluate a model on, labelled by the classes in the model's order.

    Args:
        saved: The model.
        data: What `--data` says; by default the model's own.
        names: Names of the splits, or "all".
        resize: How images of another size are resized, as `--resize` says; by default as when the
            model was trained, which may be not at all.
        equalized: Whether histograms are equalized for a model that expects it.
        count: Number of images to draw, the same share of each class; 0 uses all. They are the same
            for every model, in whatever order it has the classes.
        sample_seed: Decides which images are drawn.

    Raises:
        ConfigError: Neither the model nor `data` names the images.
        DataError: The images do not fit the model, the classes have other names, or there is no
            such split.
    """
    seed = saved.config.train.seed if saved.config else 0
    # An exported model lies in a folder of its run.
    home = next((folder for folder in saved.path.parents[:2] if is_run(folder)), None)
    known = None
    if data is not None or saved.config is None:
        if data is None:
            raise ConfigError(f"{saved.path} does not name its training data. Use --data.")
        preprocessing = "equalize" if saved.wants_equalized else "none"
        config = DataConfig(data=data, preprocessing=preprocessing)
    else:
        config = saved.config.data
        if home is not None:  # its config follows data that were moved
            config = dataclasses.replace(config, data=read_config(home).data.data)
            known = read_content(home) if resize is None else None
        check_place(home or saved.path, config)
    if not equalized:
        config = dataclasses.replace(config, preprocessing="none")
    if resize or (saved.config and saved.config.data.image_size):
        size, resize = saved.image_shape[:2], resize_of(saved, resize)
        config = dataclasses.replace(config, image_size=size, resize=resize)
    dataset = prepare(config, seed, needs_test="test" in names)
    if known is not None and (differences := known.differences(dataset.content)):
        logger.warning(
            f"{dataset.source} has changed since {home} was trained on it: "
            f"{'; '.join(differences)}."
        )
    if dataset.image_shape != saved.image_shape:
        advice = "Images of another height or width are resized with --resize stretch, crop or pad"
        if dataset.image_shape[2] != saved.image_shape[2]:
            advice = "Convert them to its number of channels, which --resize leaves as it is"
        raise DataError(
            f"{saved.path}: expected images of shape {saved.image_shape}. Received: "
            f"{dataset.image_shape} in {dataset.source}. {advice}."
        )
    order = _class_order(saved, dataset)
    found = []
    for name in names:
        if name != "all" and name not in dataset.splits:
            raise DataError("There is no validation split. Use --split test, train or all.")
        chosen = joined(dataset.splits.values()) if name == "all" else dataset.splits[name]
        chosen = chosen.sample(count or len(chosen), sample_seed)
        found.append(dataclasses.replace(chosen, labels=order[chosen.labels]))
    return found


def resize_of(saved: "ExportedModel | SavedModel", given: str | None) -> str:
    """Returns how images are brought to a model's size: as asked for, or as it was trained."""
    return given or (saved.config.data.resize if saved.config else "stretch")


def _class_order(saved: "ExportedModel | SavedModel", dataset: Dataset) -> NDArray[np.int32]:
    """Returns the model's index of each class of the data, matched by name.

    Where only one of the two names its classes, and the other numbers them, numbers decide.
    """
    # One name may be spelled with composed or with combining characters, by its file system.
    ours, theirs = (
        [unicodedata.normalize("NFC", name) for name in names]
        for names in (saved.class_names, dataset.class_names)
    )
    numbers = [str(number) for number in range(len(ours))]
    if len(ours) == len(theirs) and ours != theirs and numbers in (ours, theirs):
        which = saved.path if ours == numbers else dataset.source
        logger.warning(f"{which} numbers its classes; they are matched by their order.")
        ours = theirs
    if sorted(ours) != sorted(theirs):
        raise DataError(
            f"{saved.path}: expected its {len(ours)} classes {listed(ours, SHOWN)}. Received: "
            f"{dataset.source} with {len(theirs)} classes {listed(theirs, SHOWN)}. "
            f"Only in the model: {listed([n for n in ours if n not in theirs], SHOWN)}; "
            f"only in the data: {listed([n for n in theirs if n not in ours], SHOWN)}"
        )
    return np.array(
        [ours.index(name) for name in theirs] if ours != theirs else range(len(ours)), np.int32
    )
