"""Plots as inline SVG that follow the page: places in per cent, text in pixels, colours from the style sheet.

Drawn here and not by a plotting library, because such a drawing keeps the size of its letters from 360 px to print,
takes its colours from the page (light, dark, paper) and weighs a few kilobytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from luthier.core.finding import Finding
from luthier.pipelines.report.markup import Html, el, finite, join, number, places_for, slug
from luthier.pipelines.report.words import chip, metric_words

ROW, MIDDLE = 30, 15  # height of a row of the forest plot and its middle, px
MOST_POINTS = 400
CURVE = 260  # height of the learning curve, px


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
    parts = []
    for tick in ticks(down.low, down.high):
        y = down.per_cent(tick)
        parts.append(el("line", x1=0, x2="100%", y1=y, y2=y, class_="grid"))
        parts.append(el("text", f"{tick:g}", x=-8, y=y, dy="0.32em", text_anchor="end"))
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
