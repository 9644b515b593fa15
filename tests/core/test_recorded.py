"""Recorded results: what status they give a seed, and how they are kept."""

from __future__ import annotations

import json

import pytest

from luthier.core import catalog, recorded

RECORD = {"study": "s", "seed": 114, "version": 2, "scale": "default", "verdict": "not shown at this scale", "why": "w",
          "world": "synthetic world only"}


@pytest.mark.parametrize("status, version, changed, said", [
    ("verified", 2, {}, "studied"),
    ("verified", 2, {"verdict": "undecided"}, "studied"),
    ("verified", 2, {"verdict": "underpowered"}, "underpowered"),
    ("verified", 2, {"verdict": "not applicable"}, "verified"),
    ("verified", 2, {"scale": "large"}, "verified"),
    ("verified", 3, {}, "stale"),
    ("verified", None, {}, "verified"),
    ("runs", 2, {}, "runs"),
    ("stale", 2, {}, "stale")])
def test_a_record_counts_when_it_is_of_this_version_with_a_verdict(status, version, changed, said):
    assert recorded.studied(status, version, {**RECORD, **changed}) == said


def test_without_a_record_nothing_changes():
    assert recorded.studied("verified", 2, None) == "verified"


def test_a_record_is_read_by_the_catalogue(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    recorded.write(RECORD)
    assert recorded.records()[114]["study"] == "s"
    row = catalog.row(114, [("study", "s", 2, [114])])
    assert row["result"]["verdict"] == "not shown at this scale" and row["result"]["current"]
    assert catalog.row(114, [("study", "s", 3, [114])])["result"]["current"] is False
    assert catalog.row(114)["result"] is None
    recorded.records.cache_clear()


def test_a_study_is_no_component_that_realises_its_seed():
    both = catalog.row(114, [("method", "lora", 1, [114]), ("study", "s", 2, [114])])
    assert both["status"] == catalog.row(114, [("method", "lora", 1, [114])])["status"]


def test_a_large_record_loses_its_scores_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    path = recorded.write({**RECORD, "scores": {"arm": {f"question {i}": [0.5] for i in range(5000)}}})
    kept = json.loads(path.read_text())
    assert path.name == "114-s.json" and path.stat().st_size < recorded.MOST_BYTES
    assert kept["scores"] == {} and kept["scores_left_out"] is True
    with pytest.raises(ValueError, match="at most"):
        recorded.write({**RECORD, "table": ["x" * 60_000]})
    recorded.records.cache_clear()
