"""A study's folder: runs are known by their config, whatever their folder is called."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import tiny
from helpers.studies import place
from hostile import changed_data

from kerasnorm.config import DataConfig
from kerasnorm.data import prepare
from kerasnorm.errors import CorruptFileError, DataError, RunFolderError
from kerasnorm.study import folder
from kerasnorm.study import plan as plans
from kerasnorm.study.plan import StudyPlan
from kerasnorm.training import checkpoints, run_folder

FIXED = {name: value for name, value in tiny.TINY.items() if name != "widths"}
PLAN = StudyPlan(norms=("bn", "gn"), backends=("torch",), seeds=(0, 1), fixed=FIXED)


def configs():
    return list(PLAN.configs().values())


def test_an_empty_study_has_a_place_for_every_run(tmp_path, caplog):
    found = folder.survey(tmp_path / "study", PLAN)
    assert [run.name for run in found] == [
        "bn-torch-s0",
        "bn-torch-s1",
        "gn-torch-s0",
        "gn-torch-s1",
    ]
    assert not any(run.finished for run in found)
    assert caplog.messages == []


def test_runs_from_elsewhere_are_adopted_by_what_they_compute(tmp_path, caplog):
    bn0, bn1, gn0, _ = configs()
    home = tmp_path / "runs"
    place(home / "mine", bn0.replace(device="auto", ln_affine="element"))
    place(home / "gn-torch-s0", bn1)  # a name that says something else
    place(home / "other", gn0.replace(dropout=0.3))
    found = folder.survey(tmp_path, PLAN)
    assert [run.name for run in found] == ["mine", "gn-torch-s0", "gn-torch-s0-2", "gn-torch-s1"]
    assert [bool(run.finished) for run in found] == [True, True, False, False]
    assert "1 runs are not part of this plan" in caplog.messages[0]


def test_of_two_equal_runs_the_finished_one_counts(tmp_path, caplog):
    place(tmp_path / "runs" / "a", configs()[0], finished=False)
    place(tmp_path / "runs" / "b", configs()[0])
    assert folder.survey(tmp_path, PLAN)[0].name == "b"
    assert caplog.messages == []


def test_of_two_finished_runs_that_are_equal_one_counts_and_the_other_is_named(tmp_path, caplog):
    for name in "abc":
        place(tmp_path / "runs" / name, configs()[0])
    assert folder.survey(tmp_path, PLAN)[0].name == "a"
    first = tmp_path / "runs" / "a"
    assert caplog.messages == [
        f"{tmp_path / 'runs' / name} is left out: {first} is the same run." for name in "bc"
    ]


@pytest.mark.parametrize("damage", [run_folder.METRICS, run_folder.HISTORY])
def test_a_damaged_run_is_not_finished(tmp_path, damage, caplog):
    place(tmp_path / "runs" / "a", configs()[0])
    (tmp_path / "runs" / "a" / damage).write_text("{")
    assert folder.survey(tmp_path, PLAN)[0].finished is None
    [message] = caplog.messages
    assert message.startswith(str(tmp_path / "runs" / "a"))
    assert message.endswith("The run is left out; a resumed study trains it again.")


def test_a_run_that_has_not_finished_is_not_called_damaged(tmp_path, caplog):
    place(tmp_path / "runs" / "a", configs()[0], finished=False)
    assert folder.survey(tmp_path, PLAN)[0].finished is None
    assert caplog.messages == []


def test_a_damaged_config_is_ignored(tmp_path, caplog):
    place(tmp_path / "runs" / "bn-torch-s0", configs()[0])
    (tmp_path / "runs" / "bn-torch-s0" / run_folder.CONFIG).write_text("norm = ")
    found = folder.survey(tmp_path, PLAN)
    assert found[0].name == "bn-torch-s0-2"
    assert "ignored" in caplog.messages[0]


def test_a_study_may_grow_but_not_change(tmp_path):
    with folder.opened(tmp_path / "study", PLAN):
        pass
    more = replace(PLAN, seeds=(0, 1, 2), norms=("bn", "gn", "ln"))
    with folder.opened(tmp_path / "study", more):
        assert plans.read(tmp_path / "study") == more
    other = replace(PLAN, fixed=FIXED | {"epochs": 7})
    with (
        pytest.raises(RunFolderError, match="whose epochs"),
        folder.opened(tmp_path / "study", other),
    ):
        pass
    assert plans.read(tmp_path / "study") == more


def test_runs_dropped_into_a_new_folder_make_it_a_study(tmp_path):
    place(tmp_path / "study" / "runs" / "a", configs()[0])
    with folder.opened(tmp_path / "study", PLAN):
        assert folder.is_study(tmp_path / "study")


def test_a_folder_with_other_files_is_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="other files"), folder.opened(tmp_path, PLAN):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_commands_cannot_hold_one_study(tmp_path):
    with (
        folder.opened(tmp_path / "study", PLAN),
        pytest.raises(RunFolderError, match="in use"),
        folder.opened(tmp_path / "study", PLAN),
    ):
        pass


def test_loading_needs_a_study_and_a_finished_run(tmp_path):
    with pytest.raises(CorruptFileError, match="not the folder of a study"):
        folder.load(tmp_path)
    with folder.opened(tmp_path / "study", PLAN):
        pass
    with pytest.raises(CorruptFileError, match=r"No run .* has finished"):
        folder.load(tmp_path / "study")


def test_tidying_keeps_what_a_study_is_made_of(tmp_path):
    place(tmp_path / "a", configs()[0])
    (tmp_path / "a" / run_folder.CHECKPOINTS / "epoch-001").mkdir(parents=True)
    (tmp_path / "a" / folder.LOG).write_text("words")
    folder.tidy(tmp_path / "a")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {run_folder.CONFIG, run_folder.HISTORY, run_folder.METRICS}
    folder.start_over(tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {run_folder.CONFIG}


MESSAGES = ["", "a loss, lost", "two\nlines", "größer als 1e30 ⟷", '{"a": "b"}', "\udcff"]


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("exit_code", [1, 4, 143, -9])
def test_a_failure_is_known_until_the_run_is_finished(tmp_path, exit_code, message):
    """Reports tell of it, and a resumed study tries the run again."""
    home = tmp_path / "runs" / "a"
    place(home, configs()[0], finished=False)
    run, *others = folder.survey(tmp_path, PLAN)
    run.fail(exit_code, message)
    assert (run.state, run.exit_code, run.message) == (folder.State.FAILED, exit_code, message)
    again, *_ = folder.survey(tmp_path, PLAN)
    assert (again.state, again.exit_code, again.message) == (folder.State.WAITING, 0, "")
    assert again.epochs_left == max(0, again.config.train.epochs - again.epoch)
    known, *rest = folder.results(tmp_path, PLAN)
    assert (known.state, known.exit_code, known.message) == (run.state, exit_code, message)
    assert {one.state for one in rest} == {one.state for one in others} == {folder.State.WAITING}
    finished = tmp_path / "finished"
    place(finished, configs()[0])
    shutil.copytree(finished, home, dirs_exist_ok=True)
    known, *_ = folder.results(tmp_path, PLAN)
    assert (known.state, known.exit_code) == (folder.State.KEPT, 0)
    folder.tidy(home)
    assert not (home / folder.FAILURE).exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"exit_code": null, "message": ""}']
)
def test_a_damaged_record_of_a_failure_is_none(tmp_path, text):
    home = tmp_path / "runs" / "a"
    place(home, configs()[0], finished=False)
    (home / folder.FAILURE).write_text(text)
    assert {run.state for run in folder.results(tmp_path, PLAN)} == {folder.State.WAITING}


def test_a_failure_that_cannot_be_recorded_ends_nothing(tmp_path):
    run, *_ = folder.survey(tmp_path, PLAN)  # its folder is missing
    run.fail(1, "the disk is full")
    assert run.state == folder.State.FAILED


def without(file):
    file.unlink()


def cut_off(file):
    file.write_bytes(file.read_bytes()[:20])


def changed(file):
    content = file.read_bytes()
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def save_checkpoints(home, *epochs):
    for epoch in epochs:
        facts = {"epoch": epoch, "is_best": False}
        checkpoints.save(home / run_folder.CHECKPOINTS, {"a": np.arange(3.0)}, facts)


@pytest.mark.parametrize("damage", [without, cut_off, changed])
@pytest.mark.parametrize("name", [checkpoints.STATE, checkpoints.FACTS, run_folder.MANIFEST])
def test_a_run_is_lost_if_none_of_its_checkpoints_is_whole(tmp_path, damage, name, caplog):
    assert not folder.is_lost(tmp_path)  # it has none: it begins
    save_checkpoints(tmp_path, 1, 2)
    older, newer = checkpoints.checkpoint_folders(tmp_path / run_folder.CHECKPOINTS)
    assert not folder.is_lost(tmp_path)
    damage(newer / name)
    assert not folder.is_lost(tmp_path)
    damage(older / name)
    assert folder.is_lost(tmp_path)
    assert caplog.messages == []


def test_what_is_unfinished_is_told_without_writing(tmp_path):
    assert folder.unfinished(tmp_path / "study", PLAN) == configs()
    assert not (tmp_path / "study").exists()
    first, second, third, _ = configs()
    place(tmp_path / "runs/a", first)
    place(tmp_path / "runs/b", second, finished=False)
    place(tmp_path / "runs/c", third)
    (tmp_path / "runs/c" / run_folder.CONFIG).write_text("norm = ")
    assert folder.unfinished(tmp_path, PLAN) == configs()[1:]


def on(data, **fields):
    """The plan on data at a place."""
    fixed = {**FIXED, "train_size": 0, "test_size": 0, "data": str(data)}
    return replace(PLAN, **{"fixed": fixed} | fields)


def study_on(data, path, plan=None):
    """A study of two finished runs and two that have begun, all on the data at a place."""
    content = prepare(DataConfig(data=str(data)), 0).content
    plan = on(data) if plan is None else plan
    with folder.opened(path, plan):
        for number, config in enumerate(plan.configs().values()):
            home = path / "runs" / str(number)
            place(home, config, finished=number < 2, content=content)
            (home / run_folder.CHECKPOINTS / "epoch-001").mkdir(parents=True)
    return content


@pytest.mark.parametrize("same", changed_data.SAME, ids=lambda item: item.name)
def test_a_study_is_resumed_on_the_same_data_wherever_they_are(tmp_path, same, caplog):
    data = changed_data.write(tmp_path / "d")
    study_on(data, tmp_path / "study")
    plan = on(same.make(tmp_path)).located()
    with folder.opened(tmp_path / "study", plan):
        found = folder.survey(tmp_path / "study", plan)
    assert [run.name for run in found] == ["0", "1", "2", "3"]
    assert [bool(run.finished) for run in found] == [True, True, False, False]
    assert {run.config.data.data for run in found} == {plan.fixed["data"]}
    assert plans.read(tmp_path / "study") == plan
    assert caplog.messages == []


def test_a_study_is_not_resumed_on_other_data(tmp_path):
    data = changed_data.write(tmp_path / "d")
    study_on(data, tmp_path / "study")
    other = changed_data.write(tmp_path / "e", changed_data.CLASSES[:3])
    with (
        pytest.raises(DataError, match="the classes a b, crème, dog instead of"),
        folder.opened(tmp_path / "study", on(other)),
    ):
        pass
    assert plans.read(tmp_path / "study").fixed["data"] == str(data)
    assert {run.config.data.data for run in folder.survey(tmp_path / "study", on(data))} == {
        str(data)
    }


def test_data_are_told_apart_by_what_they_hold_where_they_are_varied(tmp_path):
    first = changed_data.write(tmp_path / "d")
    second = changed_data.write(tmp_path / "e", changed_data.CLASSES[:3])
    fixed = {name: value for name, value in on(first).fixed.items() if name != "data"}
    one, both = (
        on(first, fixed=fixed, vary={"data": places})
        for places in ((str(first),), (str(first), str(second)))
    )
    study_on(first, tmp_path / "study", one)
    with folder.opened(tmp_path / "study", both):
        found = folder.survey(tmp_path / "study", both)
    assert [run.config.data.data for run in found] == [str(first)] * 4 + [str(second)] * 4
    assert [run.path.exists() for run in found] == [True] * 4 + [False] * 4


def test_a_study_of_an_earlier_version_is_resumed_where_it_was_started(tmp_path, monkeypatch):
    """Its runs and plan name the data as they were typed, and do not say what they held."""
    changed_data.write(tmp_path / "d")
    monkeypatch.chdir(tmp_path)
    plan, path = on("d"), Path("study")
    with folder.opened(path, plan):
        place(path / "runs/a", next(iter(plan.configs().values())))
    with folder.opened(path, plan.located()):
        found = folder.survey(path, plan.located())
    assert [bool(run.finished) for run in found] == [True, False, False, False]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(folder.finished(folder.load(tmp_path / "study")[1])) == 1
    with (
        pytest.raises(RunFolderError, match="whose data differs"),
        folder.opened(tmp_path / "study", on("d")),
    ):
        pass


def test_many_varied_fields_give_names_that_every_file_system_takes(tmp_path):
    values = {
        "widths": (tuple(tiny.WIDTHS), (8,) * 10),
        "activation": ("silu",),
        "order": ("conv-norm-act",),
        "norm_transitions": (True,),
        "residual": (True,),
        "dropout": (0.1,),
        "dropout_kind": ("element", "spatial"),
        "weight_standardization": (False,),
        "shift_scale_rotate": (0.0,),
        "alternating_flip": (False,),
        "initializer": ("he_normal",),
        "preprocessing": ("standardize",),
    }
    plan = replace(PLAN, vary=values)
    names = [run.name for run in folder.survey(tmp_path, plan)]
    assert len(set(names)) == len(names) == 16
    assert max(len(name.encode()) for name in names) < 143
    assert names[0].startswith("bn-torch-widths-4-4-4")
    assert {name[-3:] for name in names} == {"-s0", "-s1"}
    for name in names:
        (tmp_path / name).mkdir()
