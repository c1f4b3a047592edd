"""The executor: how it hears of every kind of end."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
from toy_world import PRELOAD

from harness.execute import DISK_FULL, Event, LocalExecutor, Task, classify


def steps(report, count):
    for index in range(count):
        report(f"step {index}")


def speak(report):
    print("to stdout")
    print("to stderr", file=sys.stderr)
    os.write(1, b"below Python\n")


def end_by(report, number):
    os.kill(os.getpid(), number)


def leave(report, code):
    os._exit(code)


def sleep(report, seconds):
    time.sleep(seconds)


def full(report):
    raise OSError(28, "No space left on device")


def nested_full(report):
    try:
        full(report)
    except OSError as error:
        raise RuntimeError("cannot save") from error


@pytest.fixture
def outcome(tmp_path):
    def run(function, *args, timeout=30.0) -> tuple[Event, list[Event], str]:
        log = tmp_path / "cell" / "log.txt"
        events: list[Event] = []
        with LocalExecutor(PRELOAD) as executor:
            executor.submit(Task("task", f"{__name__}:{function.__name__}", args, log, timeout))
            while not events or events[-1].kind != "end":
                events += executor.wait(5.0)
        return events[-1], events[:-1], log.read_text()

    return run


def test_progress_arrives_before_the_end_and_in_order(outcome):
    end, progress, _ = outcome(steps, 50)
    assert end.state == "ok"
    assert [event.step for event in progress] == [f"step {index}" for index in range(50)]


def test_all_output_goes_to_the_log(outcome, capfd):
    _, _, log = outcome(speak)
    for text in ("to stdout", "to stderr", "below Python"):
        assert text in log
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("number", "name"), [(signal.SIGKILL, "SIGKILL"), (signal.SIGABRT, "SIGABRT")])
def test_death_by_signal_names_the_signal(outcome, number, name):
    end, _, _ = outcome(end_by, number)
    assert (end.state, name in end.message) == ("crashed", True)


def test_a_process_that_leaves_early_is_a_crash_even_with_code_0(outcome):
    end, _, _ = outcome(leave, 0)
    assert (end.state, end.message) == ("crashed", "the process ended with code 0 before it was done")


def test_a_timeout_kills(outcome):
    started = time.monotonic()
    end, _, _ = outcome(sleep, 60, timeout=0.5)
    assert (end.state, end.message) == ("timeout", "took longer than 0.5 s")
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("function", [full, nested_full])
def test_a_full_disk_is_told_apart(outcome, function):
    end, _, _ = outcome(function)
    assert end.state == DISK_FULL


def test_memory_errors_of_torch_are_recognised_by_name():
    class OutOfMemoryError(RuntimeError):
        pass

    assert classify(OutOfMemoryError("CUDA out of memory"))[0] == "oom"
    assert classify(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))[0] == "oom"
    assert classify(RuntimeError("anything else"))[0] == "crashed"


def test_messages_are_one_short_line():
    _, message = classify(ValueError("first\nsecond" + "x" * 10_000))
    assert message == "ValueError: first"
    assert len(classify(ValueError("x" * 10_000))[1]) < 600


def test_a_task_name_cannot_be_under_way_twice(tmp_path):
    task = Task("task", f"{__name__}:sleep", (60,), tmp_path / "log.txt", 60.0)
    with LocalExecutor(PRELOAD) as executor:
        executor.submit(task)
        with pytest.raises(ValueError, match="under way"):
            executor.submit(task)
