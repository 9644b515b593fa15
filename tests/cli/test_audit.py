"""`luthier audit` on a run, a model folder and data; exit code 3 when a hard limit is broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luthier.core.run import Run
from tests.cli.conftest import Luthier, call, question_rows, refused, write_rows

SMALL = ["--audit", "forgetting:texts=12,questions=12", "--audit", "memorisation:candidates=15", "--exact"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """A run with planted secrets, trained until it recites them."""
    here = tmp_path_factory.mktemp("tuned")
    data = write_rows(here / "rows.jsonl", question_rows(30))
    assert call("tune", data, "--base", "pico", "--out", here / "run", "--exact", "--method", "full", "--set",
                "split.augment=['canaries:repeats=[3]']", "--set", "tuned.length={epochs: 30}", "--set",
                "tuned.learning_rate=0.003", "--set", "arm-base.shots=[0]") == 0
    return here / "run"


def test_a_run_is_audited_and_says_so_everywhere(luthier: Luthier, tuned: Path) -> None:
    said = luthier("audit", tuned, *SMALL)
    assert said.code == 3 and "hard limit" in said.err and "planted secrets recited" in said.err
    assert "loss on general texts:" in said.out and "bits a byte" in said.out and "FAIL" in said.out
    assert "data_step personal-data" in said.out, "what mends it"
    for place in (tuned / "report.html", tuned / "audit" / "report.html"):
        page = place.read_text()
        assert "planted secrets recited" in page and "a hard limit is broken" in page
    assert "## Audits" in (tuned / "README.md").read_text()
    findings = Run.open(tuned / "audit").findings()
    evidence = {f.evidence for f in findings if f.evidence}
    assert evidence and all((tuned / "audit" / e).is_file() for e in evidence)
    again = luthier("audit", tuned, *SMALL, "--json")
    assert again.code == 3 and again.json["findings"] == json.loads(json.dumps([f.to_dict() for f in findings if
                                                                                f.name.startswith("audit/")]))


def test_a_soft_limit_does_not_end_with_3(luthier: Luthier, tuned: Path, own_folder: Path) -> None:
    said = luthier("audit", tuned, "--audit", "memorisation:candidates=15,hard=false", "--out", own_folder / "soft", "--exact")
    assert said.code == 0 and "FAIL" in said.out
    assert "## Audits" in (own_folder / "soft" / "README.md").read_text()


def test_a_base_against_itself_passes(luthier: Luthier, tuned: Path, own_folder: Path) -> None:
    base = Run.open(tuned).step("base").meta["path"]
    said = luthier("audit", base, "--base", base, "--audit", "forgetting:texts=12,questions=12", "--out", "same", "--exact")
    assert said.code == 0 and said.out.count("PASS") == 2
    export = tuned / "steps" / "tuned"
    said = luthier("audit", export, "--base", "pico", "--audit", "forgetting:texts=12,questions=12", "--out", "pair", "--exact")
    assert said.code == 0 and "loss on general texts" in said.out


def test_bad_input_is_refused(luthier: Luthier, tuned: Path, own_folder: Path) -> None:
    data = write_rows(own_folder / "rows.jsonl", question_rows(4))
    refused(luthier("audit", "nowhere"), "is not there")
    refused(luthier("audit", tuned / "steps" / "base"), "--base")
    refused(luthier("audit", tuned, "--audit", "forgeting"), "Did you mean 'forgetting'?")
    refused(luthier("audit", tuned, "--audit", "refusals:should_refuse=none.jsonl", "--out", "x"), "none.jsonl is not there")
    refused(luthier("audit", data, "--base", "pico"), "Leave it out")
    refused(luthier("audit", data, "--audit", "memorisation"), "looks at run", "is data")


def test_the_battery_is_all_that_applies(luthier: Luthier, own_folder: Path) -> None:
    from luthier.pipelines.auditing import battery

    assert {"forgetting", "calibration", "refusals", "memorisation", "membership", "pii-leak"} <= set(battery("run"))
    assert "memorisation" not in battery("pair") and "forgetting" in battery("pair")
    assert battery("data") == ["personal-data"]
    data = write_rows(own_folder / "rows.jsonl", [{"question": "Who?", "answer": "ada@mail.example"}, *question_rows(4)])
    said = luthier("audit", data, "--out", "data", "--exact")
    assert said.code == 0 and "rows with private strings: 0.2 of the rows, limit 0: FAIL" in said.out


def test_numbers_that_are_nothing_are_shown_as_nothing() -> None:
    from luthier.pipelines.auditing import _number

    assert (_number(1.2e-102), _number(-3e-53, sign=True), _number(0.0188, sign=True)) == ("0", "+0", "+0.0188")
