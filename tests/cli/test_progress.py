"""What a step says of its pace: time left is reckoned from the count that is shown, not from one before it."""

from __future__ import annotations

import pytest

from luthier.cli import _shared


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(_shared.time, "monotonic", lambda: now[0])
    return now


def test_a_second_count_has_a_pace_of_its_own(clock, capsys):
    show = _shared._Shown(moving=False).progress("tuned")
    show(1, 10, "steps")
    for trial in range(2):  # each takes 20 s a step
        for step in range(1, 11):
            clock[0] += 20
            show(step, 10, "steps", trial=trial)
    lines = capsys.readouterr().err.splitlines()
    later = [line for line in lines if "trial 1" in line]
    assert later[0] == "  tuned: 1 of 10 steps, trial 1"  # the first one of a count tells no pace
    assert later[4] == "  tuned: 5 of 10 steps, trial 1, 1 min 40 s left"


def test_what_was_done_before_does_not_enter_the_pace(clock, capsys):
    show = _shared._Shown(moving=False).progress("tuned")
    show(90, 100, "rows")
    clock[0] += 30
    show(92, 100, "rows")
    assert capsys.readouterr().err.splitlines()[-1] == "  tuned: 92 of 100 rows, 2 min 00 s left"


def test_a_command_is_printed_as_the_shell_finds_it(tmp_path, monkeypatch):
    """A checkout's own `.venv/bin/luthier` is not on the path: the printed command must run all the same."""
    import sys

    from luthier.cli import _shared

    scripts = {place: tmp_path / place / "luthier" for place in ("on path", "off path")}
    for script in scripts.values():
        script.parent.mkdir()
        script.write_text("#!/bin/sh\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(scripts["on path"].parent))
    cases = {str(scripts["on path"]): "luthier", str(scripts["off path"]): f"'{scripts['off path']}'", "pytest": "luthier"}
    for called, printed in cases.items():
        monkeypatch.setattr(sys, "argv", [called, "adapt"])
        assert _shared.typed() == printed
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [str(scripts["on path"]), "adapt"])
    assert _shared.typed() == f"'{scripts['on path']}'"
