"""What pages show of runs: their state, what they said last, and a curve that still grows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from luthier.core.files import write_json
from luthier.core.run import Run
from luthier.pipelines import report
from luthier.ui import shown


def at(running: bool = False, code: int | None = None) -> SimpleNamespace:
    return SimpleNamespace(running=lambda name: running, code=lambda name: code, known=lambda name: True,
                           said=lambda name: ["<b>1 of 9</b>"], command=lambda name: "luthier adapt 'a b'")


@pytest.fixture
def run(tmp_path):
    """A run that is training: two whole lines of its curve, and one that is being written."""
    work = tmp_path / "mine" / "steps" / ".tuned.work"
    work.mkdir(parents=True)
    (work / "curve.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.5}\n{"step": 3, "lo')
    write_json(tmp_path / "mine" / "run.json", {"name": "docs", "state": "started", "started": "2026-01-02T03:04:05+00:00"})
    (tmp_path / "mine" / "recipe.yaml").write_text("name: docs\nsteps: {}\n")
    return Run(tmp_path / "mine")


def test_a_curve_is_shown_while_it_grows(run):
    told = report.parts(run, ["learning", "receipts"])
    assert "(not ended)" in told and "2.5" in told and "at step 2" in told
    assert "no step left a receipt" in told, "what has no ground yet says why"
    assert "(not ended)" in report.render(run)


def test_what_a_run_said_is_text_and_its_command_can_be_copied(run):
    told = shown.watched("mine", run, at(running=True))
    assert "&lt;b&gt;1 of 9" in told and "<b>1 of 9" not in told
    assert "data-copy=\"luthier adapt &#x27;a b&#x27;\"" in told and ">running<" in told and "at step 2" in told


@pytest.mark.parametrize(("running", "code", "state", "word"), [
    (True, None, "started", "running"), (False, 130, "started", "not finished"), (False, None, "started", "not finished"),
    (False, 0, "finished", "finished"), (False, None, "finished", "finished"), (False, 2, "started", "refused"),
    (False, 3, "finished", "a limit is broken"), (False, 1, "started", "failed"), (False, -9, "started", "failed"),
])
def test_the_state_is_said_in_words(run, running, code, state, word):
    run.update(state=state)
    assert f">{word}<" in shown.state("mine", run, at(running, code))


def test_runs_are_links_and_none_is_said_so(run):
    assert 'href="/runs?run=mine"' in shown.runs({"mine": run}, at()) and "2 January 2026" in shown.runs({"mine": run}, at())
    assert "no run here yet" in shown.runs({}, at())


def test_the_style_of_the_report_holds_within_a_frame_alone():
    head = shown.head()
    assert "<style>.luthier {" in head and ":root" not in head and "url(" not in head and "@import" not in head
    assert "http://" not in head and "https://" not in head
