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
def free(monkeypatch):
    """A machine on which the environment leaves the package to decide."""
    for name in sharing.CHOICES:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    if sharing.openmp() is None:
        pytest.skip("no GNU OpenMP, or very many cores")
    yield
    torch.set_num_threads(before)


@pytest.fixture
def shared(free, monkeypatch):
    """A Sharing that sees times of the test's choice."""
    times = {"now": 0.0, "busy": 0.0, "own": 0.0}
    monkeypatch.setattr(sharing.time, "monotonic", lambda: times["now"])
    monkeypatch.setattr(sharing, "busy_seconds", lambda: times["busy"])
    monkeypatch.setattr(sharing, "own_seconds", lambda: times["own"])
    with sharing.Sharing() as found:
        yield found, times


def settled(condition):
    """Waits for threads to start or end; says whether they did."""
    end = time.perf_counter() + 20
    while not condition() and time.perf_counter() < end:
        time.sleep(0.01)
    return condition()


def holders():
    return [thread for thread in threading.enumerate() if thread.name == sharing.__name__]


def test_busy_time_is_that_of_the_cores_of_this_process():
    ticks = os.sysconf("SC_CLK_TCK")
    assert sharing.busy_seconds(STAT, {0}) == 73 / ticks
    assert sharing.busy_seconds(STAT, {0, 1}) == 88 / ticks


def test_own_time_grows_with_work():
    before = sharing.own_seconds()
    assert settled(lambda: sum(range(10**6)) and sharing.own_seconds() > before)


def test_a_busy_machine_switches_over_and_an_idle_one_back(shared):
    found, times = shared
    for seconds, busy, own, expected in [
        (0.5, 2.0, 0.0, False),  # too early to look
        (2.5, 2.3, 3.0, False),  # 0.43 cores
        (2.0, 4.0, 1.9, True),  # 1.05 cores
        (0.5, 0.0, 0.0, True),
        (3.5, 4.5, 4.0, False),
    ]:
        for name, change in (("now", seconds), ("busy", busy), ("own", own)):
            times[name] += change
        found.look()
        assert found.is_brief is expected, times


def test_extra_threads_outnumber_the_cores_while_it_is_brief(free):
    gc.collect()
    torch.ones(10**6).add_(1)  # PyTorch starts its own
    before, cores = len(os.listdir("/proc/self/task")), len(os.sched_getaffinity(0))
    with sharing.Sharing() as found:
        for _ in range(2):
            found.switch(True)
            assert settled(lambda: len(os.listdir("/proc/self/task")) >= before + cores + 1)
            assert len(holders()) == 1
    assert not found.is_brief
    assert settled(lambda: not holders())


@pytest.mark.parametrize("name", sharing.CHOICES)
def test_the_environment_decides_where_it_says_anything(free, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert sharing.openmp() is None
    with sharing.Sharing() as found:
        found.look()
        assert not found.is_brief


def test_there_is_nothing_to_share_with_one_thread_or_without_proc(free, monkeypatch):
    torch.set_num_threads(1)
    assert sharing.openmp() is None
    torch.set_num_threads(2)

    def unreadable():
        raise FileNotFoundError("/proc/stat")

    monkeypatch.setattr(sharing, "busy_seconds", unreadable)
    assert sharing.openmp() is None
