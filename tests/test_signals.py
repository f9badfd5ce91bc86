"""Interruptions: the first signal ends the work at a safe place, the second ends the process."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from kerasnorm.signals import Interruptions, Terminated

pytestmark = pytest.mark.usefixtures("heeds_sigint")
KINDS = [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)]


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "kind"), KINDS)
def test_a_signal_ends_the_work_at_once_or_after_a_held_block(number, kind):
    before, steps = signal.getsignal(number), []
    with pytest.raises(kind), Interruptions().installed():
        send(number)
    interruptions = Interruptions()

    def held():
        with interruptions.installed(), interruptions.held():
            send(number)
            steps.append("still running")

    with pytest.raises(kind):
        held()
    assert steps == ["still running"]
    assert signal.getsignal(number) == before


def test_a_process_of_a_group_ends_only_when_all_have_agreed():
    interruptions = Interruptions(needs_agreement=True)
    with interruptions.installed():
        send(signal.SIGINT)
        interruptions.check()
        assert interruptions.number == signal.SIGINT
        interruptions.agree()
        with pytest.raises(KeyboardInterrupt):
            interruptions.check()
    other = Interruptions(needs_agreement=True)  # a process that received no signal
    other.check()
    other.agree()
    with pytest.raises(Terminated):
        other.check()


def test_what_an_inner_block_received_is_the_first_signal_of_the_outer_one():
    outer, inner = Interruptions(), Interruptions()
    with outer.installed():
        with pytest.raises(Terminated), inner.installed():
            send(signal.SIGTERM)
        assert outer.number == signal.SIGTERM


def test_an_ignored_signal_stays_ignored_and_other_threads_install_nothing():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Interruptions().installed():
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    found = []

    def work():
        with Interruptions().installed():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)]


def test_the_second_signal_ends_the_process_even_outside_of_the_inner_block():
    code = (
        "import os, signal\n"
        "from kerasnorm.signals import Interruptions, Terminated\n"
        "with Interruptions().installed():\n"
        "    try:\n"
        "        with Interruptions().installed():\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except Terminated:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "print('not reached')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + signal.SIGINT, "")
