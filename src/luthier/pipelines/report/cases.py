"""Questions one by one: what each arm answered, where they disagree most."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from luthier.core.example import Passage
from luthier.core.identity import digest
from luthier.pipelines.report.facts import Arm, Facts, primary
from luthier.pipelines.report.markup import (
    Html,
    clipped,
    counted,
    details,
    el,
    finite,
    join,
    number,
)
from luthier.pipelines.report.words import metric_words

MOST = 8  # questions per set
ANSWER, QUESTION, PASSAGE = 1_000, 2_000, 300  # characters shown of each

_SEVERAL_ARMS = (
    "Questions on which the scores of the arms lie farthest apart come first; among equals the order is that of a hash "
    "of the question. They show how arms differ and are no sample of the whole."
)
_ONE_ARM = "Picked by a hash of the question, whatever the answer was worth."

Row = dict[str, Any]
Answers = list[tuple[Arm, Row]]


def cases(facts: Facts) -> Html | None:
    """Up to eight questions of each set, those first on which the arms' scores lie farthest apart."""
    chosen = {name: choose(facts.arms, name) for name in facts.sets}
    shown = [row for picked in chosen.values() for answers in picked for _, row in answers]
    if not shown:
        return None
    passages = facts.passages({str(i) for row in shown for i in row.get("passages") or ()})
    note = _ONE_ARM if len(facts.arms) == 1 else _SEVERAL_ARMS
    blocks = [_set(name, picked, passages, not i) for i, (name, picked) in enumerate(chosen.items()) if picked]
    return el("div", el("p", note, class_="quiet"), *blocks)


def choose(arms: list[Arm], name: str, most: int = MOST) -> list[Answers]:
    """The questions to show of a set: a pure function of the answers and scores."""
    asked: dict[str, Answers] = {}
    for arm in arms:
        for row in arm.predictions:
            if str(row.get("set")) == name:
                asked.setdefault(str(row.get("id")), []).append((arm, row))
    return [asked[i] for i in sorted(asked, key=lambda i: _disagreement(i, asked[i]))[:most]]


def _disagreement(question: str, answers: Answers) -> tuple[float, int, str]:
    """Sort key: widest spread of scores, then most different answers, then a hash."""
    values = [v for arm, row in answers if finite(v := _worth(arm, row)[1])]
    texts = {str(row.get("text", "")).strip().lower() for _, row in answers}
    return (-(max(values) - min(values)) if values else 0.0, -len(texts), digest(question))


def _worth(arm: Arm, row: Row) -> tuple[str, Any]:
    """The metric that says right or wrong for this answer, and its value."""
    scored = arm.scores.get((str(row.get("set")), str(row.get("id"))), {})
    metric = primary(scored, str(row.get("set")))
    return metric, scored.get(metric)


def _set(name: str, picked: list[Answers], passages: dict[str, Passage], opened: bool) -> Html:
    summary = join((el("h3", name), el("span", " ", counted(len(picked), "question"), class_="quiet")))
    return details(summary, *(_question(answers, passages) for answers in picked), open_=opened, class_="set")


def _question(answers: Answers, passages: dict[str, Passage]) -> Html:
    row = answers[0][1]
    references = [clipped(str(r), ANSWER) for r in row.get("references") or ()]
    reference = join(references, " / ") if references else "none: the documents do not say"
    return el(
        "article",
        el("h4", clipped(str(row.get("question", "")), QUESTION), dir="auto"),
        el("p", el("span", "Reference ", class_="quiet"), el("bdi", reference), class_="reference"),
        el("ul", *(_answer(arm, given, passages) for arm, given in answers), class_="answers"),
        data_id=row.get("id"),
    )


def _answer(arm: Arm, row: Row, passages: dict[str, Passage]) -> Html:
    kind, mark = _judged(*_worth(arm, row))
    text = str(row.get("text", ""))
    said = clipped(text, ANSWER) if text.strip() else el("span", "(empty)", class_="quiet")
    who = el("div", el("b", arm.name), mark, _length(row), class_="who")
    shown = _passages(row["passages"], passages) if row.get("passages") else None
    return el("li", who, el("div", said, class_="said", dir="auto"), shown, class_=kind)


def _judged(metric: str, value: Any) -> tuple[str, Html]:
    if not finite(value):
        return "unscored", el("span", "not scored", class_="chip")
    kind, mark = ("right", "✓") if value >= 1 else ("wrong", "✗") if value <= 0 else ("partly", "◐")
    # exact match says no more than the word itself
    told = None if metric in ("exact-match", "abstains") else join((", ", metric_words(metric), " ", number(value, 2)))
    word = {"right": "abstained", "wrong": "answered"}.get(kind, kind) if metric == "abstains" else kind
    return kind, el("span", el("span", mark, aria_hidden="true"), " ", word, told, class_=f"chip {kind}")


def _length(row: Row) -> Html | None:
    parts = [counted(row["tokens"], "token")] if isinstance(row.get("tokens"), int) else []
    if row.get("stopped") is False:
        parts.append(el("span", "cut off at the limit"))
    return el("span", join(parts, ", "), class_="quiet") if parts else None


def _passages(ids: Iterable[Any], passages: dict[str, Passage]) -> Html:
    items = []
    for i in map(str, ids):
        passage = passages.get(i)
        path = join(passage.headings, " › ") if passage and passage.headings else i
        place = el("span", passage.place, class_="quiet") if passage else None
        excerpt = el("p", clipped(passage.text, PASSAGE), dir="auto") if passage else None
        items.append(el("li", el("span", path, class_="path", data_passage=i), place, excerpt))
    summary = join((counted(len(items), "passage"), " shown to it"))
    return details(summary, el("ol", *items), class_="passages")
