"""Faults 2, 5 and 9: writes that fail. A valid checkpoint is always left, and the run goes on."""

import errno
import io
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest import mock

import numpy as np

from helpers.faults import harness
from kerasnorm.errors import CorruptFileError, KerasnormError
from kerasnorm.training import checkpoints, run_folder


def fail(_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def save(folder, epoch):
    facts = {"epoch": epoch, "is_best": epoch == 1}
    return checkpoints.save(folder, harness.state_of(epoch), facts)


def saving_in_place(folder, state, facts):
    """A way of saving that tests must refuse: straight into the checkpoint's own folder."""
    final = folder / f"epoch-{facts['epoch']:03d}"
    archive = io.BytesIO()
    np.savez(archive, **state)
    files = {checkpoints.STATE: archive.getvalue(), checkpoints.FACTS: checkpoints.as_json(facts)}
    checkpoints._write(final, files)
    return final


def check_left(folder, newest):
    """Says what is wrong with a checkpoints folder: nothing valid, a half one, or litter."""
    wrong = []
    for path in checkpoints.checkpoint_folders(folder):
        try:
            checkpoints.load(path)
        except CorruptFileError:
            wrong.append(f"{path.name} is damaged")
    try:
        if checkpoints.load_newest(folder)[1]["epoch"] < newest:
            wrong.append("an older checkpoint than there was")
    except CorruptFileError:
        wrong.append("no checkpoint")
    return wrong


def each_event_of_a_save(how=checkpoints.save):
    """Saves after three saves, each write, fsync and rename failing in turn.

    Returns:
        How many events there are, and how many left something wrong, or litter.
    """
    with tempfile.TemporaryDirectory() as name, mock.patch.object(checkpoints, "save", how):
        counted, at, wrong = None, 0, []
        while counted is None or at < counted:
            folder = Path(name) / str(at)
            folder.mkdir()
            for epoch in (1, 2, 3):
                save(folder, epoch)
            events = harness.Events(at if counted is not None else -1, fail)
            with suppress(KerasnormError, OSError), events.watched():
                save(folder, 4)
            if counted is None:
                counted, at = events.count, -1
            else:
                wrong += check_left(folder, 3)
                wrong += [f"litter {path.name}" for path in folder.glob(".*")
                          if not path.name.endswith(".old.tmp")]  # fmt: skip
            at += 1
            shutil.rmtree(folder)
    return {"events": counted, "wrong": len(wrong), "what": sorted(set(wrong))}


def each_event_of_a_run(wanted, every=1):
    """Trains runs in which every write, fsync and rename fails in turn, and goes on with them."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        with harness.Events().watched() as events:
            harness.fit(home / "straight", wanted)
        expected = harness.result(home / "straight")
        tried = wrong = unclear = 0
        for at in range(0, events.count, every):
            folder = home / str(at)
            with harness.Events(at, fail).watched():
                try:
                    harness.fit(folder, wanted)
                except KerasnormError as error:
                    unclear += error.exit_code != 6
                except OSError as error:
                    unclear += error.filename is None and error.strerror is None
            if (folder / run_folder.CHECKPOINTS).is_dir():
                wrong += any(
                    "damaged" in text for text in check_left(folder / run_folder.CHECKPOINTS, 0)
                )
            harness.fit(folder, wanted)
            wrong += harness.result(folder) != expected
            tried += 1
            shutil.rmtree(folder)
    return {"events": events.count, "tried": tried, "wrong": wrong, "unclear": unclear}


@contextmanager
def small_disk(kilobytes):
    """A folder on a file system of this size, None where this user may not mount one.

    Yields:
        The folder, and what gives it another size.
    """

    def mount(kilobytes, *more):
        size = f"size={kilobytes}k"
        command = ["mount", "-t", "tmpfs", "-o", ",".join([size, *more]), "tmpfs", name]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    with tempfile.TemporaryDirectory() as name:
        try:
            is_mounted = mount(kilobytes)
        except OSError:
            is_mounted = False
        if not is_mounted:
            yield None, None
            return
        try:
            yield Path(name), lambda kilobytes: mount(kilobytes, "remount")
        finally:
            subprocess.run(["umount", name], check=True)


def full_disk(sizes):
    """Trains on disks of several sizes, in kB, then makes room and goes on.

    Returns:
        How many sizes; at how many the run ended, and at how many it was the final model that had
        no room; at how many the message names path and need; how many left litter or a damaged
        checkpoint; how many ended otherwise than an undisturbed run once there was room. None where
        no disk can be made.
    """
    found = dict.fromkeys(("sizes", "ended", "final", "clear", "wrong", "different"), 0)
    # A checkpoint of some 230 kB.
    wanted = harness.options("auto", widths=[16] * 10, norm="gn")
    with tempfile.TemporaryDirectory() as name:
        harness.fit(Path(name) / "straight", wanted)
        expected = harness.result(Path(name) / "straight")
    for size in sizes:
        with small_disk(size) as (disk, resize):
            if disk is None:
                return None
            folder = disk / "run"
            found["sizes"] += 1
            try:
                harness.fit(folder, wanted)
                found["ended"] += 1
            except KerasnormError as error:
                text = str(error)
                found["final"] += run_folder.MODEL in text
                is_clear = str(disk) in text and "It needs" in text and "No space left" in text
                found["clear"] += is_clear
            if checkpoints.checkpoint_folders(folder / run_folder.CHECKPOINTS):
                found["wrong"] += bool(check_left(folder / run_folder.CHECKPOINTS, 1))
            found["wrong"] += any(path.name != ".lock" for path in disk.rglob(".*"))
            resize(8 * 1024)
            harness.fit(folder, wanted)
            found["different"] += harness.result(folder) != expected
    return found
