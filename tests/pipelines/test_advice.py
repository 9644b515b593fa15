"""advice: a sentence is said only when findings say it, and names them."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.core.finding import Finding
from luthier.pipelines.advice import Advice, _time, advice


def compared(left: str, right: str, verdict: Any, name: str = "unseen", needed: int | None = None) -> Finding:
    return Finding(f"compare/f1/{name}/{left}|{right}", 0.2, 0.4, 0.2, verdict, extra={
        "left_arm": left, "right_arm": right, "metric": "f1", "set": name, "needed": needed, "margin": 0.02})


def gained(part: str, verdict: Any, arm: str = "tuned", needed: int | None = None) -> Finding:
    metric = "answer tokens" if part == "brevity" else "f1"
    return Finding(f"gain/{part}/{metric}/base|{arm}", 0.2, 0.4, -4.0 if part == "brevity" else 0.2, verdict, extra={
        "gain": part, "left_arm": "base", "right_arm": arm, "metric": metric, "needed": needed, "margin": 0.02})


def said(*findings: Finding) -> list[Advice]:
    made = advice(findings)
    names = {f.name for f in findings}
    assert all(a.findings and set(a.findings) <= names for a in made), "each sentence is backed"
    return made


ALL = "base", "base+retrieval", "tuned", "tuned+retrieval"


def test_each_sentence_needs_its_finding():
    won = said(compared("base", "base+retrieval", "better"), compared("base", "tuned", "better"),
               compared("base+retrieval", "tuned+retrieval", "better"), compared("tuned", "tuned+retrieval", "better"),
               gained("format", "better"), gained("brevity", "better"), gained("knowledge", "no difference"))
    starts = [a.text.split(":")[0] for a in won]
    assert starts == ["Use retrieval", "Train for form", "Train for brevity",
                      "Training put no knowledge into arm tuned that can be seen (within ±0.02 f1)", "Use both"]
    assert "documents change" in won[0].text
    for gone in ("format", "brevity", "knowledge"):
        kept = [gained(p, "better") for p in ("format", "brevity", "knowledge") if p != gone]
        assert not any(gone in n for a in said(compared("base", "tuned", "better"), *kept) for n in a.findings)


def test_the_order_of_the_arms_does_not_matter():
    one, two = said(compared("base", "base+retrieval", "better")), said(compared("base+retrieval", "base", "worse"))
    assert one[0].text == two[0].text
    assert not any(a.text.startswith("Use retrieval") for a in said(compared("base+retrieval", "base", "better")))


def test_nothing_better_keeps_the_base():
    (kept,) = said(compared("base", "tuned", "worse"), compared("base", "base+retrieval", "no difference"))
    assert kept.text == "Keep the base: no arm is better than it." and len(kept.findings) == 2


def test_scores_that_never_differ_are_no_ground_for_keeping_the_base():
    same = [compared("base", "tuned", "undecided", needed=n, name=name) for name, n in (("known", 140), ("unseen", 134))]
    for f, asked in zip(same, (9, 15), strict=True):
        f.extra.update(questions=asked, alike=asked)
    (only,) = said(*same)
    assert only.text == ("No arm scores other than the base on any question (9 of known and 15 of unseen): these answers "
                         "cannot tell the arms apart: about 140 more questions would decide. Read some of them first; until "
                         "then the base is the cheaper choice.")


@pytest.mark.parametrize(("seconds", "told"), [(0.42, "0.4 s"), (42.4, "42 s"), (100, "2 minutes"), (3000, "50 minutes"),
                                               (9000, "2.5 hours")])
def test_times_are_told_in_the_unit_that_reads_best(seconds, told):
    assert _time(seconds) == told


def test_undecided_is_said_with_what_would_decide():
    (open_,) = said(compared("base", "tuned", "undecided", needed=60),
                    compared("base", "base+retrieval", "undecided", needed=90))
    assert open_.text.startswith("Undecided whether any arm is better") and "about 60 more questions" in open_.text
    (one, *_) = said(compared("base", "tuned", "better"), gained("knowledge", "undecided", needed=140))
    assert "learned the content of the documents: about 140 more questions would decide" in one.text


def test_contradictions_are_said_and_praise_is_not():
    made = said(compared("base", "base+retrieval", "better", "known"), compared("base", "base+retrieval", "worse", "unseen"))
    assert [a.text.split(":")[0] for a in made] == ["It depends"] and len(made[0].findings) == 2


def test_both_needs_both_and_no_findings_say_nothing():
    half = said(compared("base", "base+retrieval", "better"), compared("tuned", "tuned+retrieval", "better"),
                compared("base+retrieval", "tuned+retrieval", "undecided"))
    assert not any(a.text.startswith("Use both") for a in half)
    assert advice([]) == []


@pytest.mark.parametrize(("verdict", "start"), [("better", "Use arm tuned"), ("worse", "Keep the base")])
def test_rows_have_one_set(verdict, start):
    assert said(compared("base", "tuned", verdict, "test"))[0].text.startswith(start)
