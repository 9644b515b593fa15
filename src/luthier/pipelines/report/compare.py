"""The report of a comparison, drawn from `comparison.json` alone: as a page, as Markdown, and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple

from luthier.core.finding import Finding
from luthier.pipelines.report.markup import ABSENT, Html, details, el, escape, join, pairs
from luthier.pipelines.report.markup import table as html_table
from luthier.pipelines.report.plots import Point, curves, forest, front, pareto
from luthier.pipelines.report.words import chip, metric_words, needed_words, outnumbered

Told = dict[str, Any]


class Cell(NamedTuple):
    """What a table shows, and the exact number behind it."""

    text: str
    value: Any = None


class Grid(NamedTuple):
    """A table: heads, one letter a column (t for text, n for numbers), rows."""

    head: list[str]
    align: str
    rows: list[list[Cell]]


# --- what is told --------------------------------------------------------------------------------------------------

def sizes(told: Told) -> list[str]:
    """What the verdicts rest on, set by set."""
    found = {}
    for row in told["table"]:
        alone = row["clusters"] == row["questions"]
        found[row["set"]] = f"{row['set']}: {row['questions']:,} questions, " + (
            "each a cluster of its own" if alone else f"in {row['clusters']:,} clusters")
    return list(found.values())


def about(told: Told) -> str:
    """One sentence: what was compared."""
    count = len(told["seeds"])
    rows = sum(told["rows"].get("trained", {}).values())
    base = told["base"].get("name", "")
    return (f"{len(told['arms'])} arms by {told['varies']}" + (f" on {base}" if base else "")
            + (f", {rows:,} rows trained on" if rows else "") + f", {count} training{'s' * (count > 1)} an arm"
            + f" (seed{'s' * (count > 1)} {', '.join(map(str, told['seeds']))})")


def scores(told: Told, name: str) -> Grid:
    """Arms by metrics on one set."""
    metrics = [m for m in told["metrics"] if any((r["set"], r["metric"]) == (name, m) for r in told["table"])]
    cells = {(r["arm"], r["metric"]): r for r in told["table"] if r["set"] == name}
    arms = list(dict.fromkeys(r["arm"] for r in told["table"] if r["set"] == name))
    rows = []
    for arm in arms:
        row = [Cell(arm)]
        for metric in metrics:
            r = cells.get((arm, metric))
            span = f"{r['low']:.3f} to {r['high']:.3f}" if r and r["low"] is not None else ABSENT
            seeds = ", ".join(f"{v:.3f}" for v in r["by_seed"]) if r and len(r["by_seed"]) > 1 else ABSENT
            row += [_number(r and r["value"]), Cell(span), Cell(seeds)]
        rows.append(row)
    head = ["arm", *(h for m in metrics for h in (metric_words(m), "interval", "by seed"))]
    return Grid(head, "t" + "ntt" * len(metrics), rows)


def costs(told: Told) -> Grid:
    """What one training of each arm took, and the search before it."""
    head = ["arm", "learning rate", "trained parameters", "artifact", "optimizer steps", "trained tokens", "seconds",
            "tokens/s", "peak memory", "search: trials", "search: tokens", "search: seconds", "charged seconds"]
    rows = []
    for arm in told["arms"]:
        c, s = arm["cost"], arm["search"]
        rate = arm["learning_rate"]
        rows.append([
            Cell(arm["arm"]), Cell(f"{rate['value']:g}" if rate else ABSENT, rate.get("value")),
            _exact(c["trained_parameters"]), Cell(_bytes(c["artifact_bytes"]), c["artifact_bytes"]), _exact(c["steps"]),
            _exact(c["tokens"]), _exact(c["seconds"], 1), _exact(c["tokens_per_second"]), _exact(c["peak_mb"], 0, " MB"),
            _exact(s["trainings"]), _exact(s["tokens"]), _exact(s["seconds"], 1), _exact(c["seconds"] + s["seconds"], 1)])
    return Grid(head, "t" + "n" * (len(head) - 1), rows)


def judged(told: Told, against: bool = False) -> Grid:
    """Every pair with its verdict; `against` what was not tuned, else the arms among each other."""
    head = ["set", "metric", "left", "right", "difference", "interval", "verdict", "p, Holm", "visible", "needed"]
    rows = []
    for f in map(Finding.from_dict, told["findings"]):
        e = f.extra
        if (e["left_arm"] in told["references"]) != against:
            continue
        needed = f"{e['needed']:,} more {e['needed_unit']}" if f.verdict == "undecided" and e["needed"] is not None else ABSENT
        rows.append([Cell(e["set"]), Cell(e["metric"]), Cell(e["left_arm"]), Cell(e["right_arm"]),
                     Cell(f"{f.difference:+.3f}", f.difference),
                     Cell(f"{f.interval[0]:+.3f} to {f.interval[1]:+.3f}" if f.interval else ABSENT), Cell(f.verdict),
                     Cell(ABSENT if e["p_holm"] is None else f"{e['p_holm']:.3g}", e["p_holm"]),
                     Cell(ABSENT if e["visible_family"] is None else f"±{e['visible_family']:.3f}", e["visible_family"]),
                     Cell(needed, e["needed"])])
    return Grid(head, "ttttnttnnt", rows)


def notes(told: Told) -> list[str]:
    """What a reader has to know to read the numbers."""
    method = len(told["seeds"]) >= 3
    kind = f"each method, trained anew under {len(told['seeds'])} seeds" if method else \
        "these models, not about the methods: that takes 3 seeds (--seeds 3)"
    found = [f"The verdicts speak of {kind}. Sets: {'; '.join(sizes(told))}.",
             f"Each family of comparisons (families.json) is judged together by Holm's procedure at {1 - told['level']:.2g}. "
             f"'visible' is the smallest true difference that a pair shows with probability {told['power']:g} when it has to "
             f"pass Holm's strictest step; differences within ±{told['margin']:g} are called no difference."]
    found += [f"Budgets are not equal: {b}." for b in told["budgets"]] or [
        "Budgets are equal: every arm made the same optimizer steps on the same number of tokens."]
    swept = [a for a in told["arms"] if "trials" in a["learning_rate"]]
    if swept:
        found.append(f"The learning rate of each arm was chosen on dev by {len(swept[0]['learning_rate']['trials'])} trainings "
                     "with one seed; the test was opened after that. What the search took is charged once an arm.")
    found += [f"{a['arm']}: the best rate, {a['learning_rate']['value']:g}, is at the end of what was tried; a wider search "
              "(--learning-rate sweep:TRIALS with more trials) may find a better one." for a in swept
              if a["learning_rate"]["at_end"]]
    if told.get("executor") not in (None, "local"):
        found.append(f"Seconds were measured while steps ran side by side ({told['executor']}): they compare less well than "
                     "steps, tokens and parameters.")
    return found


def _exact(value: float, places: int = 0, unit: str = "") -> Cell:
    return Cell(f"{value:,.{places}f}{unit}", value)


def _number(value: Any) -> Cell:
    return Cell(ABSENT if value is None else f"{value:.3f}", value)


def _bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def _sets(told: Told) -> list[str]:
    return list(dict.fromkeys(r["set"] for r in told["table"]))


# --- as lines and as Markdown --------------------------------------------------------------------------------------

def lines(told: Told) -> list[str]:
    """For a terminal."""
    out = [about(told) + ".", ""]
    for name in _sets(told):
        out += [f"{name}", *_aligned(scores(told, name)), ""]
    out += ["Cost of one training", *_aligned(costs(told)), "", "Verdicts (about the right arm)", *_aligned(judged(told)), ""]
    if told["references"]:
        out += [f"Against {' and '.join(told['references'])}", *_aligned(judged(told, against=True)), ""]
    return [*out, *(f"- {n}" for n in notes(told)), "", told["recommendation"]["words"]]


def _aligned(grid: Grid) -> list[str]:
    texts = [grid.head, *([c.text for c in row] for row in grid.rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(grid.head))]
    return ["  " + "  ".join(t.rjust(w) if a == "n" else t.ljust(w)
                             for t, w, a in zip(row, widths, grid.align, strict=True)).rstrip() for row in texts]


def markdown(told: Told) -> str:
    """`comparison.md`."""
    out = ["# Comparison", "", about(told) + ".", "", f"**{told['recommendation']['words']}**", ""]
    for name in _sets(told):
        out += [f"## Scores: {name}", "", *_piped(scores(told, name)), ""]
    out += ["## Cost of one training", "", *_piped(costs(told)), "", "## Verdicts", "",
            "About the right arm; difference is right minus left.", "", *_piped(judged(told)), ""]
    if told["references"]:
        out += ["## Against what was not tuned", "", *_piped(judged(told, against=True)), ""]
    trials = _trials(told)
    if trials.rows:
        out += ["## Learning rates tried on dev", "", *_piped(trials), ""]
    return "\n".join([*out, "## How to read it", "", *(f"- {n}" for n in notes(told)), ""])


def _piped(grid: Grid) -> list[str]:
    rule = ["---:" if a == "n" else "---" for a in grid.align]
    body = [[c.text.replace("|", "\\|") for c in row] for row in grid.rows]
    return ["| " + " | ".join(row) + " |" for row in (grid.head, rule, *body)]


def _trials(told: Told) -> Grid:
    rows = []
    for arm in told["arms"]:
        rate = arm["learning_rate"]
        for trial in sorted(rate.get("trials", ()), key=lambda t: t["learning_rate"]):
            loss = trial["loss"]
            mark = " ← chosen" * (trial["learning_rate"] == rate["value"])
            rows.append([Cell(arm["arm"]), Cell(f"{trial['learning_rate']:g}", trial["learning_rate"]),
                         Cell("diverged" if loss is None else f"{loss:.4f}", loss), Cell(mark.strip() or ABSENT)])
    return Grid(["arm", "learning rate", "dev loss", ""], "tnnt", rows)


# --- as a page -----------------------------------------------------------------------------------------------------

def page(told: Told) -> str:
    """`report.html`."""
    sections: list[tuple[str, str, Html | None]] = [
        ("answer", "The answer in words", _answer(told)), ("scores", "Scores by arm", _scores(told)),
        ("pareto", "Quality against cost", _pareto(told)), ("cost", "Cost", _shown("Cost of one training", costs(told))),
        ("pairs", "Paired comparisons", _comparisons(told)), ("search", "Learning rates", _search(told)),
        ("curves", "Learning curves", _curves(told)),
        ("reading", "How to read it", el("ul", *(el("li", n) for n in notes(told))))]
    there = [(i, t, c) for i, t, c in sections if c is not None]
    contents = el("nav", el("ul", *(el("li", el("a", t, href=f"#{i}")) for i, t, _ in there)), aria_label="Contents")
    head = el("header", el("p", "Luthier · report of a comparison", class_="eyebrow"), el("h1", "Comparison"),
              el("p", about(told), ".", class_="about"),
              pairs([("data", ", ".join(told["asked"]["data"])), ("learning rate", told["asked"]["learning_rate"]),
                     *((a["arm"], a["written"]) for a in told["arms"])], class_="facts"))
    body = join((head, contents, *(
        el("section", el("h2", t, id=f"{i}-title"), c, id=i, aria_labelledby=f"{i}-title") for i, t, c in there)))
    here = files(__package__)
    return Template((here / "page.html").read_text(encoding="utf-8")).substitute(
        title="Comparison – report of Luthier", style=(here / "style.css").read_text(encoding="utf-8"), body=body)


def _shown(label: str, grid: Grid) -> Html:
    """A table with the exact numbers behind what is shown."""
    def cell(c: Cell) -> Html:
        return escape(c.text) if c.value is None else el("data", c.text, value=repr(c.value))

    return html_table(label, grid.head, grid.align, [[cell(c) for c in row] for row in grid.rows])


def _answer(told: Told) -> Html:
    first = next(iter(told["metrics"]))
    found = [f for f in map(Finding.from_dict, told["findings"]) if f.extra["metric"] == first]
    said = [el("li", chip(f.verdict), el("span", _sentence(f))) for f in found if f.extra["left_arm"] not in told["references"]]
    return el("div", el("p", el("strong", told["recommendation"]["words"])), el("ul", *said, class_="verdicts"))


def _sentence(f: Finding) -> Html:
    e = f.extra
    interval = f", interval {f.interval[0]:+.3f} to {f.interval[1]:+.3f}" if f.interval else ""
    more = needed_words(f) if f.verdict == "undecided" else None
    size = f"{f.difference:+.3f} {metric_words(e['metric'])}{interval}"
    tail = join(("; about ", more, " would decide")) if more else None
    return join((f"{e['set']}: {e['right_arm']} against {e['left_arm']}, {size}", outnumbered(f), tail, "."))


def _scores(told: Told) -> Html:
    return el("div", *(part for name in _sets(told)
                       for part in (el("h3", name), _shown(f"Scores on {name}", scores(told, name)))))


def _pareto(told: Told) -> Html:
    """Quality of each set over trained parameters and over seconds, by the first metric."""
    metric, higher = next(iter(told["metrics"].items()))
    blocks = []
    axes: tuple[tuple[str, Callable[[Told], float]], ...] = (
        ("trained parameters", lambda arm: arm["cost"]["trained_parameters"]),
        ("seconds of training", lambda arm: arm["cost"]["seconds"]))
    for name in _sets(told):
        rows = {r["arm"]: r for r in told["table"] if (r["set"], r["metric"]) == (name, metric)}
        arms = [a for a in told["arms"] if a["arm"] in rows]
        base = {r: rows[r]["value"] for r in told["references"] if r in rows}
        blocks.append(el("h3", name))
        for words, cost in axes:
            on = front([(cost(a), rows[a["arm"]]["value"]) for a in arms], higher)
            points = [Point(a["arm"], cost(a), **{k: rows[a["arm"]][k] for k in ("value", "low", "high")}, front=best)
                      for a, best in zip(arms, on, strict=True)]
            blocks.append(pareto(points, words, metric_words(metric), base))
    return el("div", *blocks)


def _comparisons(told: Told) -> Html:
    found = list(map(Finding.from_dict, told["findings"]))
    blocks: list[Html] = []
    for metric in told["metrics"]:
        mine = [f for f in found if f.extra["metric"] == metric]
        among = [f for f in mine if f.extra["left_arm"] not in told["references"]]
        against = [f for f in mine if f.extra["left_arm"] in told["references"]]
        drawn = [forest(among), *([el("h4", "Against what was not tuned"), forest(against)] if against else [])]
        blocks.append(details(el("h3", metric_words(metric)), *drawn, open_=not blocks, class_="metric"))
    tables: Sequence[Html] = [_shown("Arms among each other", judged(told))]
    if told["references"]:
        tables = [*tables, _shown("Against what was not tuned", judged(told, against=True))]
    return el("div", *blocks, *tables)


def _search(told: Told) -> Html | None:
    grid = _trials(told)
    return _shown("Learning rates tried on dev", grid) if grid.rows else None


def _curves(told: Told) -> Html | None:
    """The loss of the first seed's training, and that on dev where it was measured."""
    first = {a["arm"]: a["curves"][0] for a in told["arms"] if a["curves"]}
    drawn = [curves({arm: c.get(part, []) for arm, c in first.items()}, what)
             for part, what in (("loss", "Training loss of the first seed"), ("dev", "Loss on dev of the first seed"))]
    kept = [d for d in drawn if d is not None]
    return el("div", *kept) if kept else None
