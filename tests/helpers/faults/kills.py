"""Faults 1, 3 and 9: a run killed at any time, or often, ends as one that never was.

Alone: `python -m helpers.faults.kills BACKEND RUNS TIMES [MUTATION]` prints JSON; each backend
needs a process of its own.
"""

import json
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np

from helpers.faults import harness

MUTATIONS = ("generator", "optimizer")


def mutate(name):
    """Breaks resuming in a way that the test of kills must notice."""
    from kerasnorm.data import augment, batches
    from kerasnorm.engines.base import Engine

    if name == "generator":  # one running generator, which no checkpoint holds
        running = np.random.Generator(np.random.PCG64(0))
        batches.generator = augment.generator = lambda *key: running
    else:
        load = Engine.load_state

        def forget(engine, state):
            fresh = engine.state()
            load(engine, {k: fresh[k] if k.startswith("optimizer") else state[k] for k in state})

        Engine.load_state = forget


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def killed_while_saving(folder, wanted, at):
    """Starts or goes on with a run, killed at its write, fsync or rename number `at`."""

    def work():
        with harness.Events(at, die).watched():
            harness.fit(folder, wanted)

    return harness.wait(harness.fork(work)) == -signal.SIGKILL


def count_events(folder, wanted):
    """How many writes, fsyncs and renames a run makes."""
    read, write = os.pipe()

    def work():
        with harness.Events().watched() as events:
            harness.fit(folder, wanted)
        os.write(write, str(events.count).encode())

    harness.wait(harness.fork(work))
    return int(os.read(read, 20))


def kill_once(backend, count, seed=0):
    """Kills `count` runs once each, every other one while it saves, and lets them go on.

    Returns:
        How many were killed (of them while saving), and how many ended otherwise than the
        undisturbed run.
    """
    rng, wanted = random.Random(seed), harness.options(backend)
    killed = saving = different = 0
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        expected, seconds = harness.straight(home / "straight", wanted)
        events = count_events(home / "counted", wanted)
        for number in range(count):
            folder = home / f"run{number}"
            if number % 2:
                hit = killed_while_saving(folder, wanted, rng.randrange(events))
                saving += hit
            else:
                child = harness.fork(lambda folder=folder: harness.fit(folder, wanted))
                hit = harness.kill_after(child, rng.uniform(0, seconds))
            killed += hit
            assert (
                harness.wait(harness.fork(lambda folder=folder: harness.fit(folder, wanted))) == 0
            )
            different += harness.result(folder) != expected
    return {"runs": count, "killed": killed, "while_saving": saving, "different": different}


def kill_often(backend, times, seed=0):
    """Kills one run again and again at random writes until it was hit `times` times."""
    rng = random.Random(seed)
    wanted = harness.options(backend, epochs=times // 2)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        expected, _ = harness.straight(home / "straight", wanted)
        hits = 0
        while hits < times:
            hits += killed_while_saving(home / "run", wanted, rng.randrange(4, 40))
            if (home / "run" / "metrics.json").is_file():
                break
        assert harness.wait(harness.fork(lambda: harness.fit(home / "run", wanted))) == 0
        return {"interruptions": hits, "different": int(harness.result(home / "run") != expected)}


def main():
    """Prints the figures of one backend."""
    backend, runs, times, *mutation = sys.argv[1:]
    os.environ["KERAS_BACKEND"] = backend
    import keras  # noqa: F401  (before any fork)

    import kerasnorm.training.loop  # noqa: F401
    from kerasnorm.engines import choice  # noqa: F401
    from kerasnorm.formats import archive  # noqa: F401

    if backend == "torch":
        from kerasnorm.engines.torch import engine as torch_engine  # noqa: F401
    else:
        from kerasnorm.engines.tensorflow import engine as tensorflow_engine  # noqa: F401
    if mutation:
        mutate(mutation[0])
    figures = {"once": kill_once(backend, int(runs))}
    if int(times):
        figures["often"] = kill_often(backend, int(times))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
