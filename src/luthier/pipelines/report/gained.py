"""What training gained in knowledge and format, and what follows in words."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from luthier.core.finding import Finding
from luthier.pipelines.advice import advise
from luthier.pipelines.report.facts import Facts
from luthier.pipelines.report.markup import ABSENT, Html, counted, details, el, join, number, span, tables
from luthier.pipelines.report.words import chip, metric_order, metric_words, needed_words

GAINS = ("knowledge", "format", "brevity")


def advice(facts: Facts) -> Html | None:
    """Each sentence with the findings that it rests on."""
    told = [el("li", a.text, _rests_on(a.findings)) for a in advise(facts.run)]
    return el("ul", *told, class_="advice") if told else None


def _rests_on(names: Sequence[str]) -> Html:
    return details(join(("rests on ", counted(len(names), "finding"))), el("ul", *(el("li", el("code", n)) for n in names)),
                   class_="reason")


def gains(facts: Facts) -> Html | None:
    """One row a gain and pair of arms, by metric."""
    if not facts.gains:
        return None
    ordered = sorted(facts.gains, key=lambda f: (metric_order(str(f.extra["metric"])), GAINS.index(f.extra["gain"])
                                                 if f.extra["gain"] in GAINS else len(GAINS)))
    groups = [(metric_words(metric), [_gain(f) for f in group])
              for metric, group in groupby(ordered, key=lambda f: str(f.extra["metric"]))]
    notes = dict.fromkeys(join((el("b", f.extra["gain"]), f": {f.detail}")) for f in ordered)
    head = ["gain", "arms", "difference", "verdict", "to decide"]
    return join((el("ul", *(el("li", n) for n in notes), class_="quiet notes"),
                 tables("What training gained", head, "ttntt", groups, class_="gains")))


def _gain(finding: Finding) -> list[Any]:
    extra, (low, high) = finding.extra, finding.interval or (None, None)
    interval = el("small", span(low, high, sign=True)) if low is not None else None
    arms = join((extra["left_arm"], el("span", " → ", class_="quiet"), el("b", extra["right_arm"])))
    return [extra["gain"], arms, join((number(finding.difference, sign=True), interval)), chip(finding.verdict),
            needed_words(finding) or ABSENT]
