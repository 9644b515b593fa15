"""The page: title and notices, the sections that have something to say, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template
from typing import Any

from luthier.pipelines.report import answers, audits, cases, gained, grounds, questions, retriever, routing, work
from luthier.pipelines.report.facts import Facts
from luthier.pipelines.report.markup import (
    Html,
    counted,
    details,
    duration,
    el,
    finite,
    join,
    moment,
    number,
    pairs,
    plain,
)


@dataclass(frozen=True)
class Section:
    """A part of the page: how it is built, and what to say, if anything, when there is nothing to build it from."""

    id: str
    title: str
    build: Callable[[Facts], Html | None]
    missing: str


SECTIONS = (
    Section("answer", "The answer in words", answers.verdicts,
            "no arms were compared, so nothing here says whether one is better than another"),
    Section("advice", "Advice", gained.advice, "no finding supports a piece of advice"),
    Section("scores", "Scores by arm", answers.scores, "no arm was evaluated"),
    Section("comparisons", "Paired comparisons", answers.comparisons, "no arms were compared"),
    Section("gains", "Knowledge and format", gained.gains, "no trained arm was compared with the base on unseen sections"),
    Section("retriever", "Choice of the retriever", retriever.retriever, "no retriever was tuned (--tune-retriever)"),
    Section("audits", "Audits", audits.audits, "nothing was audited (luthier audit RUN)"),
    Section("cost", "Cost", work.cost, "nothing was trained or evaluated"),
    Section("learning", "Learning curve", work.learning, "no step recorded a loss"),
    Section("examples", "Questions and answers", cases.cases, "no arm was evaluated"),
    Section("routing", "Adapters by token", routing.routing, ""),
    Section("prompts", "Choice of prompts", work.prompts, "no arm was evaluated"),
    Section("questions", "Questions that were written", questions.questions, "no questions were written from documents"),
    Section("data", "Data", grounds.data, "no documents or examples were made"),
    Section("receipts", "Receipts", grounds.receipts, "no step left a receipt"),
    Section("again", "How to run it again", grounds.again, "the record names no command"),
)


_UNCOMPARED = (
    "Nothing was compared in this run. The report says what was done, not whether the result is better than the base."
)


def page(facts: Facts) -> str:
    """The whole page as HTML text."""
    built = [(s, s.build(facts)) for s in SECTIONS]
    there = [(s, content) for s, content in built if content is not None]
    absent = [s for s, content in built if content is None and s.missing]
    body = join((_header(facts), _notices(facts), _contents([s for s, _ in there]),
                 *(_section(s, content) for s, content in there), _absent(absent)))
    here = files(__package__)
    return Template((here / "page.html").read_text(encoding="utf-8")).substitute(
        title=join((facts.record.get("name") or "run", " – report of a run of Luthier")),
        style=(here / "style.css").read_text(encoding="utf-8"), body=body,
    )


def sections(facts: Facts, names: Sequence[str]) -> Html:
    """The sections with these ids, in this order, and below them why any is missing."""
    chosen = [next(s for s in SECTIONS if s.id == name) for name in names]
    built = [(s, s.build(facts)) for s in chosen]
    return join((*(_section(s, content) for s, content in built if content is not None),
                 _absent([s for s, content in built if content is None])))


def _header(facts: Facts) -> Html:
    record = facts.record
    about = record.get("about") or facts.recipe.get("about")
    rows: list[tuple[str, Any]] = [("base", _base(facts))] if facts.base.get("name") else []
    rows += [("seed", number(record["seed"]))] if record.get("seed") is not None else []
    rows += [("started", moment(record["started"]))] if record.get("started") else []
    took = [s["seconds"] for s in facts.steps.values() if finite(s.get("seconds"))]
    rows += [("time in steps", duration(float(sum(took))))] if took else []
    return el("header", el("p", "Luthier · report of a run", class_="eyebrow"), el("h1", record.get("name") or "Run"),
              el("p", about, class_="about") if about else None, pairs(rows, class_="facts"))


def _base(facts: Facts) -> Html:
    note = facts.base.get("note")
    return join((facts.base["name"], el("span", ", ", plain(note), class_="quiet") if note else None))


def _notices(facts: Facts) -> Html:
    """What a reader must know before reading on: a failure, receipts that differ, steps missing, no comparison."""
    told = []
    state = str(facts.record.get("state") or "")
    if "fail" in state or facts.record.get("error"):
        told.append(join((el("strong", "This run failed."), " ", plain(facts.record.get("error") or ""))))
    differing = len(grounds.failed(facts))
    if differing:
        verb = " differs." if differing == 1 else " differ."
        told.append(join((el("strong", counted(differing, "receipt"), verb),
                          " Things that must agree do not; trust no number below before this is understood. ",
                          el("a", "See the receipts", href="#receipts"), ".")))
    if facts.unfinished:
        told.append(join((el("strong", "This run is not finished."), " Missing: ",
                          join((el("code", n) for n in facts.unfinished), ", "), ". The same command resumes it.")))
    loud = el("div", *(el("p", t) for t in told), class_="alarm", role="note") if told else None
    bare = None if facts.comparisons or facts.unfinished or facts.audits else el("p", _UNCOMPARED, class_="note", role="note")
    return join((loud, bare))


def _contents(sections: list[Section]) -> Html:
    return el("nav", el("ul", *(el("li", el("a", s.title, href=f"#{s.id}")) for s in sections)), aria_label="Contents")


def _section(section: Section, content: Html) -> Html:
    return el("section", el("h2", section.title, id=f"{section.id}-title"), content, id=section.id,
              aria_labelledby=f"{section.id}-title")


def _absent(sections: list[Section]) -> Html | None:
    """The parts that this run gives no ground for, each with the reason."""
    if not sections:
        return None
    items = (el("li", el("b", s.title), f": {s.missing}.", data_missing=s.id) for s in sections)
    summary = join(("Not in this report: ", counted(len(sections), "part")))
    return el("footer", details(summary, el("ul", *items), open_=True))
