"""Fault 4: truncated files and flipped bits are found, or harmless; never a wrong result."""

import contextlib
import random
import tempfile
from pathlib import Path

import keras

from helpers import tiny
from helpers.faults import harness
from kerasnorm.data.shapes import shapes
from kerasnorm.errors import KerasnormError
from kerasnorm.formats.archive import open_model
from kerasnorm.inspection.evaluation import predict, score
from kerasnorm.training import run


class Stop(keras.callbacks.Callback):
    """Interrupts a run after some epochs."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.after:
            raise KeyboardInterrupt


def harm(path, kind, rng):
    """Flips one bit of a file, or cuts off its end."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    if kind == "flip":
        content[place] ^= 1 << rng.randrange(8)
    else:
        del content[place:]
    path.write_bytes(content)


def read(folder):
    """All that a user gets from a finished run: its numbers, and its model's answers."""
    done = run.Run.load(folder)
    saved = open_model(folder)
    split = shapes(60, 20).test
    scores = score(predict(saved.model, split.images), split.labels)
    return done.config, done.history, done.metrics, tuple(scores), saved.class_names


def go_on(folder):
    """Resumes a run, and returns what it computed."""
    tiny.train(resume=folder)
    return harness.result(folder)


def outcomes(source, act, damages, seed, expected):
    """Counts what `act` gives on copies of a run's folder, each with one file damaged."""
    rng = random.Random(seed)
    counts = {"refused": 0, "harmless": 0, "wrong": 0, "traceback": 0}
    paths = sorted(p for p in source.rglob("*") if p.is_file() and p.stat().st_size)
    rng.shuffle(paths)  # else few damages would meet checkpoints alone
    with tempfile.TemporaryDirectory() as name:
        for number, kind in enumerate(damages):
            folder = harness.copy(source, Path(name) / "run")
            victim = paths[number % len(paths)]
            harm(folder / victim.relative_to(source), kind, rng)
            try:
                counts["harmless" if act(folder) == expected else "wrong"] += 1
            except KerasnormError:
                counts["refused"] += 1
            except Exception:
                counts["traceback"] += 1
    return counts


def damaged(truncations, flips, seed=0):
    """Damages a finished run, which is read, and an interrupted one, which goes on."""
    damages = ["cut"] * truncations + ["flip"] * flips
    wanted = harness.options("auto")
    with tempfile.TemporaryDirectory() as name:
        finished, broken = Path(name) / "finished", Path(name) / "broken"
        tiny.train(out=finished, **wanted)
        with contextlib.suppress(KeyboardInterrupt):
            tiny.train(out=broken, callbacks=[Stop(2)], **wanted)
        half = len(damages) // 2
        order = random.Random(seed).sample(damages, len(damages))
        expected = harness.result(finished)
        return {
            "read": outcomes(finished, read, order[:half], seed + 1, read(finished)),
            "resumed": outcomes(broken, go_on, order[half:], seed + 2, expected),
        }
