"""Every study passes through every line at its smoke scale, and says beforehand what it can see."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from luthier.core import index, recorded
from luthier.core.recipe import Recipe
from luthier.core.study import SCALES
from luthier.pipelines import evidence, reproducing

NAMES = [r["name"] for r in index.rows() if r["kind"] == "study"]


@pytest.mark.parametrize("name", NAMES)
def test_a_study_runs_at_smoke_scale(name, tmp_path, monkeypatch):
    study = reproducing.find(name)
    monkeypatch.chdir(tmp_path)  # as on the command line, the folder of the run is a relative one
    found = reproducing.reproduce(study, "smoke", Path("run"), exact=True)
    assert {row["arm"] for row in found.outcome.table} == set(study.scales["smoke"].arms)
    record = found.record()
    assert record["fingerprint"] == reproducing.fingerprint(study, "smoke") and record["scores"]
    assert any("Verdict:" in line for line in evidence.told(found))
    assert f"## {name}" in evidence.page([record])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stated_before_is_whole(name):
    study = reproducing.find(name)
    assert set(study.scales) == set(SCALES) and len(study.info.seeds) == 1 and study.paper.numbers
    for scale in SCALES:
        said = reproducing.stated(study, scale)
        assert said.units and said.visible and set(said.visible) == set(said.smallest)
        assert any(c.main and c.name in said.visible for c in study.claims()) or scale == "smoke"
    arms = reproducing.grid_of(study, "default").arms
    named = {a for g in study.guards() for a in g.arms} | {a for c in study.choices() for a in c.among}
    named |= {a for c in study.claims() for a in (c.left, c.right)} - {c.name for c in study.choices()}
    assert named <= set(arms)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_a_study_can_be_opened_again(name):
    """What is written into a run's folder is what was run: worlds with seeds of their own, too."""
    made = reproducing.grid_of(reproducing.find(name), "smoke").recipe()
    again = Recipe(yaml.safe_load(made.to_yaml()))
    assert again.identity == made.identity and again.fill() == made.fill()


@pytest.mark.parametrize("record", recorded.records().values(), ids=lambda r: r["study"])
def test_a_record_is_of_the_study_as_it_is(record):
    study = reproducing.find(record["study"])
    if record["version"] == study.info.version:
        assert record["fingerprint"] == reproducing.fingerprint(study, record["scale"]), "raise the study's version"
    assert recorded.path_of(record["seed"], record["study"]).stat().st_size <= recorded.MOST_BYTES


def test_the_page_of_evidence_is_made_from_the_records():
    page = recorded.FOLDER.parents[3] / "docs" / "evidence.md"
    assert page.read_text(encoding="utf-8") == evidence.page(recorded.records().values()), "python scripts/make_evidence.py"
