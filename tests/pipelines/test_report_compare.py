"""The report of a comparison: drawn from its JSON alone, whatever is missing, and the front against brute force."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.finding import Finding
from luthier.pipelines.report import compare as report
from luthier.pipelines.report.markup import number
from luthier.pipelines.report.plots import Point, curves, free, front, pareto
from luthier.pipelines.report.words import outnumbered


def finding(left: str, right: str, verdict: str = "undecided", interval: list[float] | None = None, needed: int | None = 40,
            name: str = "unseen") -> dict:
    return {"name": f"compare/f1/{name}/{left}|{right}", "left": 0.5, "right": 0.52, "difference": 0.02, "verdict": verdict,
            "interval": interval, "tolerance": None, "unit": "f1", "evidence": "comparison.json", "detail": "these models",
            "extra": {"test": "sign flip", "p": 0.3, "p_holm": 0.6, "clusters": 12, "questions": 12, "seeds": 1,
                      "needed": needed, "needed_unit": "questions", "left_arm": left, "right_arm": right, "metric": "f1",
                      "set": name, "margin": 0.02, "level": 0.95, "visible": None, "visible_family": 0.3}}


def arm(name: str, parameters: int, **rate: object) -> dict:
    cost = {"steps": 4, "tokens": 100, "seconds": 2.5, "step_seconds": 3.0, "trained_parameters": parameters,
            "artifact_bytes": 2048, "peak_mb": 300.0, "trainings": 1, "tokens_per_second": 40.0}
    return {"arm": name, "written": name, "cost": cost, "search": {**cost, "trainings": 3, "seconds": 7.5},
            "learning_rate": {"value": 1e-3, "source": "x", **rate}, "by_seed": [{"seed": 0, **cost}],
            "curves": [{"seed": 0, "loss": [[1.0, 2.0], [2.0, 1.0]], "mean_of": 1, "dev": [[2, 1.5]]}]}


def row(name: str, value: float) -> dict:
    return {"arm": name, "set": "unseen", "metric": "f1", "value": value, "low": value - 0.1, "high": value + 0.1,
            "by_seed": [value], "questions": 12, "clusters": 12}


@pytest.fixture
def told() -> dict:
    trials = [{"learning_rate": 1e-3, "loss": 1.0}, {"learning_rate": 3e-4, "loss": None}, {"learning_rate": 3e-3, "loss": 1.2}]
    return {"format": 1, "run": "r", "base": {"name": "pico"}, "asked": {"data": ["rows.jsonl"], "learning_rate": "sweep:3"},
            "varies": "method", "seeds": [0], "seed": 0, "level": 0.95, "margin": 0.02, "power": 0.8, "metrics": {"f1": True},
            "executor": "local", "references": ["base"], "rows": {"trained": {"examples.train": 40}, "left_out": 0},
            "arms": [arm("lora|x", 6000, trials=trials, at_end=True, default=1e-3), arm("<b>", 600)],
            "budgets": [], "table": [row("base", 0.2), row("lora|x", 0.5), row("<b>", 0.52)],
            "findings": [finding("lora|x", "<b>", interval=[-0.1, 0.14]), finding("base", "<b>", "better", [0.1, 0.4], None)],
            "families": {}, "recommendation": {"arm": "<b>", "words": "Take <b>."}}


class Numbers(HTMLParser):
    """Exact values and open tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [v for k, v in attrs if k in ("value", "data-value") and v]


def test_the_page_says_what_the_json_says(told):
    text = report.page(json.loads(json.dumps(told)))
    page = Numbers()
    page.feed(text)
    assert "Take &lt;b&gt;." in text and "<b>." not in text
    for value in (0.52, 6000, 2048, 2.5, 7.5, 10.0, 0.3):
        assert repr(value) in page.values, value
    assert page.tags.count("figure") >= 5  # two of quality against cost, two forests, curves
    assert "is at the end of what was tried" in text and "diverged" in text


def test_markdown_and_lines_hold_every_table(told):
    text, lines = report.markdown(told), "\n".join(report.lines(told))
    for part in ("0.520", "0.420 to 0.620", "+0.020", "40 more questions", "±0.300", "2.0 kB", "10.0", "Budgets are equal"):
        assert part in text and part in lines, part
    assert "lora\\|x" in text and "| 0.0003 | diverged | – |" in text and "1 training an arm (seed 0)" in text
    cells = [line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("| lora")]
    assert cells == [5, 14, 5, 5, 5]  # scores, cost, three trials: no name breaks a table


def test_what_is_not_there_is_left_out(told):
    told.update(references=[], findings=told["findings"][:1], table=told["table"][1:], executor="ray:local", rows={},
                budgets=["optimizer steps differ: a 1, b 2"])
    for a in told["arms"]:
        a.update(learning_rate={}, curves=[])
    text = report.page(told)
    assert "Against what was not tuned" not in text and 'id="search"' not in text and 'id="curves"' not in text
    assert "Budgets are not equal: optimizer steps differ" in text and "side by side (ray:local)" in text


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_the_front_is_what_nothing_dominates(points):
    found = front([(float(c), float(v)) for c, v in points])
    for (cost, value), there in zip(points, found, strict=True):
        dominated = any((c <= cost and v > value) or (c < cost and v >= value) for c, v in points)
        assert there == (not dominated)
    assert any(found)


def test_lower_may_be_better_and_points_may_stand_alone():
    assert front([(1, 5.0), (2, 4.0), (3, 4.5)], higher_is_better=False) == [True, True, False]
    assert 'data-name="a"' in pareto([Point("a", 10, 0.5)], "seconds", "f1")
    assert curves({"a": []}, "loss") is None and curves({"a": [(1, 2.0)]}, "loss") is not None


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(10, 90), st.integers(0, 260)), min_size=1, max_size=9))
def test_names_of_near_points_keep_apart(names):
    taken: list[tuple[float, float, float]] = []
    for left, width, wanted in names:
        free(left, left + width, wanted, taken)
    assert taken[0][2] == names[0][2], "the first name stands where it wants to"
    for i, (left, right, y) in enumerate(taken):
        assert all(abs(y - z) >= 15 or right < a or left > b for a, b, z in taken[:i])


@pytest.mark.parametrize(("interval", "verdict", "said"), [
    ((0.01, 0.03), "undecided", True), ((-0.03, -0.01), "undecided", True), ((-0.01, 0.03), "undecided", False),
    ((0.01, 0.03), "better", False), (None, "undecided", False)])
def test_a_difference_lost_among_many_comparisons_says_so(interval, verdict, said):
    found = Finding.from_dict(finding("lora", "full", verdict, interval))
    assert ("(Holm)" in (outnumbered(found) or "")) == said


@pytest.mark.parametrize(("value", "said"), [(-4.1e-91, "+0.000"), (0.0, "+0.000"), (2e-7, "+2.0e−07"), (-0.25, "−0.250")])
def test_what_rounding_leaves_of_zero_is_zero(value, said):
    assert f">{said}<" in str(number(value, 3, sign=True))
