"""Idle threads make room for other processes."""

import gc
import os
import sys
import threading
import time

import keras
import pytest

torch = pytest.importorskip("torch")
if keras.backend.backend() != "torch" or sys.platform != "linux":
    pytest.skip("needs the torch backend on Linux", allow_module_level=True)

from kerasnorm.engines.torch import sharing  # noqa: E402

STAT = """cpu  100 0 100 900 0 0 0 0 0 0
cpu0 10 20 30 400 5 6 7 8 9 10
cpu1 1 2 3 40 50 4 5 0 0 0
cpu10 1000 0 0 0 0 0 0 0 0 0
intr 5
"""


@pytest.fixture
def shared(monkeypatch):
    """A Sharing that the user leaves to decide, which sees times of the test's choice."""
    for name in sharing.CHOICES:
        monkeypatch.delenv(name, raising=False)
    times = {"now": 0.0, "busy": 0.0, "own": 0.0}
    monkeypatch.setattr(sharing.time, "monotonic", lambda: times["now"])
    monkeypatch.setattr(sharing, "busy_seconds", lambda: times["busy"])
    monkeypatch.setattr(sharing, "own_seconds", lambda: times["own"])
    found = sharing.Sharing()
    assert found.library is not None
    yield found, times
    found.switch(False)


def settled(condition):
    """Waits for threads to start or end; says whether they did."""
    end = time.perf_counter() + 20
    while not condition() and time.perf_counter() < end:
        time.sleep(0.01)
    return condition()


def test_busy_time_is_that_of_the_cores_of_this_process():
    ticks = os.sysconf("SC_CLK_TCK")
    assert sharing.busy_seconds(STAT, {0}) == 73 / ticks
    assert sharing.busy_seconds(STAT, {0, 1}) == 88 / ticks
    before, own = sharing.busy_seconds(), sharing.own_seconds()
    assert settled(lambda: sharing.own_seconds() > own + 3 / ticks or sum(range(10**5)) < 0)
    assert sharing.busy_seconds() > before


def test_a_busy_machine_switches_over_and_an_idle_one_back(shared):
    found, times = shared
    for seconds, busy, own, expected in [
        (1.0, 2.0, 0.0, False),  # too early to look
        (2.0, 2.3, 3.0, False),  # 0.43 cores
        (2.0, 4.0, 1.9, True),  # 1.05 cores
        (1.0, 0.0, 0.0, True),
        (3.0, 4.5, 4.0, False),
    ]:
        for name, change in (("now", seconds), ("busy", busy), ("own", own)):
            times[name] += change
        found.look()
        assert found.is_brief is expected, times


def test_an_idle_team_has_more_threads_than_there_are_cores(shared):
    found, _ = shared
    torch.ones(10**6).add_(1)  # PyTorch starts its own
    own, before = threading.active_count(), len(os.listdir("/proc/self/task"))
    cores = len(os.sched_getaffinity(0))
    for _ in range(2):
        found.switch(True)
        assert settled(lambda: len(os.listdir("/proc/self/task")) == before + cores + 1)
    found.switch(False)
    assert settled(lambda: len(os.listdir("/proc/self/task")) == before)
    assert threading.active_count() == own


def test_a_team_ends_with_its_owner(monkeypatch):
    for name in sharing.CHOICES:
        monkeypatch.delenv(name, raising=False)
    before, found = threading.active_count(), sharing.Sharing()
    found.switch(True)
    assert threading.active_count() == before + 1
    del found
    gc.collect()
    assert settled(lambda: threading.active_count() == before)


@pytest.mark.parametrize("name", sharing.CHOICES)
def test_the_environment_decides_where_it_says_anything(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    found = sharing.Sharing()
    found.looked -= 10 * sharing.PERIOD
    monkeypatch.setattr(sharing, "busy_seconds", lambda: 1e9)
    found.look()
    assert not found.is_brief
