"""Augmentation: paraphrases of a text, for continued pretraining on more than one wording of each fact.

A model learns a fact from documents hardly at all unless it reads it in several wordings (Ovadia et al. 2023, arXiv
2312.05934, section 5). By rules: a frame says what the text is about, connectives and modal verbs change, and a leading
subordinate clause moves behind its main clause. By a model: a teacher (a local writer, an endpoint or recorded answers) is
asked for other words. Either way a paraphrase that lacks a number, a name or a piece of code of its text, or has a number
of its own, is not used, nor is one that repeats the text.

Rules only change prose: lines of code blocks stay as they are. When it helps: pretraining on few documents. Seed 167.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.example import Dropped, Example, Part, Turn
from luthier.core.kinds import DataStep, Decoder
from luthier.core.rng import Rng
from luthier.core.step import Ctx
from luthier.engine.endpoints import Endpoint
from luthier.techniques.data._shared import fences
from luthier.techniques.data._teachers import teacher

if TYPE_CHECKING:
    from numpy.random import Generator

# The frame of a paraphrase: {topic} is the line of headings, {text} what stands below it.
FRAMES = (
    "About {topic}:\n\n{text}", "{text}\n\n(This is about {topic}.)", "What is said about {topic}? {text}",
    "Topic: {topic}\n{text}", "The following holds for {topic}.\n\n{text}", "On {topic} the documents say:\n\n{text}",
    "{topic}, in other words: {text}", "Notes on {topic}\n\n{text}", "{text}\n\nAll of this concerns {topic}.",
    "Whoever asks about {topic} should know this:\n\n{text}", "Here {topic} is explained. {text}",
)
# What may stand for what; none of it carries a fact. One way only where the other
# is not always the same ("since" may be a time).
SAME = (
    ("for example", "for instance"), ("because", "since"), ("in order to", "so as to"), ("is able to", "can"),
    ("are able to", "can"), ("has to", "must"), ("have to", "must"), ("a number of", "several"),
    ("for instance", "for example"),
    ("is not", "isn't"), ("are not", "aren't"), ("does not", "doesn't"), ("do not", "don't"), ("cannot", "can't"),
    ("isn't", "is not"), ("aren't", "are not"), ("doesn't", "does not"), ("don't", "do not"), ("can't", "cannot"),
    ("however", "nevertheless"), ("therefore", "for this reason"), ("usually", "normally"), ("at once", "immediately"),
)
_SENTENCE = re.compile(r"(?<=[.!?])[^\S\n]+(?=[A-Z])")
_CLAUSE = re.compile(r"(?P<word>If|When|Because|Although|After|Before|Unless) (?P<given>[^,.;:()\n]+), "
                     r"(?P<main>[^,.;:()\n]+)\.")
_CODE = re.compile(r"`[^`\n]+`|\b\w+(?:[_.]\w+)+\b|\b\w+\(\)?")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_NAME = re.compile(r"(?<![.!?:\n] )(?<!^)(?<!\n)\b[A-Z][\w-]+")


class Paraphrase(DataStep, name="paraphrase", seeds=[167], version=2):
    """Each text, and paraphrases of it that keep every number, name and piece of code."""

    roles: ClassVar[tuple[str, ...]] = ("writer",)
    gives: ClassVar[Literal["same", "more", "other"]] = "more"
    count: int = Field(8, ge=0, le=10, description="paraphrases of each text")
    by: Literal["rules", "model"] = Field("rules", description="rules and templates, or what `teacher` names")
    teacher: str = Field("writer", description="by a model: writer (the local one), http(s)://ADDRESS, or replay:FILE")
    endpoint: Endpoint = Field(named({}), description="how an address is asked: model, key_variable, consent, …")
    decoder: Slot[Decoder] = Field(named("sample:temperature=0.8,max_new_tokens=256"), description="how a local writer writes")

    @property
    def asks(self) -> tuple[str, ...]:
        """The roles that this configuration needs."""
        return ("writer",) if self.by == "model" and self.teacher == "writer" else ()

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        """Texts (task `text`), each followed by its paraphrases and by those that can't be used, with the reason.

        A model is asked about all texts at once, so that what leaves for an endpoint is shown whole before any of it does.
        """
        for row, made in self._by_model(list(rows), ctx) if self.by == "model" else self._by_rules(rows, ctx.rng):
            yield row
            seen = {_flat(_text(row))}
            for number, said in enumerate(made, 1):
                name, reason = f"{row.id}~{number}", ""
                if not said or _flat(said) in seen:
                    reason, detail = "a paraphrase that repeats its text" if said else "an empty paraphrase", said[:200]
                elif lost := lost_facts(_text(row), said):
                    reason, detail = "a paraphrase that changes a fact", ", ".join(lost[:5])
                if reason:
                    yield Dropped(f"paraphrase/{name}", reason, detail)
                    continue
                seen.add(_flat(said))
                yield replace(row, id=name, turns=(Turn("user", (Part(said, name="text"),)),),
                              meta={**row.meta, "paraphrase_of": row.id})

    def _by_rules(self, rows: Iterator[Example], rng: Rng) -> Iterator[tuple[Example, list[str]]]:
        """`count` different wordings of each; the frames alone are enough for that."""
        for row in rows:
            frames = [FRAMES[i] for i in rng("frames", row.id).permutation(len(FRAMES))]
            yield row, [reworded(_text(row), frames[n], rng, f"{row.id}/{n}") for n in range(self.count)]

    def _by_model(self, rows: list[Example], ctx: Ctx) -> Iterator[tuple[Example, list[str]]]:
        asked = teacher(self.teacher, ctx, self.decoder, self.decoder, self.endpoint, for_step=self.info.name, stop="two lines")
        calls = [(row.id, self.prompt(_text(row), number)) for row in rows for number in range(1, self.count + 1)]
        said = iter(asked.ask(calls, 0))
        for row in rows:
            yield row, [(next(said) or "").strip() for _ in range(self.count)]

    def prompt(self, text: str, number: int) -> str:
        """What a teacher is asked; the number makes each prompt, and so each answer, one of its own."""
        return (f"Text: {text}\n\nWording {number} of {self.count} of the same text, in other words than before, with every "
                "fact, number, name and piece of code, and nothing else: ")


def _text(row: Example) -> str:
    return "\n\n".join(t.text for t in row.turns)


def _flat(text: str) -> str:
    return " ".join(text.casefold().split())


def reworded(text: str, frame: str, rng: Rng, name: str) -> str:
    """One paraphrase by rules: the frame around the text below its first line, whose prose is reworded."""
    first, _, rest = text.partition("\n")
    topic, body = (first.strip(), rest.strip()) if rest.strip() else ("this", text.strip())
    draw = rng("reword", name)
    lines = body.split("\n")
    code = {i for start, end in fences(lines) for i in range(start, end)}
    told = [line if i in code or line.startswith(("    ", "\t")) else _prose(line, draw) for i, line in enumerate(lines)]
    return frame.format(topic=topic, text="\n".join(told)) if topic else "\n".join(told)


def _prose(line: str, draw: Generator) -> str:
    """A line with about half of its possible changes made."""
    coin = draw.random
    sentences = []
    for sentence in _SENTENCE.split(line):
        match = _CLAUSE.fullmatch(sentence)
        if match and coin() < 0.5:
            main = match["main"][0].upper() + match["main"][1:]
            sentence = f"{main} {match['word'].lower()} {match['given']}."
        sentences.append(sentence)
    said = " ".join(sentences)
    for was, new in SAME:
        if coin() < 0.5:
            said = re.sub(rf"(?<![\w`'-]){re.escape(was)}(?![\w`'-])", new, said)
    return said


def lost_facts(text: str, said: str) -> list[str]:
    """Numbers, names and code of a text that a paraphrase lacks, and numbers that it made up."""
    found = []
    for pattern in (_CODE, _NUMBER, _NAME):
        had, has = Counter(pattern.findall(text)), Counter(pattern.findall(said))
        found += [item for item in had if item not in said]
        if pattern is _NUMBER:
            found += [f"{item} (new)" for item in has if item not in had]
    return found
