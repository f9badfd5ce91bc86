"""Estimates before a study and forecasts during it, against times worked out by hand."""

from pathlib import Path

import pytest
from helpers import tiny

from kerasnorm.config import resolve
from kerasnorm.errors import KerasnormError
from kerasnorm.study import estimate
from kerasnorm.study.estimate import Cost, Estimate, Forecast, makespan
from kerasnorm.study.folder import PlannedRun, State
from kerasnorm.study.probe import Probe

START = estimate.START_SECONDS


def planned(name, state=State.WAITING, **fields):
    config = resolve({"epochs": 10, "backend": "torch", "data": "shapes", **fields})
    return PlannedRun(Path(name), config, state=state)


def test_runs_share_the_lanes_in_their_order():
    runs = [Estimate(planned("a"), seconds, "") for seconds in (30.0, 10.0, 25.0, 5.0)]
    assert makespan(runs, 1) == 70.0
    assert makespan(runs, 2) == 35.0  # 30 and 5; 10 and 25
    assert makespan([*runs, Estimate(planned("b"), None, "")], 2) is None


def test_a_run_costs_its_start_its_epochs_and_a_last_evaluation():
    assert Cost(start=7.0, epoch=3.0, evaluation=0.5).seconds(20) == 67.5


def test_each_kind_is_measured_once_and_known_runs_are_not(monkeypatch):
    measured, starts = [], []

    def probed(process, started, config):
        measured.append((config.model.norm, config.train.batch_size, process))
        return Cost(started, 2.0, 1.0)

    def start(probes, config):
        starts.append(config.train.backend)
        return len(starts), 5.0

    monkeypatch.setattr(estimate, "_probed", probed)
    monkeypatch.setattr(estimate._Probes, "_start", start)
    runs = [
        planned("bn", norm="bn", seed=0),
        planned("bn-other-rate", norm="bn", seed=1, learning_rate=0.5, epochs=20),
        planned("bn-wide", norm="bn", batch_size=8),
        planned("gn", norm="gn", seed=1),
        planned("gn-begun", norm="gn"),
    ]
    runs[4].epoch, runs[4].seconds = 4, 12.0
    found = estimate.estimate(runs, 2)
    assert sorted(measured) == [("bn", 8, 1), ("bn", 8, 2), ("bn", 64, 1), ("bn", 64, 2)]
    assert starts == ["torch", "torch"]  # a process for each of the runs at a time
    assert [one.source for one in found] == ["measured"] * 3 + ["runs"] * 2
    seconds = [26.0, 46.0, 26.0, START + 30.0, START + 18.0]
    assert [one.seconds for one in found] == seconds


def test_what_cannot_be_measured_has_no_time(monkeypatch, caplog):
    def probed(process, started, config):
        raise KerasnormError("its loss is not finite")

    monkeypatch.setattr(estimate, "_probed", probed)
    monkeypatch.setattr(estimate._Probes, "_start", lambda probes, config: (None, 5.0))
    (found,) = estimate.estimate([planned("bn")], 1)
    assert (found.seconds, found.source) == (None, "measured")
    assert "its loss is not finite" in caplog.text


@pytest.mark.backend("any", long_on="tensorflow")
@pytest.mark.parametrize("engine", ["native", "keras"])
def test_a_probe_trains_on_the_data_of_the_run(monkeypatch, engine):
    monkeypatch.setattr("kerasnorm.study.probe.SECONDS", 0.0)
    config = tiny.config(engine=engine, validation=5).replace(epochs=1)
    probe = Probe()
    warm = probe.answer({"task": "prepare", "config": config.fields})
    data = tiny.dataset()
    steps = -(-(len(data.train) - 5) // config.train.batch_size)
    assert warm == {"steps": min(steps, 8), "images": len(data.test)}
    for _ in range(2):  # a process measures one run after the other
        assert probe.answer({"task": "start", "config": config.fields}) == {}
        assert probe.answer({"task": "prepare", "config": config.fields}) == warm
    found = probe.answer({"task": "measure"})
    assert (found["steps"], found["images"]) == (steps, len(data.test) + 5)
    assert found["step"] > 0
    assert found["image"] > 0


class TestForecast:
    def test_nothing_is_known_before_the_first_epoch(self):
        runs = [planned("a", State.RUNNING), planned("b")]
        forecast = Forecast(runs)
        forecast.note(runs[0], 0.0)
        assert forecast.left(runs[0], 5.0) is None
        assert forecast.study_left(5.0) is None

    def test_the_rate_is_that_of_the_epochs_after_the_first(self):
        run = planned("a", State.RUNNING)
        forecast = Forecast([run])
        for run.epoch, now in ((0, 100.0), (1, 130.0), (2, 140.0), (3, 150.0)):
            forecast.note(run, now)
        assert forecast.left(run, 150.0) == 70.0
        assert forecast.left(run, 156.0) == 64.0
        assert forecast.study_left(156.0) == 64.0

    @pytest.mark.parametrize("before", [(0, 1, 2), (3, 4), (0, 5), (0, 1, 2, 3, 4, 5)])
    def test_a_run_that_starts_over_is_judged_by_its_new_epochs(self, before):
        """Another worker of a cluster finds no whole checkpoint."""
        run = planned("a", State.RUNNING)
        forecast = Forecast([run])
        for now, run.epoch in enumerate(before):
            forecast.note(run, 10.0 * now)
        for run.epoch in range(1, 6):
            forecast.note(run, 100.0 + 20 * run.epoch)
            found = forecast.left(run, 100.0 + 20 * run.epoch)
            assert run.epoch < 3 or found == 20.0 * (10 - run.epoch)

    def test_waiting_runs_take_as_long_as_those_of_their_kind(self):
        first, second = planned("a", State.RUNNING, norm="bn"), planned("b", norm="gn")
        kept = planned("c", State.KEPT, norm="gn", seed=1)
        kept.epoch, kept.seconds = 10, 30.0
        forecast = Forecast([first, second, kept])
        for first.epoch, now in ((0, 0.0), (1, 20.0), (2, 40.0)):
            forecast.note(first, now)
        assert forecast.left(second, 40.0) == START + 30.0
        assert forecast.study_left(40.0) == 160.0 + START + 30.0

    def test_runs_at_the_same_time_share_the_rest(self):
        runs = [planned("a", State.RUNNING), planned("b", State.RUNNING, seed=1), planned("c")]
        forecast = Forecast(runs)
        for run in runs[:2]:
            for run.epoch, now in ((0, 0.0), (1, 10.0), (2, 20.0)):
                forecast.note(run, now)
        assert forecast.study_left(20.0) == 80.0 + START + 100.0
        runs[0].state = State.DONE  # and the third has not begun yet
        assert forecast.study_left(20.0) == START + 100.0

    def test_a_run_that_has_ended_needs_no_time(self):
        run = planned("a", State.FAILED)
        forecast = Forecast([run])
        for run.epoch, now in ((0, 0.0), (1, 10.0), (1, 12.0)):
            forecast.note(run, now)
        assert forecast.left(run, 20.0) == 0.0
        assert forecast.study_left(20.0) is None
