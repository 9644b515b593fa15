"""Plots as inline SVG that follow the page: places in per cent, text in pixels, colours from the style sheet.

Drawn here and not by a plotting library, because such a drawing keeps the size of its letters from 360 px to print,
takes its colours from the page (light, dark, paper) and weighs a few kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from luthier.core.finding import Finding
from luthier.pipelines.report.markup import Html, el, finite, join, number, places_for, slug
from luthier.pipelines.report.words import chip, metric_words

ROW, MIDDLE = 30, 15  # height of a row of the forest plot and its middle, px
MOST_POINTS = 400
CURVE = 260  # height of the learning curve, px
ARM_COLOURS = 6  # that the style sheet has
NAME, LETTER, NARROW = 15, 7, 320  # height of a name, width of its letters, width of the narrowest plot, px


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within [low, high], at most `most` + 1 of them."""
    width = high - low
    if width <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(width / most))
    step = next(m * power for m in (1, 2, 2.5, 5, 10, 20) if width / (m * power) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


class Scale:
    """Maps a range of values to 0..100 per cent; `flip` puts the high end first."""

    def __init__(self, values: Sequence[float], pad: float = 0.05, flip: bool = False) -> None:
        low, high = min(values), max(values)
        room = (high - low or abs(high) or 1.0) * pad
        self.low, self.high, self.flip = low - room, high + room, flip

    def at(self, value: float) -> float:
        """Per cent of the way."""
        share = 100 * (value - self.low) / (self.high - self.low)
        return round(100 - share if self.flip else share, 3)

    def per_cent(self, value: float) -> str:
        """The same as an SVG length."""
        return f"{self.at(value):g}%"


def forest(findings: Sequence[Finding]) -> Html:
    """One row a comparison: a mark at the difference, a line for the interval, the zero line through all rows.

    Names stand in HTML beside the drawings, so that they wrap above them on a narrow screen.
    """
    drawn = [f for f in findings if finite(f.difference)]
    ends = [v for f in drawn for v in (f.difference, *(f.interval or ())) if finite(v)]
    scale = Scale([0.0, *ends])
    rows: list[Html] = []
    for name, group in groupby(findings, key=lambda f: str(f.extra.get("set"))):
        rows.append(el("p", name, class_="set"))
        rows += [_forest_row(f, scale) for f in group]
    metric = metric_words(str(findings[0].extra.get("metric")))
    caption = el("figcaption", f"Difference in {metric}, second arm minus first. Line: interval. "
                               "Filled mark: decided; hollow mark: undecided. Upright line: no difference.")
    return el("figure", el("div", *rows, _forest_axis(scale), class_="forest"), caption)


def _forest_row(finding: Finding, scale: Scale) -> Html:
    extra = finding.extra
    label = join((extra.get("left_arm"), el("span", " → ", class_="quiet"), el("b", extra.get("right_arm"))))
    shown = number(finding.difference, places_for(finding.difference), sign=True)
    drawing = el("svg", *_grid(scale), *_forest_mark(finding, scale), height=ROW, aria_hidden="true", focusable="false")
    return el("div", el("span", label, class_="label"), drawing, el("span", shown, class_="value"),
              el("span", chip(finding.verdict), class_="says"), class_="row")


def _grid(scale: Scale) -> list[Html]:
    lines = [el("line", x1=scale.per_cent(t), x2=scale.per_cent(t), y1=0, y2=ROW, class_="grid")
             for t in ticks(scale.low, scale.high) if t]
    zero = scale.per_cent(0.0)
    return [*lines, el("line", x1=zero, x2=zero, y1=0, y2=ROW, class_="zero")]


def _forest_mark(finding: Finding, scale: Scale) -> list[Html]:
    if not finite(finding.difference):
        return []
    kind, parts = slug(finding.verdict), []
    if finding.interval and all(map(finite, finding.interval)):
        low, high = map(scale.per_cent, finding.interval)
        parts.append(el("line", x1=low, x2=high, y1=MIDDLE, y2=MIDDLE, class_=f"whisker {kind}"))
        parts += [el("line", x1=x, x2=x, y1=MIDDLE - 4, y2=MIDDLE + 4, class_=f"whisker {kind}") for x in (low, high)]
    x = scale.per_cent(float(finding.difference or 0.0))
    return [*parts, el("circle", cx=x, cy=MIDDLE, r=5, class_=f"mark {kind}", data_name=finding.name)]


def _forest_axis(scale: Scale) -> Html:
    marks = ticks(scale.low, scale.high)
    labels = [el("text", f"{t:+g}".replace("-", "−") if t else "0", x=scale.per_cent(t), y=14, text_anchor="middle")
              for t in marks]
    axis = el("svg", *labels, height=20, aria_hidden="true", focusable="false")
    return el("div", el("span", class_="label"), axis, el("span", class_="value"), el("span", class_="says"),
              class_="row axis")


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> tuple[list[tuple[float, float]], int]:
    """At most `most` points, each the mean of as many neighbours as the second value says."""
    width = -(-len(points) // most) or 1
    groups = [points[i : i + width] for i in range(0, len(points), width)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups], width


def curve(rows: Sequence[dict[str, Any]]) -> Html | None:
    """Loss over steps as a line, losses on the development set as marks; None where no loss was recorded."""
    losses = [(r["step"], r["loss"]) for r in rows if finite(r.get("step")) and finite(r.get("loss"))]
    marks = [(r["step"], r["dev_loss"]) for r in rows if finite(r.get("step")) and finite(r.get("dev_loss"))]
    if not losses and not marks:
        return None
    line, width = thinned(losses)
    across = Scale([x for x, _ in (*line, *marks)], pad=0.0 if len(line) > 1 else 0.5)
    down = Scale([y for _, y in (*line, *marks)], flip=True)
    drawing = el("svg", *_curve_axes(across, down), _curve_line(line, across, down),
                 *(_dev_mark(x, y, across, down) for x, y in marks),
                 class_="curve", height=CURVE, role="img", aria_label="Loss per step")
    legend = el("p", el("span", class_="key line"), "training loss", join(
        (el("span", class_="key dot"), "development loss")) if marks else None, class_="legend")
    mean = f" Each point of the line is the mean of {width} steps." if width > 1 else ""
    return el("figure", legend, drawing, el("figcaption", "Loss per optimizer step.", mean, _extremes(losses, marks)))


def _curve_axes(across: Scale, down: Scale) -> list[Html]:
    parts = _lines_across(down)
    for tick in ticks(across.low, across.high):
        parts.append(el("text", f"{tick:,g}", x=across.per_cent(tick), y=CURVE + 18, text_anchor="middle"))
    return parts


def _curve_line(line: Sequence[tuple[float, float]], across: Scale, down: Scale) -> Html:
    points = " ".join(f"{across.at(x):g},{down.at(y):g}" for x, y in line)
    drawn = el("polyline", points=points, vector_effect="non-scaling-stroke", class_="loss")
    return el("svg", drawn, viewBox="0 0 100 100", preserveAspectRatio="none", width="100%", height="100%")


def _dev_mark(x: float, y: float, across: Scale, down: Scale) -> Html:
    told = el("title", f"step {x:g}: development loss {y:g}")
    return el("circle", told, cx=across.per_cent(x), cy=down.per_cent(y), r=5, class_="dev", data_value=repr(y))


def _extremes(losses: Sequence[tuple[float, float]], marks: Sequence[tuple[float, float]]) -> Html:
    """First and last loss, and the lowest one on the development set, as numbers."""
    parts: list[Any] = []
    if losses:
        (first, high), (last, low) = losses[0], losses[-1]
        parts += [" Training loss ", number(float(high)), f" at step {first:,g}, ", number(float(low)),
                  f" at step {last:,g}."]
    if marks:
        step, best = min(marks, key=lambda p: p[1])
        parts += [" Lowest development loss ", number(float(best)), f" at step {step:,g}."]
    return join(parts)


# --- several arms --------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Point:
    """One arm of a plot of quality against cost: its place, the interval of its quality, whether any arm beats it in both."""

    name: str
    cost: float
    value: float
    low: float | None = None
    high: float | None = None
    front: bool = True


def front(points: Sequence[tuple[float, float]], higher_is_better: bool = True) -> list[bool]:
    """Whether each (cost, value) is on the Pareto front: no other is at most as dear and at least as good, and not equal."""
    signed = [(cost, value if higher_is_better else -value) for cost, value in points]
    return [not any(c <= cost and v >= value and (c, v) != (cost, value) for c, v in signed) for cost, value in signed]


def pareto(points: Sequence[Point], cost: str, metric: str, references: Mapping[str, float] = {}) -> Html:
    """Quality over cost, the cost on a logarithmic scale: filled marks are the front, dashed lines what was not tuned."""
    at = {p.name: math.log10(max(p.cost, 1e-9)) for p in points}
    across = Scale(list(at.values()), pad=0.12)
    ends = [v for p in points for v in (p.value, p.low, p.high) if finite(v)]
    down = Scale([*[float(v) for v in ends if v is not None], *references.values()], pad=0.08, flip=True)
    parts = [*_lines_across(down), *_powers(across)]
    taken: list[tuple[float, float, float]] = []
    for name, value in references.items():
        y = down.per_cent(value)
        parts += [el("line", x1=0, x2="100%", y1=y, y2=y, class_="reference-line"),
                  el("text", name, x="100%", y=y, dy="-0.4em", text_anchor="end")]
        taken.append((NARROW - LETTER * len(name), NARROW, CURVE * down.at(value) / 100 - NAME / 2))
    for p in sorted(points, key=lambda p: down.at(p.value)):
        parts += _point(p, across.at(at[p.name]), down, taken)
    drawing = el("svg", *parts, class_="curve pareto", height=CURVE, role="img", aria_label=f"{metric} over {cost}")
    caption = f"{metric} over {cost} (logarithmic). Line: interval. Filled: no other arm is both cheaper and better."
    return el("figure", drawing, el("figcaption", caption))


def _point(p: Point, x: float, down: Scale, taken: list[tuple[float, float, float]]) -> list[Html]:
    """Mark, interval and name; a name that would lie on a taken place moves up or down, and a line leads to it."""
    parts, place, y, kind = [], f"{x:g}%", down.per_cent(p.value), "better" if p.front else "undecided"
    if finite(p.low) and finite(p.high) and p.low is not None and p.high is not None:
        parts.append(el("line", x1=place, x2=place, y1=down.per_cent(p.low), y2=down.per_cent(p.high), class_="whisker"))
    told = el("title", f"{p.name}: {p.value:.4g} at {_amount(p.cost)}")
    parts.append(el("circle", told, cx=place, cy=y, r=6, class_=f"mark {kind}", data_name=p.name, data_value=repr(p.value)))
    side = -1 if x > 70 else 1
    mark = (NARROW * x / 100, CURVE * down.at(p.value) / 100)
    edges = mark[0] + side * 10, mark[0] + side * (10 + LETTER * len(p.name))
    wanted = mark[1] - NAME / 2
    moved = free(min(edges), max(edges), wanted, taken) - wanted
    name = el("text", p.name, x=side * (16 if moved else 10), y=moved - 3, text_anchor="start" if side > 0 else "end",
              class_="name")
    lead = el("line", x1=side * 5, y1=0, x2=side * 14, y2=moved - 7, class_="lead") if moved else None
    return [*parts, el("svg", *([lead] if lead else []), name, x=place, y=y, overflow="visible")]


def free(left: float, right: float, wanted: float, taken: list[tuple[float, float, float]]) -> float:
    """Height, px from the top, nearest to the wanted one at which a name meets none of `taken`, which it joins."""
    tried = (wanted + side * step for step in range(CURVE) for side in (1, -1))
    found = next((y for y in tried if 0 <= y <= CURVE and all(
        abs(y - other) >= NAME or right < start or left > end for start, end, other in taken)), wanted)
    taken.append((left, right, found))
    return found


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _lines_across(down: Scale) -> list[Html]:
    parts = []
    for tick in ticks(down.low, down.high):
        y = down.per_cent(tick)
        parts += [el("line", x1=0, x2="100%", y1=y, y2=y, class_="grid"),
                  el("text", f"{tick:g}", x=-8, y=y, dy="0.32em", text_anchor="end")]
    return parts


def _powers(across: Scale) -> list[Html]:
    """Marks of a logarithmic axis: 1, 2 and 5 of each power of ten, or the powers alone where they are many."""
    wide = across.high - across.low > 3
    marks = [m * 10.0**k for k in range(math.floor(across.low) - 1, math.ceil(across.high) + 1)
             for m in ((1,) if wide else (1, 2, 5)) if across.low <= math.log10(m * 10.0**k) <= across.high]
    if len(marks) < 2:  # costs that lie close together
        marks = [m for m in ticks(10**across.low, 10**across.high) if m > 0]
    return [el("text", _amount(m), x=across.per_cent(math.log10(m)), y=CURVE + 18, text_anchor="middle") for m in marks]


def curves(lines: Mapping[str, Sequence[tuple[float, float]]], what: str) -> Html | None:
    """One line an arm over optimizer steps; None where no arm has one."""
    drawn = {name: list(line) for name, line in lines.items() if line}
    points = [p for line in drawn.values() for p in line]
    if not points:
        return None
    across = Scale([x for x, _ in points], pad=0.0 if len({x for x, _ in points}) > 1 else 0.5)
    down = Scale([y for _, y in points], flip=True)
    parts = [el("polyline", points=" ".join(f"{across.at(x):g},{down.at(y):g}" for x, y in line),
                vector_effect="non-scaling-stroke", class_=f"loss arm-{i % ARM_COLOURS}", data_name=name)
             for i, (name, line) in enumerate(drawn.items())]
    inner = el("svg", *parts, viewBox="0 0 100 100", preserveAspectRatio="none", width="100%", height="100%")
    keys = [el("span", el("span", class_=f"key line arm-{i % ARM_COLOURS}"), " ", name) for i, name in enumerate(drawn)]
    drawing = el("svg", *_curve_axes(across, down), inner, class_="curve", height=CURVE, role="img",
                 aria_label=f"{what} per step, by arm")
    return el("figure", el("p", *keys, class_="legend arms"), drawing, el("figcaption", f"{what} per optimizer step."))
