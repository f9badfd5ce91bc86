"""Contenders in processes of their own: rates come back, and a dead one is told of."""

import json
import os
import subprocess
import sys

import pytest
from helpers import tiny
from helpers.command import call

from kerasnorm.benchmark import worker
from kerasnorm.benchmark.race import paired_ratio, race
from kerasnorm.errors import ConfigError
from kerasnorm.training.fit import make_engine


def bench(*words):
    return subprocess.run(
        [sys.executable, "-m", "kerasnorm", "bench", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"KERAS_BACKEND": "torch"},
    )


def test_ratios_are_paired_round_by_round():
    assert paired_ratio([10, 30, 20], [5, 10, 20]) == 2


def test_a_race_gives_a_rate_a_round_and_tells_who_gave_up(caplog):
    config = tiny.config(norm="rms", backend="torch", batch_size=10)
    results = race(config, ("loop", "native"), 20, 2)
    assert [result.contender for result in results] == ["native"]
    assert len(results[0].train) == len(results[0].predict) == 2
    assert min(results[0].train) > 0
    assert 0 < results[0].first_step < 600
    assert results[0].peak_mib > 50
    notes = caplog.messages
    assert notes == ["The contender loop failed: " + notes[0].partition("failed: ")[2]]
    assert "rms" in notes[0]


def test_bench_writes_table_chart_and_numbers(tmp_path):
    words = ("--norm", "gn", "--images", "20", "--batch-size", "10", "--rounds", "1", "--json")
    chosen = ("--backend", "torch", "--contender", "loop-channels-last", "--contender", "native")
    done = bench(*words, *chosen, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "bench.json").read_text())
    assert [r["contender"] for r in document["results"]] == ["loop-channels-last", "native"]
    assert document["host"]["cpus"] > 0
    assert "native/this" in (tmp_path / "bench.txt").read_text()
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_bad_input_is_refused():
    for words in (("--images", "20", "--batch-size", "21"), ("--contender", "nobody")):
        done = bench(*words)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert "Received" in done.stderr or "Unknown contender" in done.stderr


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--contender", "loop", "--network", "keras:VGG16"), "None of loop races on torch"),
        (("--network", "missing.keras"), "no model file missing.keras"),
        (("--network", "missing.py:build"), "no such file"),
        (("--norm", "rms", "--contender", "loop"), "norm='rms'"),
    ],
)
def test_a_race_without_contenders_is_an_error(words, reason, tmp_path):
    small = (
        "--images",
        "20",
        "--batch-size",
        "10",
        "--backend",
        "torch",
        "--out",
        tmp_path / "out",
    )
    out, err = call("bench", *words, *small, "--json", code=1)
    assert (out, (tmp_path / "out").exists()) == ("", False)
    assert reason in err
    assert "No contender has raced" in err


@pytest.mark.parametrize(("batch_size", "together"), [(2, 32), (32, 32), (48, 48)])
def test_keras_predicts_in_batches_of_its_own_size_at_least(batch_size, together):
    engine = make_engine(tiny.config(engine="keras", batch_size=batch_size), tiny.dataset())
    sizes = []
    engine.model.predict = lambda images, batch_size, verbose: sizes.append(batch_size)
    _, predict = worker._stock(
        engine.model, engine.batches, tiny.config(batch_size=batch_size), worker._FirstStep(0.0)
    )
    predict(0)
    assert sizes == [together]


@pytest.mark.parametrize("name", ["loop", "loop-channels-last", "loop-compiled"])
def test_a_loop_computes_on_the_device_that_the_config_names(name, monkeypatch):
    torch = pytest.importorskip("torch")
    plain, devices = pytest.importorskip("kerasnorm.benchmark.plain"), []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(plain, "make_loop", lambda c, b, device, **options: devices.append(device))
    for device in ("cpu", "cuda:1", "gpu"):
        worker._loop(name, tiny.config(device=device), tiny.dataset(), worker._FirstStep(0.0))
    assert devices == ["cpu", "cuda:1", "cuda:0"]
    with pytest.raises(ConfigError, match="it sees 2"):
        worker._loop(name, tiny.config(device="cuda:2"), tiny.dataset(), worker._FirstStep(0.0))
