"""What tuning changed beside its goal: one row a finding, and the plots that audits leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.core.finding import Finding
from luthier.pipelines.auditing import audits_of, broken
from luthier.pipelines.report.facts import Facts
from luthier.pipelines.report.markup import ABSENT, MINUS, Html, el, join, number, places_for, span, table
from luthier.pipelines.report.plots import Scale, ticks
from luthier.pipelines.report.words import chip

HEIGHT = 240  # of a plot, px


def audits(facts: Facts) -> Html | None:
    """Table of all findings, notices of broken hard limits, and plots."""
    found = audits_of(facts.run)
    if not found:
        return None
    loud = [el("div", el("p", chip("fail"), " ", el("strong", _title(f)), ": a hard limit is broken. ", f.detail),
               class_="alarm") for f in broken(found)]
    head = ["what was measured", "verdict", "before", "after", "change", "interval", "limit", "what mends it"]
    looked = [f for f in found if f.verdict != "not applicable"]
    rows = [_row(f) for f in looked]
    absent = [el("li", el("b", _title(f)), f": {f.detail}") for f in found if f.verdict == "not applicable"]
    drawn = [draw(f) for f in looked for key, draw in (("plot", plot), ("heat", heat), ("bars", bars)) if f.extra.get(key)]
    missing = el("div", el("p", "Not measured:"), el("ul", *absent), class_="quiet") if absent else None
    note = el("p", "fail: the limit is passed and the interval lies on one side of no change; pass: the whole interval lies "
                   "within the limit; everything else is undecided.", class_="quiet")
    return el("div", *loud, table("Audits", head, "ttnnnntt", rows, class_="audits"), note, *drawn, missing)


def _title(finding: Finding) -> str:
    return str(finding.extra.get("title") or finding.name.removeprefix("audit/"))


def _row(f: Finding) -> list[Any]:
    about = join((_title(f), el("small", " ", f.detail, " ", el("code", f.evidence) if f.evidence else None, class_="quiet")))
    interval = span(*f.interval, places_for(f.difference, *f.interval), sign=True) if f.interval else ABSENT
    mends = join((el("code", m) for m in f.extra.get("mends") or ()), ", ") if f.verdict == "fail" else ABSENT
    sign = "" if f.left is None else MINUS if f.extra.get("worse") == "down" else "+"
    limit = join((sign, number(f.tolerance), f" {f.unit}" if f.unit else None)) if f.tolerance is not None else ABSENT
    change = number(f.difference, places_for(f.difference), sign=True) if f.left is not None else ABSENT
    return [about, chip(f.verdict), _value(f.left), _value(f.right), change, interval, limit, mends]


def _value(value: Any) -> Html | str:
    return number(value) if isinstance(value, (int, float)) else str(ABSENT if value is None else value)


def plot(finding: Finding) -> Html:
    """The lines that a finding carries: `extra["plot"]` = {title, x, y, series: {name: [[x, y], …]}, diagonal?}."""
    about: Mapping[str, Any] = finding.extra["plot"]
    series: Mapping[str, Sequence[Sequence[float]]] = {n: p for n, p in about["series"].items() if p}
    points = [p for line in series.values() for p in line]
    corners = [[0.0, 0.0], [1.0, 1.0]] if about.get("diagonal") else []
    if not points:
        return el("p", about["title"], ": no points.", class_="quiet")
    across = Scale([p[0] for p in (*points, *corners)])
    down = Scale([p[1] for p in (*points, *corners)], flip=True)
    lines = [_line(corners, across, down, "grid")] if corners else []
    lines += [_line(line, across, down, "loss" if n else "mark undecided") for n, line in enumerate(series.values())]
    marks = [el("circle", el("title", f"{name}: {x:.3g}, {y:.3g}"), cx=across.per_cent(x), cy=down.per_cent(y), r=4,
                class_="dev" if n else "mark undecided") for n, (name, line) in enumerate(series.items()) for x, y in line]
    drawing = el("svg", *_axes(across, down), *lines, *marks, class_="curve", height=HEIGHT, role="img",
                 aria_label=about["title"])
    names = " and ".join(f"{name} ({'filled' if n else 'hollow'} marks)" for n, name in enumerate(series))
    return el("figure", drawing, el("figcaption", f"{about['title']}. Across: {about['x']}; up: {about['y']}. {names}."))


def heat(finding: Finding) -> Html:
    """The squares that a finding carries: `extra["heat"]` = {title, x, y, cells: [[0 to 1, …], …]}, row 1 at the top."""
    about: Mapping[str, Any] = finding.extra["heat"]
    cells: Sequence[Sequence[float]] = about["cells"]
    wide, tall = 100 / len(cells[0]), 100 / len(cells)
    squares = [el("rect", el("title", f"{i + 1}, {j + 1}: {value:.3g}"), x=f"{j * wide:.3f}%", y=f"{i * tall:.3f}%",
                  width=f"{wide:.3f}%", height=f"{tall:.3f}%", class_="bar", fill_opacity=f"{value:.3f}",
                  data_value=repr(value))
               for i, row in enumerate(cells) for j, value in enumerate(row)]
    drawing = el("svg", *squares, class_="curve", height=HEIGHT, role="img", aria_label=about["title"])
    return el("figure", drawing, el("figcaption", f"{about['title']}: nothing is 0, full colour 1. Across: {about['x']}, 1 to "
                                                  f"{len(cells[0])}; down: {about['y']}, 1 to {len(cells)}."))


def bars(finding: Finding) -> Html:
    """The bars that a finding carries: `extra["bars"]` = {title, head: [name, value, …], rows: [[name, value, …], …]}."""
    about: Mapping[str, Any] = finding.extra["bars"]
    most = [max((r[n] or 0.0 for r in about["rows"]), default=0.0) or 1.0 for n in range(1, len(about["head"]))]

    def shown(value: float | None, largest: float) -> Html:
        if value is None:
            return el("span", ABSENT)
        bar = el("svg", el("rect", width=f"{100 * value / largest:.3f}%", height="100%", class_="bar"), width="6em",
                 height="0.7em", aria_hidden="true")
        return el("span", el("data", f"{value:.3g}", value=repr(value)), " ", bar)

    rows = [[name, *(shown(v, top) for v, top in zip(values, most, strict=True))] for name, *values in about["rows"]]
    return table(about["title"], about["head"], "t" + "n" * len(most), rows)


def _axes(across: Scale, down: Scale) -> list[Html]:
    parts = []
    for tick in ticks(down.low, down.high):
        y = down.per_cent(tick)
        parts += [el("line", x1=0, x2="100%", y1=y, y2=y, class_="grid"),
                  el("text", f"{tick:g}", x=-8, y=y, dy="0.32em", text_anchor="end")]
    return parts + [el("text", f"{t:g}", x=across.per_cent(t), y=HEIGHT + 18, text_anchor="middle")
                    for t in ticks(across.low, across.high)]


def _line(points: Sequence[Sequence[float]], across: Scale, down: Scale, kind: str) -> Html:
    drawn = el("polyline", points=" ".join(f"{across.at(x):g},{down.at(y):g}" for x, y in points), class_=kind, fill="none",
               stroke="currentColor", vector_effect="non-scaling-stroke")
    return el("svg", drawn, viewBox="0 0 100 100", preserveAspectRatio="none", width="100%", height="100%")
