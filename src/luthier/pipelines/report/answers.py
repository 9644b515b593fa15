"""What came of it: the verdicts in words, the arms by metric, and every paired comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from luthier.core.finding import Finding
from luthier.pipelines.alike import alike
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
    pairs,
    span,
    table,
    tables,
)
from luthier.pipelines.report.plots import forest
from luthier.pipelines.report.words import (
    SET_GLOSS,
    VERDICTS,
    all_alike,
    arm_heading,
    arm_order,
    chip,
    group_of,
    group_order,
    metric_gloss,
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
        lists += [el("h3", name), *_gloss(name), el("ul", *_told(list(group), facts.cluster), class_="verdicts")]
    note = el("p", "Arms that score alike on a few questions may still differ: only many answers that agree show that a "
              "difference is rare.", class_="quiet") if any(map(alike, chosen)) else None
    return el("div", *lists, note)


def _told(found: list[Finding], cluster: str) -> list[Html]:
    whole = all_alike(found)
    if whole is not None:
        return [el("li", chip(found[0].verdict), el("span", whole))]
    return [el("li", chip(f.verdict), el("span", sentence(f, cluster))) for f in found]


def scores(facts: Facts) -> Html | None:
    """Metrics by arms, one table a set: metrics in groups, what matters most first."""
    if not facts.table:
        return None
    blocks = []
    for name in sorted({str(r["set"]) for r in facts.table}, key=set_order):
        rows = [r for r in facts.table if str(r["set"]) == name]
        blocks += [el("h3", name), *_gloss(name), _scores_of(name, rows, facts)]
    bare = all(r.get("low") is None for r in facts.table)
    note = "Means without intervals: no comparison has been finished." if bare else \
        "Each mean with its interval below it; none where fewer than 6 " + f"{facts.cluster}s were asked about or all scores " \
        "are equal. A dash: not measured for this arm."
    return el("div", el("p", note, class_="quiet"), *blocks, _together(facts), _meanings(facts))


def _gloss(name: str) -> list[Html]:
    return [el("p", SET_GLOSS[name], class_="quiet")] if name in SET_GLOSS else []


def _scores_of(name: str, rows: list[dict[str, Any]], facts: Facts) -> Html:
    cells = {(r["arm"], str(r["metric"])): r for r in rows}
    arms = sorted({str(r["arm"]) for r in rows}, key=arm_order)
    metrics = sorted({str(r["metric"]) for r in rows}, key=metric_order)
    groups: list[tuple[Any, list[list[Any]]]] = []
    for group in sorted({group_of(m) for m in metrics}, key=lambda g: group_order(g, name)):
        members = [m for m in metrics if group_of(m) == group]
        groups.append((group, [[_metric(m, facts), *(_score(cells.get((a, m))) for a in arms)] for m in members]))
    asked = [[label, *(_range(r.get(key) for r in rows if r["arm"] == a) for a in arms)]
             for label, key in (("questions", "questions"), (f"{facts.cluster}s", "clusters"))]
    groups.append(("Asked", asked))
    head = ["", *map(arm_heading, arms)]
    return tables(f"Scores on {name}", head, "t" + "n" * len(arms), groups, class_="scores", data_set=name)


def _metric(metric: str, facts: Facts) -> Html:
    lower = facts.directions.get(metric) is False
    return join((metric_words(metric), el("small", "lower is better") if lower else None))


def _score(row: dict[str, Any] | None) -> Html:
    if row is None:
        return escape(ABSENT)
    interval = el("small", span(row.get("low"), row.get("high"))) if row.get("low") is not None else None
    return join((number(row.get("value")), interval))


def _range(counts: Iterable[Any]) -> Html:
    """One count, or "from–to" where the metrics of an arm rest on different ones."""
    known = sorted({c for c in counts if finite(c)})
    return join((number(c) for c in {known[0]: 0, known[-1]: 0}), "–") if known else escape(ABSENT)


def _together(facts: Facts) -> Html | None:
    """Numbers of all sets together that a metric has besides its mean: recall at other depths, precision of abstaining."""
    told = {a.name: {(m, key): v for m, sets in (a.meta.get("details") or {}).items()
                     for key, v in (sets.get("all") or {}).items() if finite(v)} for a in facts.arms}
    keys = sorted({k for found in told.values() for k in found}, key=lambda k: metric_order(k[0]))
    if not keys:
        return None
    rows = [[key if key.startswith(metric) else join((metric_words(metric), ": ", key)),
             *(number(told[a.name].get((metric, key))) for a in facts.arms)] for metric, key in keys]
    head = ["", *(arm_heading(a.name) for a in facts.arms)]
    return details("More numbers, over all sets together",
                   table("More numbers", head, "t" + "n" * len(facts.arms), rows, class_="scores"))


def _meanings(facts: Facts) -> Html | None:
    """What each metric measures, in the words of its component."""
    gloss = metric_gloss()
    found = sorted({str(r["metric"]) for r in facts.table}, key=metric_order)
    rows = [(metric_words(m), gloss[m.partition("@")[0]]) for m in found if m.partition("@")[0] in gloss]
    return details("What the numbers mean", pairs(rows, class_="meanings")) if rows else None


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
    head = ["arms", "first", "second", "difference", "verdict", "to decide", "p", "p, Holm", f"questions, {cluster}s"]
    groups = [(name, [_pair(f) for f in group]) for name, group in groupby(found, key=lambda f: str(f.extra["set"]))]
    notes = dict.fromkeys(f.detail for f in found if f.detail)
    tests = dict.fromkeys(str(f.extra["test"]) for f in found if f.extra.get("test") not in (None, "none"))
    notes.update(dict.fromkeys([f"test: {', '.join(tests)}; p, Holm: corrected for all comparisons of this metric"]
                               if tests else []))
    said = el("ul", *(el("li", n) for n in notes), class_="quiet notes") if notes else None
    return join((tables(f"Comparisons by {metric}", head, "tnnnttnnn", groups, class_="pairs"), said))


def _pair(finding: Finding) -> list[Any]:
    extra = finding.extra
    low, high = finding.interval or (None, None)
    interval = el("small", span(low, high, sign=True)) if low is not None else None
    arms = join((extra["left_arm"], el("span", " → ", class_="quiet"), el("b", extra["right_arm"])))
    asked = join((number(extra.get("questions")), ", ", number(extra.get("clusters"))))
    return [arms, number(finding.left), number(finding.right), join((number(finding.difference, sign=True), interval)),
            chip(finding.verdict), needed_words(finding) or ABSENT, number(extra.get("p")), number(extra.get("p_holm")), asked]
