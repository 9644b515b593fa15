"""What came of it: the verdicts in words, the arms by metric, and every paired comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from luthier.core.finding import Finding
from luthier.pipelines.report.facts import Facts, primary
from luthier.pipelines.report.markup import (
    ABSENT,
    Html,
    counted,
    details,
    el,
    escape,
    finite,
    join,
    number,
    span,
    table,
)
from luthier.pipelines.report.plots import forest
from luthier.pipelines.report.words import (
    SET_GLOSS,
    VERDICTS,
    arm_order,
    chip,
    metric_order,
    metric_words,
    needed_words,
    sentence,
    set_order,
)


def verdicts(facts: Facts) -> Html | None:
    """One sentence per set and pair of arms, on the metric that answers for the set."""
    metrics: dict[str, set[str]] = {}
    for finding in facts.comparisons:
        metrics.setdefault(finding.extra["set"], set()).add(finding.extra["metric"])
    chosen = [f for f in facts.comparisons if f.extra["metric"] == primary(metrics[f.extra["set"]], f.extra["set"])]
    chosen.sort(key=lambda f: set_order(f.extra["set"]))
    if not chosen:
        return None
    lists = []
    for name, group in groupby(chosen, key=lambda f: str(f.extra["set"])):
        told = [el("li", chip(f.verdict), el("span", sentence(f, facts.cluster))) for f in group]
        lists += [el("h3", name), el("ul", *told, class_="verdicts")]
    return el("div", *lists)


def scores(facts: Facts) -> Html | None:
    """Arms by metrics, one table a set."""
    if not facts.table:
        return None
    blocks = []
    for name in sorted({str(r["set"]) for r in facts.table}, key=set_order):
        rows = [r for r in facts.table if str(r["set"]) == name]
        blocks += [el("h3", name), *_gloss(name), _scores_of(name, rows, facts.cluster)]
    bare = all(r.get("low") is None for r in facts.table)
    note = "Means without intervals: no comparison has been finished." if bare else \
        "Each mean with its interval below it."
    return el("div", el("p", note, class_="quiet"), *blocks)


def _gloss(name: str) -> list[Html]:
    return [el("p", SET_GLOSS[name], class_="quiet")] if name in SET_GLOSS else []


def _scores_of(name: str, rows: list[dict[str, Any]], cluster: str) -> Html:
    metrics = sorted({str(r["metric"]) for r in rows}, key=metric_order)
    cells = {(r["arm"], str(r["metric"])): r for r in rows}
    body = []
    for arm in sorted({str(r["arm"]) for r in rows}, key=arm_order):
        mine = [cells[arm, m] for m in metrics if (arm, m) in cells]
        body.append([arm, *(_score(cells.get((arm, m))) for m in metrics),
                     _range(r.get("questions") for r in mine), _range(r.get("clusters") for r in mine)])
    head = ["arm", *map(metric_words, metrics), "questions", f"{cluster}s"]
    return table(f"Scores on {name}", head, "t" + "n" * (len(head) - 1), body, class_="scores", data_set=name)


def _score(row: dict[str, Any] | None) -> Html:
    if row is None:
        return escape(ABSENT)
    interval = el("small", span(row.get("low"), row.get("high"))) if row.get("low") is not None else None
    return join((number(row.get("value")), interval))


def _range(counts: Iterable[Any]) -> Html:
    """One count, or "from–to" where the metrics of an arm rest on different ones."""
    known = sorted({c for c in counts if finite(c)})
    return join((number(c) for c in {known[0]: 0, known[-1]: 0}), "–") if known else escape(ABSENT)


def comparisons(facts: Facts) -> Html | None:
    """Every paired comparison: a forest plot and a table for each metric, the first one open."""
    blocks: list[Html] = []
    for metric, group in groupby(facts.comparisons, key=lambda f: str(f.extra["metric"])):
        found = list(group)
        summary = join((el("h3", metric_words(metric)), el("span", " ", _tally(found), class_="quiet")))
        blocks.append(details(summary, forest(found), _pairs_table(metric, found, facts.cluster),
                              open_=not blocks, class_="metric"))
    return el("div", *blocks) if blocks else None


def _tally(found: list[Finding]) -> Html:
    counts = Counter(str(f.verdict) for f in found)
    said = join((f"{counts[v]} {v}" for v in (*VERDICTS, *(c for c in counts if c not in VERDICTS)) if counts[v]), ", ")
    return join((counted(len(found), "comparison"), ": ", said))


def _pairs_table(metric: str, found: list[Finding], cluster: str) -> Html:
    head = ["set", "left arm", "right arm", "left", "right", "difference", "interval", "verdict", "needed", "test", "p",
            "p, Holm", "questions", f"{cluster}s"]
    rows = [_pair(f) for f in found]
    notes = dict.fromkeys(f.detail for f in found if f.detail)
    said = el("ul", *(el("li", n) for n in notes), class_="quiet notes") if notes else None
    return join((table(f"Comparisons by {metric}", head, "tttnnnntttnnnn", rows, class_="pairs"), said))


def _interval(finding: Finding) -> Html:
    low, high = finding.interval or (None, None)
    return span(low, high, sign=True)


def _pair(finding: Finding) -> list[Any]:
    extra = finding.extra
    return [
        extra["set"], extra["left_arm"], extra["right_arm"], number(finding.left), number(finding.right),
        number(finding.difference, sign=True), _interval(finding),
        chip(finding.verdict), needed_words(finding) or ABSENT, extra.get("test") or ABSENT, number(extra.get("p")),
        number(extra.get("p_holm")), number(extra.get("questions")), number(extra.get("clusters")),
    ]
