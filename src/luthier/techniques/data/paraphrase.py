"""Augmentation: paraphrases of a text, for continued pretraining on more than one wording of each fact.

A model learns a fact from documents hardly at all unless it reads it in several wordings (Ovadia et al. 2023, arXiv
2312.05934, section 5). By rules: a frame says what the text is about, connectives and modal verbs change, and a leading
subordinate clause moves behind its main clause. By a model: the writer is asked for other words. Either way a paraphrase
that lacks a number, a name or a piece of code of its text, or has a number of its own, is not used.

Rules only change prose: lines of code blocks stay as they are. When it helps: pretraining on few documents.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Part, Turn
from luthier.core.kinds import DataStep, Decoder
from luthier.core.rng import Rng
from luthier.core.step import Ctx
from luthier.techniques.data._shared import fences

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


class Paraphrase(DataStep, name="paraphrase", seeds=[167]):
    """Each text, and paraphrases of it that keep every number, name and piece of code."""

    roles: ClassVar[tuple[str, ...]] = ("writer",)
    gives: ClassVar[Literal["same", "more", "other"]] = "more"
    count: int = Field(8, ge=0, le=10, description="paraphrases of each text")
    by: Literal["rules", "model"] = Field("rules", description="rules and templates, or the model in the role 'writer'")
    decoder: Slot[Decoder] = Field(named("sample:temperature=0.8,max_new_tokens=256"), description="how a model writes")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        """Texts (task `text`); those of rules are all different, a model's rejects are dropped with what they lack."""
        for row in rows:
            yield row
            text = "\n\n".join(t.text for t in row.turns)
            made = self._by_model(row.id, text, ctx) if self.by == "model" else self._by_rules(row.id, text, ctx.rng)
            for number, said in enumerate(made, 1):
                lost = lost_facts(text, said)
                name = f"{row.id}~{number}"
                if lost:
                    yield Dropped(f"paraphrase/{name}", "a paraphrase that changes a fact", ", ".join(lost[:5]))
                else:
                    yield replace(row, id=name, turns=(Turn("user", (Part(said, name="text"),)),),
                                  meta={**row.meta, "paraphrase_of": row.id})

    def _by_rules(self, name: str, text: str, rng: Rng) -> list[str]:
        """`count` different wordings; the frames alone are enough for that."""
        frames = [FRAMES[i] for i in rng("frames", name).permutation(len(FRAMES))]
        return [reworded(text, frames[n], rng, f"{name}/{n}") for n in range(self.count)]

    def _by_model(self, name: str, text: str, ctx: Ctx) -> list[str]:
        from luthier.engine.rendering import Render

        if "writer" not in ctx.roles:
            raise UserError("paraphrase:by=model needs a writer: inputs: {writer: base}.")
        writer = ctx.roles["writer"]
        render = Render(writer.tokenizer, writer.architecture, writer.limit)
        asked = f"Text: {text}\n\nThe same in other words, with every fact, number and name: "
        prompts = [render._start() + render.encode(asked)] * self.count
        made = ctx.engine.generate(writer, prompts, self.decoder, rng=ctx.rng.within(f"paraphrase/{name}"), stop="two lines")
        return [g.text.strip() for g in made]


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
