"""Runs of the page as processes: started once, stopped by an interrupt, found again by the next server, resumed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from luthier.core.errors import UserError
from luthier.ui import processes as module
from luthier.ui.processes import Processes

# Stands for the command line: says its arguments, waits for an interrupt as Python does, and ends as ours.
STANDIN = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell leaves it ignored
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
print("began", *sys.argv[1:], flush=True)
try:
    time.sleep(0 if "quick" in sys.argv else 60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.exit(130)
"""


@pytest.fixture
def processes(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "COMMAND", ("-c", STANDIN))
    made = Processes(tmp_path)
    yield made
    for child in made._children.values():
        if child.poll() is None:
            child.kill()
        child.wait()


def until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_stop_is_an_interrupt_and_the_same_command_goes_on(processes):
    processes.start("a", ["adapt", "docs of mine"])
    until(lambda: "began adapt docs of mine" in processes.said("a"))
    assert processes.running("a") and processes.command("a") == "luthier adapt 'docs of mine'" and processes.code("a") is None
    with pytest.raises(UserError, match="a is running"):
        processes.start("a", ["adapt"])
    processes.stop("a")
    until(lambda: not processes.running("a"))
    assert processes.code("a") == 130 and processes.said("a")[-1] == "interrupted"
    processes.resume("a")
    until(lambda: processes.said("a").count("began adapt docs of mine") == 2)


def test_a_stop_before_anything_is_loaded_is_said_in_words(tmp_path):
    """No traceback of an interpreter that has not come to the command yet, also where a shell's background job started it.

    Interrupts of this thread are as they were.
    """
    before, real = signal.pthread_sigmask(signal.SIG_BLOCK, ()), Processes(tmp_path)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        real.start("a", ["adapt", "--demo", "--pico", "--out", str(tmp_path / "a")])
    finally:
        signal.signal(signal.SIGINT, handler)
    real.stop("a")
    until(lambda: not real.running("a"))
    assert real.code("a") == 130 and "interrupted" in real.said("a")[-1] and len(real.said("a")) == 2
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_the_next_server_finds_what_the_last_one_started(processes, tmp_path):
    processes.start("a", ["adapt"])
    until(lambda: any(line.startswith("began") for line in processes.said("a")))
    other = Processes(tmp_path)
    assert other.running("a") and other.known("a") and other.code("a") is None
    other.stop("a")
    until(lambda: processes._children["a"].poll() is not None)
    assert not other.running("a")


def test_another_process_of_the_same_number_is_not_it(processes, tmp_path):
    from luthier.core.files import read_json, write_json

    processes.start("a", ["adapt"])
    record = read_json(tmp_path / ".ui" / "a.json")
    write_json(tmp_path / ".ui" / "a.json", {**record, "born": record["born"] - 100})
    other = Processes(tmp_path)
    assert not other.running("a")
    with pytest.raises(UserError, match="not running"):
        other.stop("a")


def test_what_was_not_started_here_is_neither_stopped_nor_resumed(processes):
    for call in (processes.stop, processes.resume):
        with pytest.raises(UserError):
            call("unknown")
    assert processes.said("unknown") == [] and not processes.known("unknown")


def test_only_the_end_of_a_long_log_is_read(processes, tmp_path):
    (tmp_path / ".ui").mkdir()
    (tmp_path / ".ui" / "a.log").write_text("line\n" * 100_000)
    assert sum(map(len, processes.said("a"))) <= module.SHOWN_BYTES


def test_the_interrupt_is_the_one_of_a_terminal(processes, monkeypatch):
    sent = []
    processes.start("a", ["adapt"])
    with monkeypatch.context() as patch:
        patch.setattr("os.killpg", lambda group, number: sent.append((group, number)))
        processes.stop("a")
    assert sent == [(processes._children["a"].pid, signal.SIGINT)]


@pytest.mark.slow
def test_a_run_that_is_stopped_and_resumed_is_the_uninterrupted_one(tmp_path: Path, root: Path):
    """The demo, stopped while it trains: the same command goes on, and its answers are those of the run made in one go."""
    from luthier.core.run import Run

    started = Processes(tmp_path)
    started.start("demo", ["adapt", "--demo", "--pico", "--exact", f"--out={tmp_path / 'demo'}"])
    until(lambda: (tmp_path / "demo" / "steps" / ".tuned.work" / "curve.jsonl").exists(), 300)
    started.stop("demo")
    until(lambda: not started.running("demo"), 60)
    assert started.code("demo") == 130 and Run(tmp_path / "demo").record["state"] == "started"
    started.resume("demo")
    until(lambda: not started.running("demo"), 300)
    assert started.code("demo") == 0
    arm = Path("steps") / "arm-tuned" / "predictions.jsonl"
    assert (tmp_path / "demo" / arm).read_bytes() == (root / "demo" / arm).read_bytes()
