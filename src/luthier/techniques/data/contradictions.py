"""contradictions: leaves out rows that say different things about the same.

Rows are compared within a topic only. The topic of a question is all that is asked, its passage included; what is said
is the answer. Two answers to one question disagree when a number or a negation differs, or when they share less than
`overlap` of their words and neither holds the other. The topic of a statement (a sentence of a passage or of plain
text) is the sentence without its numbers and negations; two statements of one topic disagree when these differ:

    "The pump holds 40 litres."  "The pump holds 60 litres."        numbers differ
    "Glue must be heated."       "Glue must not be heated."         negation differs

A number that only counts things off (step 3, figure 2, chapter 4) is part of the topic. Rules see no more than this:
they miss what is worded differently, and a judge model, where one is handed in, throws out what they see wrongly: a pair
then counts only if the judge finds " yes" likelier than " no" after the question whether the two contradict each other.

When it helps: manuals of several versions in one folder; generated questions, where a model answered one question twice.
All rows are held in memory. Source: the same question with different answers, and antonym-free cues (numeric, negation)
of de Marneffe, Rafferty, Manning 2008, "Finding contradictions in text".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from luthier.core.example import Dropped, Example, Passage, question
from luthier.core.identity import digest
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._curation import Row, sentences
from luthier.techniques.data._questions import content_words, jaccard, words
from luthier.techniques.data._shared import normalized

LEAST_TOPIC = 3  # content words that a statement needs beside its numbers and negations
SHOWN = 80  # characters of a statement in the ledger
_NEGATIONS = frozenset("no not never none nothing nobody neither nor without cannot".split())
_NEGATED = re.compile(r"n['’]t$")
_AUXILIARIES = frozenset("do does did is are was were be".split())  # they come and go with a negation
_COUNTING = frozenset("step figure fig table chapter section part page line version item example equation note appendix "
                      "case level phase rule".split())
_SPELT = {w: str(n) for n, w in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())}
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:[.,]\d+)*%?(?![\w])")
_ASKED = "Do these two statements contradict each other, yes or no? First: {} Second: {}"


class Said(NamedTuple):
    """One thing that a row says: about what, and in which words."""

    row: int
    topic: str
    text: str
    asked: str  # the question it answers; empty for a statement


class Contradictions(DataStep, name="contradictions"):
    """Leave out rows that contradict another one."""

    roles: ClassVar[tuple[str, ...]] = ("judge",)
    keep: Literal["none", "first"] = Field("none", description="of rows that contradict each other keep none, since nothing "
                                                               "says which is right, or the first")
    overlap: float = Field(0.5, ge=0, le=1, description="answers that share this part of their words agree")

    def apply(self, rows: Iterator[Example | Passage], ctx: Ctx) -> Iterator[Example | Passage | Dropped]:
        """Each row, or `Dropped` with what it says and the row that says otherwise."""
        held = list(rows)
        by_topic: dict[str, list[Said]] = {}
        for said in (s for n, row in enumerate(held) for s in _said(n, row)):
            by_topic.setdefault(said.topic, []).append(said)
        pairs = [pair for group in by_topic.values() for pair in self._pairs(group)]
        if ctx.roles.get("judge"):
            pairs = _judged(pairs, ctx)
        against: dict[int, tuple[Said, Said]] = {}
        for first, second in pairs:
            against.setdefault(second.row, (second, first))
            if self.keep == "none":
                against.setdefault(first.row, (first, second))
        for n, row in enumerate(held):
            if n in against:
                own, other = against[n]
                yield Dropped(row.id, "contradiction",
                              f"says '{own.text[:SHOWN]}' where {held[other.row].id} says '{other.text[:SHOWN]}'")
            else:
                yield row

    def _pairs(self, group: list[Said]) -> Iterator[tuple[Said, Said]]:
        """Pairs of different rows that disagree; what is said in the same words is compared once."""
        wordings: dict[str, list[Said]] = {}
        for said in group:
            wordings.setdefault(normalized(said.text), []).append(said)
        for left, right in combinations(wordings.values(), 2):
            if disagree(left[0], right[0], self.overlap):
                yield from ((min(a, b), max(a, b)) for a in left for b in right if a.row != b.row)


def disagree(left: Said, right: Said, overlap: float) -> bool:
    """Whether two things said about one topic can't both hold, as far as the rules see."""
    if bool(left.asked) != bool(right.asked):
        return False
    (a, numbers_a, negated_a), (b, numbers_b, negated_b) = (_parts(s.text) for s in (left, right))
    if not left.asked:
        return numbers_a != numbers_b or negated_a != negated_b
    if a == b or (a and b and jaccard(a, b) >= overlap):
        return negated_a != negated_b or bool(numbers_a and numbers_b and numbers_a != numbers_b)
    if numbers_a and numbers_a == numbers_b:
        return False
    one, two = set(words(left.text)), set(words(right.text))
    return not (one <= two or two <= one) and jaccard(one, two) < overlap


def _said(number: int, row: Row) -> Iterator[Said]:
    """The answer to what was asked, or the statements of a text."""
    if isinstance(row, Passage):
        yield from _statements(number, row.text)
        return
    before = [t.text for t in row.turns[:max((i for i, t in enumerate(row.turns) if t.target), default=len(row.turns))]]
    if row.answer and before:
        asked = normalized("\n".join(before))
        yield Said(number, f"asked {asked}", row.answer, row.part("question") or before[-1])
    else:
        yield from _statements(number, "\n\n".join(t.text for t in row.turns))


def _statements(number: int, text: str) -> Iterator[Said]:
    for sentence in sentences(text):
        kept = _parts(sentence)[0]
        if sentence.endswith("?") or len(kept) < LEAST_TOPIC:
            continue
        topic = [_stem(w) for w in words(sentence) if not _negates(w) and not _is_number(w) and w not in _AUXILIARIES]
        yield Said(number, f"said {' '.join(topic)} {sorted(_counted(sentence))}", sentence, "")


def _stem(word: str) -> str:
    """Without the ending that a verb loses after a negation: "leaks", "does not leak"."""
    return word.removesuffix("s")


def _parts(text: str) -> tuple[set[str], tuple[str, ...], bool]:
    """Content words without numbers and negations, the numbers in order, and whether an odd number of words negate."""
    said = words(text)
    numbers = [n.rstrip("%").replace(",", "") for n in _NUMBER.findall(text)] + [_SPELT[w] for w in said if w in _SPELT]
    counted = _counted(text)
    kept = {w for w in content_words(text) if not _negates(w) and not _is_number(w)}
    return kept, tuple(sorted(n for n in numbers if n not in counted)), sum(map(_negates, said)) % 2 == 1


def _negates(word: str) -> bool:
    return word in _NEGATIONS or bool(_NEGATED.search(word))


def _is_number(word: str) -> bool:
    return word in _SPELT or word.replace(".", "").replace(",", "").isdigit()


def _counted(text: str) -> set[str]:
    """Numbers that count things off: they follow a word such as step or figure."""
    said = words(text)
    return {b for a, b in pairwise(said) if _is_number(b) and a.removesuffix("s") in _COUNTING}


def _judged(pairs: list[tuple[Said, Said]], ctx: Ctx) -> list[tuple[Said, Said]]:
    """The pairs that the judge calls contradictions."""
    from luthier.engine.rendering import Render

    judge = ctx.roles["judge"]
    render = Render(judge.tokenizer, judge.architecture, judge.limit)
    asked = []
    for pair in pairs:
        prompt = render.prompt(question("judged", _ASKED.format(*(f"{s.asked} {s.text}".strip() for s in pair))))
        asked += [(prompt, render.encode(" yes")), (prompt, render.encode(" no"))]
    key = "judged/" + digest([judge.identity, asked])
    scores = ctx.journal.do(key, lambda: [s for s, _ in ctx.engine.score(judge, asked)])
    return [pair for n, pair in enumerate(pairs) if scores[2 * n] > scores[2 * n + 1]]
