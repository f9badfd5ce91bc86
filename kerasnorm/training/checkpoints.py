"""Checkpoints of a run: written whole or not at all, checked when read, pruned to three.

A checkpoint is a folder `epoch-NNN` with the arrays, the facts, and a manifest with the SHA-256 of
both. It is written under a temporary name, made durable, and renamed. The last two are kept, and
the best.
"""

import io
import json
import logging
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kerasnorm.errors import CorruptFileError, RunFolderError
from kerasnorm.files import (
    MANIFEST,
    as_json,
    digest,
    fsync_folder,
    make_folder,
    read_manifest,
    unwritable,
    write_bytes,
    write_json,
)

logger = logging.getLogger(__name__)
STATE = "state.npz"
FACTS = "facts.json"
KEEP_LAST = 2

State = dict[str, NDArray[Any]]


def checkpoint_folders(folder: Path) -> list[Path]:
    """Returns the checkpoints under `folder`, the oldest first."""
    found = [path for path in folder.glob("epoch-*") if re.fullmatch(r"epoch-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def save(folder: Path, state: State, facts: Mapping[str, Any]) -> Path:
    """Writes a checkpoint and removes those that are no longer kept.

    The facts are JSON-able: `epoch`, the number of finished epochs, names the checkpoint, and
    `is_best` says whether it is the best so far.

    Raises:
        RunFolderError: It cannot be written; the checkpoints before it are untouched.
    """
    archive = io.BytesIO()
    np.savez(archive, **state)  # type: ignore[arg-type]  # no array is named allow_pickle
    files = {STATE: archive.getvalue(), FACTS: as_json(dict(facts))}
    final = folder / f"epoch-{facts['epoch']:03d}"
    temporary = folder / f".{final.name}.tmp"
    need = sum(map(len, files.values()))
    try:
        make_folder(folder)
        _write(temporary, files)
        _discard(final)  # it exists if it was damaged, or an older one was resumed
        temporary.rename(final)
        fsync_folder(folder)
        _prune(folder, final)
    except RunFolderError:
        raise
    except OSError as error:
        raise unwritable(final, error, need) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        write_bytes(folder / name, content)
    write_json(folder / MANIFEST, {"sha256": {name: digest(files[name]) for name in files}})


def _discard(path: Path) -> None:
    """Removes a checkpoint; it is renamed first, so that no half of it ever has its name."""
    if path.exists():
        trash = path.with_name(f".{path.name}.old.tmp")
        shutil.rmtree(trash, ignore_errors=True)
        path.rename(trash)
        shutil.rmtree(trash)


def _prune(folder: Path, newest: Path) -> None:
    """Removes the checkpoints that are not kept.

    A damaged one of a later epoch than `newest`, which has been trained again, must not count among
    the last ones.
    """
    folders = checkpoint_folders(folder)
    for path in folders[folders.index(newest) + 1 :]:
        try:
            load(path)
        except CorruptFileError:
            _discard(path)
            folders.remove(path)
    best = []
    for path in folders:
        with suppress(CorruptFileError):
            best += [path] if _facts(path).get("is_best") else []
    for path in set(folders) - set(folders[-KEEP_LAST:]) - set(best[-1:]):
        _discard(path)


def _damaged(path: Path, why: object) -> CorruptFileError:
    return CorruptFileError(f"The checkpoint {path} is damaged: {why}.")


def _content(path: Path, name: str) -> bytes:
    try:
        content = (path / name).read_bytes()
    except OSError as error:
        raise _damaged(path, error) from None
    if digest(content) != read_manifest(path).get(name):
        raise _damaged(path, f"the checksum of {name} differs")
    return content


def _facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(_content(path, FACTS))
    if path.name != f"epoch-{facts['epoch']:03d}":
        raise _damaged(path, f"it is the one of epoch {facts['epoch']}")
    return facts


def load(path: Path) -> tuple[State, dict[str, Any]]:
    """Returns the state and the facts of a checkpoint.

    Raises:
        CorruptFileError: A file is missing or its checksum differs.
    """
    facts = _facts(path)
    with np.load(io.BytesIO(_content(path, STATE)), allow_pickle=False) as archive:
        return dict(archive), facts


def load_newest(folder: Path) -> tuple[State, dict[str, Any]]:
    """Returns the newest checkpoint that is whole; a warning is logged for each damaged one.

    Raises:
        CorruptFileError: No checkpoint is whole.
    """
    for path in reversed(checkpoint_folders(folder)):
        try:
            return load(path)
        except CorruptFileError as error:
            logger.warning(f"{error} Trying the one before.")
    raise CorruptFileError(f"There is no checkpoint to resume from in {folder}.")
