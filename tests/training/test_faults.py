"""Faults: what kills, fills, damages or races a run never costs more than the epoch it was in.

Bounded here; `python tests/reliability.py` does the full counts and writes results/reliability.md.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.faults import damage, folders, fuzz, harness, kills, writes

from kerasnorm.runtime import installed_backends

HERE = Path(__file__).parents[1]


def killed(backend, count, *mutation):
    """The figures of `faults.kills` in a process of its own."""
    if backend not in installed_backends():
        pytest.skip(f"{backend} is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "helpers.faults.kills", backend, str(count), "0", *mutation],
        cwd=HERE,
        env=os.environ
        | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)["once"]


@pytest.mark.long
def test_a_killed_run_ends_as_one_never_killed():
    figures = killed("torch", 4)
    assert figures["different"] == 0
    assert figures["killed"] >= 2


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "tensorflow"])
def test_many_killed_runs_end_as_those_never_killed(backend):
    assert killed(backend, 50)["different"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("mutation", kills.MUTATIONS)
def test_the_test_of_kills_finds_what_a_checkpoint_lacks(mutation):
    assert killed("torch", 4, mutation)["different"] > 0


def test_every_write_that_fails_leaves_a_valid_checkpoint():
    figures = writes.each_event_of_a_save()
    assert figures["wrong"] == 0, figures["what"]
    assert figures["events"] >= 12


def test_saving_in_place_would_be_found():
    assert writes.each_event_of_a_save(writes.saving_in_place)["wrong"] > 0


@pytest.mark.long
def test_a_run_whose_writes_fail_can_go_on():
    figures = writes.each_event_of_a_run(harness.options("auto"), every=16)
    assert figures["wrong"] == figures["unclear"] == 0


@pytest.mark.long
def test_a_full_disk_is_named_with_what_is_needed_and_loses_nothing():
    figures = writes.full_disk([60, 200, 740])  # the last has room for all but the final model
    if figures is None:
        pytest.skip("this user may not mount a small disk")
    assert figures == {
        "sizes": 3, "ended": 0, "final": 1, "clear": 3, "wrong": 0, "different": 0,
    }  # fmt: skip


@pytest.mark.long
def test_damage_is_found_or_harmless():
    for counts in damage.damaged(truncations=6, flips=12).values():
        assert counts["wrong"] == counts["traceback"] == 0
        assert counts["refused"] > 0


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_one_of_many_wins_a_folder_and_a_dead_owner_loses_it():
    assert folders.race(rounds=3, processes=16)["fair"] == 3
    assert folders.dead_owner()
    assert folders.read_only() == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", folders.ODD_PATHS)
def test_odd_paths_work_in_the_c_locale(name):
    assert folders.odd_path(name)


@pytest.mark.long
def test_a_clock_that_goes_back_changes_nothing():
    assert folders.clock_set_back()


@pytest.mark.long
def test_made_up_lines_and_configs_end_in_a_message():
    figures = fuzz.fuzz(lines=120, configs=60)
    assert figures["wrong"] == 0, figures["what"]
