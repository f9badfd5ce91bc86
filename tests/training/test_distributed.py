"""Several processes or devices compute what one does; a job that loses a process can go on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import tiny
from helpers.averaging import Averaging
from helpers.workers import ranks_of_torchrun, tf_configs

from kerasnorm.errors import ConfigError
from kerasnorm.norms import NORMS, Norm
from kerasnorm.process_group import ProcessGroup, shard_of, this_launch
from kerasnorm.runtime import installed_backends
from kerasnorm.training.fit import make_batches, make_engine

HERE = Path(__file__).parents[1]
STEPS = str(HERE / "helpers" / "steps.py")
STEPS_MODULE = ("-m", "helpers.steps")
TRAINED = ("bn", "gn", "ln")
AVERAGING = Norm(
    name="averaging",
    layer=lambda config, channels, **common: Averaging((channels,), **common),
    color="#F0E442",
    groups=lambda config, channels: channels,
    axes=(0, 1, 2, 4),
)
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
ENVIRONMENT = os.environ | {
    "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def launch(*words, backend, **environment):
    environment = ENVIRONMENT | {"KERAS_BACKEND": backend} | environment
    return subprocess.Popen(
        [*map(str, words)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


def run(*words, backend):
    process = launch(*words, backend=backend)
    _, said = process.communicate()
    assert process.returncode == 0, said


def needs(backend):
    if backend not in installed_backends():
        pytest.skip(f"{backend} is not installed")


def farthest(alone, together):
    """The largest difference of any loss, weight, statistic or logit, for each norm."""
    with np.load(alone) as first, np.load(together) as second:
        assert first.keys() == second.keys()
        gaps = {name: float(np.abs(first[name] - second[name]).max()) for name in first}
    return {norm: max(gap for k, gap in gaps.items() if k.startswith(norm)) for norm in TRAINED}


def assert_equal(alone, together):
    gaps = farthest(alone, together)
    assert max(gaps.values()) < 1e-4, gaps


@pytest.mark.parametrize("batch", [1, 3, 4, 7, 64])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_the_parts_make_up_the_batch(batch, size):
    shards = [shard_of(batch, rank, size) for rank in range(size)]
    assert sum(shard.count for shard in shards) == shards[0].total
    images = [i for shard in shards for i in range(batch)[shard.slice]]
    assert images == list(range(batch)) * (size if batch < size else 1)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["none", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_on_torch_compute_what_one_does(tmp_path, launcher):
    """Processes with the variables that torchrun sets, and those that torchrun starts."""
    needs("torch")
    alone, together = tmp_path / "alone.npz", tmp_path / "together.npz"
    run(sys.executable, *STEPS_MODULE, alone, 1, "{}", *TRAINED, backend="torch")
    if launcher == "torchrun":
        run(*TORCHRUN, STEPS, together, 1, "{}", *TRAINED, backend="torch")
    else:
        words = (sys.executable, *STEPS_MODULE, together, 1, "{}", *TRAINED)
        ranks = [launch(*words, backend="torch", **place) for place in ranks_of_torchrun(2)]
        said = [rank.communicate()[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [0, 0], said
    assert_equal(alone, together)


@pytest.mark.slow
def test_without_bn_sync_each_process_has_statistics_of_its_own(tmp_path):
    needs("torch")
    plain = {"dropout": 0, "l2": 0, "momentum": 0, "weight_decay": 0, "schedule": "constant"}
    halves, apart, synced = (tmp_path / f"{name}.npz" for name in ("halves", "apart", "synced"))
    run(sys.executable, STEPS, halves, 0, json.dumps(plain), "bn", backend="torch")
    options = json.dumps(plain | {"bn_sync": "off"})
    run(*TORCHRUN, STEPS, apart, 1, options, "bn", "gn", backend="torch")
    run(*TORCHRUN, STEPS, synced, 1, json.dumps(plain), "bn", "gn", backend="torch")
    with np.load(halves) as truth, np.load(apart) as off, np.load(synced) as on:
        kernels = [name for name in truth if truth[name].ndim == 4]
        assert len(kernels) == 11
        for name in kernels:
            assert np.allclose(truth[name], off[name], atol=1e-5)
            assert not np.allclose(on[name], off[name], atol=1e-5)
        assert all(np.array_equal(on[name], off[name]) for name in on if name.startswith("gn"))


class Pair(ProcessGroup):
    """This process, with another one whose tensors are all 1."""

    size = 2

    def sum_(self, tensor):
        return tensor.add_(1)


@pytest.mark.backend("any")
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("norm", ["bn", "averaging"])
def test_a_norm_over_shards_instead_of_the_batch_is_noted_once(norm, size, monkeypatch, caplog):
    monkeypatch.setitem(NORMS, "averaging", AVERAGING)
    group = Pair() if size == 2 else ProcessGroup()
    make_engine(tiny.config(norm=norm), tiny.dataset(), group)
    notes = [note.message for note in caplog.records if "own shard" in note.message]
    assert len(notes) == (1 if norm == "averaging" and size == 2 else 0)


@pytest.mark.backend("torch")
@pytest.mark.parametrize(
    ("norm", "bn_sync", "mean"), [("bn", "on", 0), ("bn", "off", 0.5), ("averaging", "on", 0.5)]
)
def test_moving_statistics_that_differ_are_averaged(norm, bn_sync, mean, monkeypatch):
    monkeypatch.setitem(NORMS, "averaging", AVERAGING)
    engine = make_engine(tiny.config(norm=norm, bn_sync=bn_sync), tiny.dataset(), Pair())
    engine.end_epoch()
    found = {v.name: v.numpy() for v in engine.model.non_trainable_variables}
    np.testing.assert_array_equal(found["moving_mean"], [mean] * 4)
    np.testing.assert_array_equal(found["moving_variance"], [1] * 4)


UNSYNCHRONIZED = {
    "another axis": lambda: keras.layers.BatchNormalization(axis=1),
    "in a layer": lambda: keras.layers.TimeDistributed(keras.layers.BatchNormalization()),
}


@pytest.mark.backend("torch")
@pytest.mark.parametrize("bn_sync", ["on", "off"])
@pytest.mark.parametrize("kind", [*UNSYNCHRONIZED, "images", "features", "frozen"])
def test_batch_norms_that_cannot_be_synchronized_are_named_and_averaged(kind, bn_sync, caplog):
    from kerasnorm.engines.torch.engine import TorchEngine

    config, data, stock = tiny.config(bn_sync=bn_sync), tiny.dataset(), keras.layers
    norm = UNSYNCHRONIZED.get(kind, stock.BatchNormalization)()
    norm.trainable = kind != "frozen"
    parts = [norm, stock.Flatten()]
    parts = parts[::-1] if kind == "features" else parts
    model = keras.Sequential([keras.Input(data.image_shape), *parts, stock.Dense(10)])
    engine = TorchEngine(model, make_batches(config, data), config.train, Pair())
    is_named = kind in UNSYNCHRONIZED and bn_sync == "on"
    assert ("not synchronized" in caplog.text) == is_named
    engine.end_epoch()
    means = [v.numpy() for v in model.non_trainable_variables if v.name == "moving_mean"]
    is_averaged = kind in UNSYNCHRONIZED or bn_sync == "off"
    assert np.unique(means) == 0.5 * is_averaged


@pytest.mark.slow
def test_two_devices_and_two_workers_on_tensorflow_compute_what_one_does(tmp_path):
    needs("tensorflow")
    files = [tmp_path / f"{name}.npz" for name in ("alone", "devices", "workers", "unused")]
    run(sys.executable, STEPS, files[0], 1, "{}", *TRAINED, backend="tensorflow")
    run(sys.executable, STEPS, files[1], 2, "{}", *TRAINED, backend="tensorflow")
    assert_equal(*files[:2])
    workers = two_workers(lambda index: (STEPS, files[2 + index], 1, "{}", *TRAINED))
    said = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert_equal(files[0], files[2])
    assert not files[3].exists()


def two_workers(words):
    """Starts two workers of TensorFlow, with the words that `words` gives for each number."""
    return [
        launch(sys.executable, *words(index), backend="tensorflow", TF_CONFIG=text)
        for index, text in enumerate(tf_configs(2))
    ]


def fit(folder, epochs, backend="torch"):
    return [
        "-m", "kerasnorm", "fit", "--backend", backend, "--device", "cpu", "--data", "shapes",
        "--train-size", 80, "--test-size", 20, "--epochs", epochs, "--batch-size", 8, "--widths",
        "4,4,4,4,4,4,4,4,4,4", "--schedule", "constant", "--out", folder, "--resume", "auto",
    ]  # fmt: skip


def children(process):
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(number) for number in path.read_text().split()]


def wait_for(path):
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_a_killed_rank_ends_the_job_which_goes_on(tmp_path):
    folder = tmp_path / "run"
    process = launch(*TORCHRUN, *fit(folder, 5000), backend="torch")
    wait_for(folder / "checkpoints" / "epoch-002")
    os.kill(children(process)[-1], signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Another process of this job has ended" in said or "kerasnorm: terminated" in said
    done = max(int(path.name[-3:]) for path in (folder / "checkpoints").glob("epoch-*"))
    process = launch(*TORCHRUN, *fit(folder, done + 5001), backend="torch")
    wait_for(folder / "checkpoints" / f"epoch-{done + 2:03d}")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert f"after epoch {done}." in said
    assert "Stopped. Resume with" in said


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_ends_the_job_which_goes_on(tmp_path, victim):
    needs("tensorflow")
    folder = tmp_path / "run"
    workers = two_workers(lambda _: fit(folder, 5000, "tensorflow"))
    wait_for(folder / "checkpoints" / "epoch-002")
    workers[victim].kill()
    said = [worker.communicate(timeout=120)[1] for worker in workers]
    assert workers[1 - victim].returncode == 1
    assert "Another process of this job has ended" in said[1 - victim]
    done = max(int(path.name[-3:]) for path in (folder / "checkpoints").glob("epoch-*"))
    workers = two_workers(lambda _: fit(folder, 5000, "tensorflow"))
    wait_for(folder / "checkpoints" / f"epoch-{done + 2:03d}")
    for worker in workers:
        worker.terminate()
    said = [worker.communicate(timeout=120)[1] for worker in workers]
    assert f"after epoch {done}." in said[0]
    assert "Stopped. Resume with" in said[0], said


@pytest.mark.slow
def test_torchrun_starts_a_job_anew_from_its_checkpoint(tmp_path):
    folder = tmp_path / "run"
    words = (*TORCHRUN, "--max-restarts", 1, *fit(folder, 300))
    process = launch(*words, backend="torch")
    wait_for(folder / "checkpoints" / "epoch-002")
    os.kill(children(process)[0], signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "Resuming" in said
    assert (folder / "model.keras").is_file()


def test_a_damaged_tf_config_is_refused(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {}}')
    with pytest.raises(ConfigError, match="TF_CONFIG"):
        this_launch()


def test_devices_on_torch_are_refused_with_the_line_that_works():
    process = launch(
        sys.executable, "-m", "kerasnorm", "fit", "--devices", "2", "--backend", "torch", "--data",
        "shapes", backend="torch",
    )  # fmt: skip
    _, said = process.communicate()
    assert process.returncode == 2
    assert "torchrun --nproc-per-node 2" in said
