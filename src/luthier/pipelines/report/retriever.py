"""Which retriever was taken, and by what: base and tuned encoder on the same queries of dev and test."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from luthier.core.artifact import Artifact
from luthier.core.finding import Finding
from luthier.pipelines.report.facts import RETRIEVER, Facts
from luthier.pipelines.report.markup import ABSENT, Html, details, el, join, number, span, tables
from luthier.pipelines.report.words import chip, metric_order, metric_words, needed_words, set_order

USE = "choose-encoder"


def retriever(facts: Facts) -> Html | None:
    """The choice in words, the metric that decided on every set, and the other metrics to be opened."""
    made = facts.of_use(USE)
    found = sorted((f for f in facts.findings if f.name.startswith(RETRIEVER)), key=_order)
    told = [el("p", _choice(a)) for a in made.values() if a.meta.get("words")]
    decided = {str((a.meta.get("choice") or {}).get("unit")) for a in made.values()}
    first = [f for f in found if f.extra.get("metric") in decided]
    rest = [f for f in found if f.extra.get("metric") not in decided]
    tables_ = [_table(first, facts.cluster) if first else None,
               details("Other measures", _table(rest, facts.cluster)) if rest else None]
    return el("div", *told, *tables_) if told or found else None


def _choice(artifact: Artifact) -> Html:
    taken = str(artifact.meta.get("chosen"))
    return join((el("span", "tuned encoder taken" if taken == "tuned" else "base encoder kept", class_="chip"), " ",
                 artifact.meta["words"], " The test sets were searched after that."))


def _order(finding: Finding) -> tuple[Any, ...]:
    """By metric, then dev, which decided, before the tests."""
    extra = finding.extra
    return (metric_order(str(extra.get("metric"))), extra.get("set") != "dev", set_order(str(extra.get("set"))),
            str(extra.get("way")))


def _table(found: list[Finding], cluster: str) -> Html:
    groups = [(metric_words(metric), [_row(f) for f in group])
              for metric, group in groupby(found, key=lambda f: str(f.extra.get("metric")))]
    head = ["queries", "base", "tuned", "difference", "verdict", "to decide", f"questions, {cluster}s"]
    return tables("Base and tuned encoder", head, "tnnnttn", groups, class_="pairs")


def _row(finding: Finding) -> list[Any]:
    extra, (low, high) = finding.extra, finding.interval or (None, None)
    interval = el("small", span(low, high, sign=True)) if low is not None else None
    asked = join((number(extra.get("questions")), ", ", number(extra.get("clusters"))))
    return [f"{extra.get('set')}, {extra.get('way')}", number(finding.left), number(finding.right),
            join((number(finding.difference, sign=True), interval)), chip(finding.verdict), needed_words(finding) or ABSENT,
            asked]
