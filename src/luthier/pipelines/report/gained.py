"""What training gained in knowledge and format, and what follows in words."""

from __future__ import annotations

from luthier.pipelines.advice import advise
from luthier.pipelines.report.facts import Facts
from luthier.pipelines.report.markup import ABSENT, Html, el, join, number, span, table
from luthier.pipelines.report.words import chip, needed_words


def advice(facts: Facts) -> Html | None:
    """Each sentence with the findings that it rests on."""
    told = [el("li", a.text, el("small", " ", join((el("code", n) for n in a.findings), ", "), class_="quiet"))
            for a in advise(facts.run)]
    return el("ul", *told) if told else None


def gains(facts: Facts) -> Html | None:
    """One row a gain and trained arm."""
    if not facts.gains:
        return None
    intervals = [span(*f.interval, sign=True) if f.interval else ABSENT for f in facts.gains]
    rows = [[f.extra["gain"], f.extra["metric"], f.extra["left_arm"], f.extra["right_arm"], number(f.difference, sign=True),
             interval, chip(f.verdict), needed_words(f) or ABSENT]
            for f, interval in zip(facts.gains, intervals, strict=True)]
    head = ["gain", "metric", "from", "to", "difference", "interval", "verdict", "needed"]
    notes = dict.fromkeys(f"{f.extra['gain']}: {f.detail}" for f in facts.gains)
    return join((table("What training gained", head, "ttttnntt", rows, class_="gains"),
                 el("ul", *(el("li", n) for n in notes), class_="quiet notes")))
