"""Signals end a block with the exit code that shells expect."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from orchestrator.search.interrupts import Interrupts, interruptible


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    signal.pause()


def displaced_and_installed_anew(interrupts: Interrupts) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    interrupts.install()
    send(signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_block_with_its_exit_code(number: signal.Signals) -> None:
    seen: list[signal.Signals] = []
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught, interruptible(seen.append):
        send(number)
    assert caught.value.code == 128 + number
    assert seen == [number]
    assert signal.getsignal(number) is before


def test_handlers_can_be_installed_anew() -> None:
    seen: list[signal.Signals] = []
    with pytest.raises(SystemExit), interruptible(seen.append) as interrupts:
        displaced_and_installed_anew(interrupts)
    assert seen == [signal.SIGTERM]


def test_the_exit_of_another_handler_is_put_right() -> None:
    seen: list[signal.Signals] = []
    with pytest.raises(SystemExit) as caught, interruptible(seen.append):
        sys.exit(signal.SIGTERM)
    assert caught.value.code == 143


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_other_exits_pass_through(error: BaseException) -> None:
    seen: list[signal.Signals] = []
    with pytest.raises(type(error)) as caught, interruptible(seen.append):
        raise error
    assert caught.value is error
    assert seen == []


def test_a_second_signal_ends_the_process_on_the_spot() -> None:
    script = (
        "import os, signal\n"
        "from orchestrator.search.interrupts import interruptible\n"
        "with interruptible(print):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM); signal.pause()\n"
        "    finally:\n"
        "        os.kill(os.getpid(), signal.SIGINT); signal.pause()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=60, capture_output=True, text=True)
    assert done.returncode == 130
    assert done.stderr == "ended on the spot; the same command goes on from here\n"


def test_outside_the_main_thread_nothing_is_changed() -> None:
    handlers = []

    def inside() -> None:
        with interruptible(print) as interrupts:
            interrupts.install()
            handlers.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGTERM)]
