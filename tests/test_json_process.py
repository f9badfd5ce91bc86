"""Processes that answer requests: errors and deaths reach the parent, and none outlives it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from kerasnorm.errors import DataError
from kerasnorm.json_process import ORPHANED, JsonProcess, ProcessEndedError

MODULE = """
import os
import sys
import time
from kerasnorm import json_process
from kerasnorm.errors import DataError

def answer(request):
    print("not an answer")
    os.system("echo neither is this")
    if request["task"] == "raise":
        raise DataError("three rows are empty")
    if request["task"] == "crash":
        raise ValueError("no such thing")
    if request["task"] == "die":
        os._exit(7)
    if request["task"] == "fork":  # a process that keeps all pipes open
        if os.fork():
            os._exit(3)
        time.sleep(60)
    if request["task"] == "sleep":
        print("asleep", file=sys.stderr)
        time.sleep(60)
    if request["task"] == "eat":
        json_process.limit_memory(1 << 28)
        try:
            bytearray(1 << 29)
        except MemoryError:
            return "no"
        return "yes"
    return {"pid": os.getpid(), "text": request["text"]}

json_process.serve(answer)
"""
TEXT = "line\nbreak ¹ \ud800"  # JSON escapes what UTF-8 has no bytes for


@pytest.fixture
def process(tmp_path):
    (tmp_path / "answering.py").write_text(MODULE, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with JsonProcess("answering", environment=environment, log=tmp_path / "log") as one:
        yield one


def test_one_process_answers_all_requests_and_prints_into_its_log(process, tmp_path):
    answers = [process.ask({"task": "echo", "text": TEXT}) for _ in range(3)]
    assert [answer["text"] for answer in answers] == [TEXT] * 3
    assert {answer["pid"] for answer in answers} - {os.getpid()} == {answers[0]["pid"]}
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(lines) == ["neither is this"] * 3 + ["not an answer"] * 3


def test_an_error_of_ours_is_raised_here_and_the_process_lives_on(process):
    first = process.ask({"task": "echo", "text": ""})
    with pytest.raises(DataError, match="three rows are empty"):
        process.ask({"task": "raise"})
    assert process.ask({"task": "echo", "text": ""}) == first


@pytest.mark.parametrize(
    ("task", "code", "words"),
    [("crash", 1, "ValueError: no such thing"), ("die", 7, "neither is this")],
)
def test_a_death_is_an_error_with_the_last_words_and_the_next_request_starts_anew(
    process, task, code, words
):
    first = process.ask({"task": "echo", "text": ""})
    with pytest.raises(ProcessEndedError, match=words) as caught:
        process.ask({"task": task})
    assert (caught.value.code, caught.value.last_words) == (code, words)
    assert not caught.value.is_late
    assert process.ask({"task": "echo", "text": ""})["pid"] != first["pid"]


@pytest.mark.skipif(os.name != "posix", reason="fork is POSIX's")
def test_a_fork_that_keeps_the_pipes_does_not_hold_up_the_parent(process):
    begun = time.monotonic()
    with pytest.raises(ProcessEndedError) as caught:
        process.ask({"task": "fork"}, seconds=2)
    process.close()
    assert caught.value.code == 3
    assert time.monotonic() - begun < 50


def test_an_answer_that_takes_too_long_or_is_no_longer_wanted_ends_the_process(process):
    process.ask({"task": "echo", "text": ""})
    with pytest.raises(ProcessEndedError) as caught:
        process.ask({"task": "sleep"}, seconds=0.3)
    assert caught.value.is_late
    with pytest.raises(ProcessEndedError) as caught:
        process.ask({"task": "sleep"}, is_stopped=lambda: True)
    assert not caught.value.is_late


def test_the_limit_of_memory_holds(process):
    if sys.platform != "linux":
        pytest.skip("only Linux has it")
    assert process.ask({"task": "eat"}) == "no"


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_process_ends_amid_its_work_when_its_parent_is_killed(tmp_path):
    (tmp_path / "answering.py").write_text(MODULE, encoding="utf-8")
    code = (
        "from kerasnorm.json_process import JsonProcess\n"
        "process = JsonProcess('answering')\n"
        "print(process.ask({'task': 'echo', 'text': ''})['pid'], flush=True)\n"
        "process.ask({'task': 'sleep'})"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True
    ) as parent:
        child = int(parent.stdout.readline())
        time.sleep(0.5)
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 30
    while is_running(child):
        assert time.monotonic() < end, "it still runs"
        time.sleep(0.1)
    assert ORPHANED == 128 + signal.SIGTERM


def is_running(pid):
    """Says whether a process is there, and is more than an exit code that nobody has read."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return not state.stdout.startswith("Z") and state.returncode == 0
