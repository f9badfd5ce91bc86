"""Checkpoints of a run: whole or not there, checked when read, the last two and the best kept."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm.errors import CorruptFileError
from kerasnorm.files import atomic_writer, fsync_folder, sha256, write_json

STATE = "state.npz"
MANIFEST = "manifest.json"
KEEP_LAST = 2

State = dict[str, NDArray[Any]]


def checkpoint_folders(folder: Path) -> list[Path]:
    """Returns the checkpoints under `folder`, the oldest first."""
    found = [path for path in folder.glob("epoch-*") if re.fullmatch(r"epoch-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def save(folder: Path, state: State, facts: Mapping[str, Any]) -> Path:
    """Writes a checkpoint and removes those that are no longer kept.

    Args:
        folder: The run's `checkpoints` folder.
        state: What the engine's `state` returned.
        facts: JSON-able; `epoch` (epochs done) names the checkpoint, `is_best` says whether it
            is the best so far.
    """
    final = folder / f"epoch-{facts['epoch']:03d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        with atomic_writer(temporary / STATE) as file:
            np.savez(file, **state)  # type: ignore[arg-type]  # no array is named allow_pickle
        manifest = dict(facts) | {"sha256": {STATE: sha256(temporary / STATE)}}
        write_json(temporary / MANIFEST, manifest)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    fsync_folder(folder)
    _prune(folder)
    return final


def _prune(folder: Path) -> None:
    folders = checkpoint_folders(folder)
    best = [path for path in folders if _is_best(path)]
    for path in set(folders) - set(folders[-KEEP_LAST:]) - set(best[-1:]):
        shutil.rmtree(path)


def _is_best(path: Path) -> bool:
    try:
        return bool(_manifest(path).get("is_best"))
    except CorruptFileError:
        return False


def _manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptFileError(f"The checkpoint {path} is damaged: {error}") from None
    if not isinstance(manifest, dict):
        raise CorruptFileError(f"The checkpoint {path} is damaged: no manifest")
    return manifest


def load(path: Path) -> tuple[State, dict[str, Any]]:
    """Returns the state and the facts of a checkpoint.

    Raises:
        CorruptFileError: A file is missing or its checksum differs.
    """
    manifest = _manifest(path)
    try:
        matches = sha256(path / STATE) == manifest["sha256"][STATE]
    except (OSError, KeyError, TypeError) as error:
        raise CorruptFileError(f"The checkpoint {path} is damaged: {error}") from None
    if not matches:
        raise CorruptFileError(f"The checkpoint {path} is damaged: its checksum differs.")
    with np.load(path / STATE, allow_pickle=False) as archive:
        return dict(archive), manifest


def load_newest(folder: Path, note: Callable[[str], None]) -> tuple[State, dict[str, Any]]:
    """Returns the newest checkpoint that is whole, saying through `note` what was passed over.

    Raises:
        CorruptFileError: There is none.
    """
    for path in reversed(checkpoint_folders(folder)):
        try:
            return load(path)
        except CorruptFileError as error:
            note(f"{error} Trying the one before.")
    raise CorruptFileError(f"There is no checkpoint to resume from in {folder}.")
