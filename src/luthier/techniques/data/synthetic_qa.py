"""synthetic-qa: question-answer pairs written by a teacher from paragraphs, parsed strictly, filtered, traced.

A prompt is an instruction, 0 to 3 solved examples and the paragraph; the answer is `Q: … / A: …` lines or JSON pairs.
What can't be parsed is asked again (`retries`), then left out; more than half of it stops the job with samples. Each row
keeps its paragraph, the hash of its prompt and the teacher's name. A paragraph longer than the teacher's window is cut
at the ends of sentences.

When it helps: documents without questions, and a teacher that is better than the student. Seed 14.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Passage
from luthier.core.identity import digest
from luthier.core.kinds import DataStep, Decoder
from luthier.core.step import Ctx
from luthier.engine.endpoints import Endpoint
from luthier.techniques.data._questions import SHOTS, units, written
from luthier.techniques.data._teachers import Teacher, teacher

_PAIR = re.compile(r"\s*Q:[^\S\n]*(?P<q>\S[^\n]*)\n+[^\S\n]*A:[^\S\n]*(?P<a>\S[^\n]*)(?:\n|\Z)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])\s*")
SAMPLES = 3
UNPARSABLE_SHARE = 0.5
_Try = tuple[Passage, str]


class SyntheticQA(DataStep, name="synthetic-qa", seeds=[14], version=1):
    """Question-answer pairs from a local model, an endpoint or recorded answers, with their filters."""

    roles: ClassVar[tuple[str, ...]] = ("writer",)
    teacher: str = Field("writer", description="writer (the local model), http(s)://ADDRESS, or replay:FILE")
    endpoint: Endpoint = Field(named({}), description="how an address is asked: model, key_variable, consent, …")
    shots: int = Field(3, ge=0, le=3, description="solved examples in the prompt")
    per_context: int = Field(3, ge=1, le=20, description="pairs asked for from one paragraph")
    per_call: Literal["all", "one"] = Field("all", description="all pairs of a paragraph in one answer, or one an answer")
    form: Literal["lines", "json"] = Field("lines", description="Q: and A: lines, or a JSON list of objects with q and a")
    max_paragraph_words: int = Field(300, ge=10, description="the teacher's window; longer paragraphs are cut at sentence ends")
    retries: int = Field(2, ge=0, le=5, description="further tries for an answer that can't be parsed")
    decoder: Slot[Decoder] = Field(named("greedy:max_new_tokens=160"), description="how a local teacher writes")
    retry_decoder: Slot[Decoder] = Field(named("sample:temperature=0.7,max_new_tokens=160"), description="how it tries again")
    filters: tuple[Slot[DataStep], ...] = Field(named(("fitting-length", "distinct:threshold=1.0,within=passage", "grounded",
                                                       "self-contained")), description="what is left out, in this order")

    @property
    def asks(self) -> tuple[str, ...]:
        """The roles that this configuration needs."""
        own = ("writer",) if self.teacher == "writer" else ()
        return tuple(dict.fromkeys((*own, *(r for f in self.filters for r in getattr(f, "roles", ())))))

    def apply(self, rows: Iterator[Passage], ctx: Ctx) -> Iterator[Example | Dropped]:
        asked = teacher(self.teacher, ctx, self.decoder, self.retry_decoder, self.endpoint,
                        for_step=self.info.name)
        pieces = [piece for passage in rows for piece in self.pieces(passage)]
        made: list[Example] = []
        failed: list[Dropped] = []
        calls = 0
        for turn in range(self.per_context if self.per_call == "one" else 1):
            found, lost = self._turn(asked, pieces, turn, made)
            calls += len(pieces)
            made, failed = [*made, *found], [*failed, *lost]
            _stop_if_unparsable(failed, calls)
        place = {piece.id: i for i, piece in enumerate(pieces)}
        made.sort(key=lambda row: place[row.meta["paragraph"]])
        yield from failed
        kept = made
        for step in self.filters:
            judged = list(step.apply(iter(kept), ctx))
            kept = [row for row in judged if not isinstance(row, Dropped)]
            yield from (row for row in judged if isinstance(row, Dropped))
            ctx.log(f"{self.info.name}: {len(judged)} -> {len(kept)} {step.info.name}")
        for line in histograms(kept):
            ctx.log(f"{self.info.name}: {line}")
        yield from kept

    def pieces(self, passage: Passage) -> Iterator[Passage]:
        """The passage, or pieces of whole sentences that fit the window; only a single sentence may be longer."""
        if len(units(passage.text)) <= self.max_paragraph_words:
            yield passage
            return
        cuts = [0, *(m.end() for m in _SENTENCE_END.finditer(passage.text)), len(passage.text)]
        begin, number = 0, 0
        for last, end in zip(cuts[1:], [*cuts[2:], None], strict=True):
            if last > begin and (end is None or len(units(passage.text[begin:end])) > self.max_paragraph_words):
                yield replace(passage, id=f"{passage.id}~{number}", text=passage.text[begin:last])
                begin, number = last, number + 1

    def prompt(self, piece: Passage, before: list[str]) -> str:
        """What the teacher is asked about one piece; `before` are questions that are there already."""
        count = 1 if self.per_call == "one" else self.per_context
        form = ('Write a JSON list of objects {"q": question, "a": answer}.' if self.form == "json"
                else "Write each pair as two lines, Q: question and A: answer.")
        noun = "pair" if count == 1 else "pairs"
        lines = [f"Write {count} question-answer {noun} about the paragraph. Each question can be understood without the "
                 f"paragraph, each answer is short and stands in it. {form}", ""]
        for text, question, answer in SHOTS[:self.shots]:
            pair = json.dumps([{"q": question, "a": answer}]) if self.form == "json" else f"Q: {question}\nA: {answer}"
            lines += [f"Paragraph: {text}", pair, ""]
        if before:
            lines += ["Do not repeat: " + " ".join(before), ""]
        return "\n".join([*lines, f"Paragraph: {piece.shown}", ""])

    def _turn(self, asked: Teacher, pieces: list[Passage], turn: int, before: list[Example]
              ) -> tuple[list[Example], list[Dropped]]:
        known: dict[str, list[str]] = {}
        for row in before:
            known.setdefault(row.meta["paragraph"], []).append(row.part("question"))
        waiting: list[_Try] = [(p, self.prompt(p, known.get(p.id, []))) for p in pieces]
        rows: list[Example] = []
        last: dict[str, str] = {}
        for attempt in range(self.retries + 1):
            again: list[_Try] = []
            for one, said in zip(waiting, asked.ask([(p.id, text) for p, text in waiting], attempt), strict=True):
                last[one[0].id] = said if said is not None else last.get(one[0].id, "")
                pairs = parse(said or "", self.form)[:1 if self.per_call == "one" else self.per_context]
                rows += [self._row(one, turn, i, q, a, asked.name) for i, (q, a) in enumerate(pairs)]
                again += [one] if not pairs else []
            waiting = again
            if not waiting:
                break
        return rows, [Dropped(f"{self.info.name}/{p.id}/{turn}", "unparsable", last[p.id][:200]) for p, _ in waiting]

    def _row(self, one: _Try, turn: int, number: int, asked: str, answer: str, model: str) -> Example:
        passage, prompt = one
        row = written(replace(passage, id=passage.id.partition("~")[0]), 0, self.info.name, asked, answer)
        about = {"paragraph": passage.id, "prompt": digest(prompt), "model": model}
        return replace(row, id=f"{self.info.name}/{passage.id}/{turn + number}", meta={**row.meta, **about})


def parse(text: str, form: str) -> list[tuple[str, str]]:
    """The pairs of an answer that keeps to its form from beginning to end; an end cut short loses its last pair only."""
    if form == "json":
        try:
            found = json.loads(text.strip().removeprefix("```json").removesuffix("```"))
            pairs: list[Any] = [(pair["q"], pair["a"]) for pair in found]
        except (ValueError, KeyError, TypeError):
            return []
        texts = all(isinstance(part, str) and part.strip() for pair in pairs for part in pair)
        return [(q.strip(), a.strip()) for q, a in pairs] if texts else []
    pairs, at = [], 0
    while match := _PAIR.match(text, at):
        pairs.append((match["q"].strip(), match["a"].strip()))
        at = match.end()
    return pairs


def histograms(rows: list[Example]) -> Iterator[str]:
    """Lengths of questions and answers by powers of two, and the questions' first words."""
    for what, texts in (("question", [r.part("question") for r in rows]), ("answer", [r.answer for r in rows])):
        sizes = Counter(1 << max(0, len(units(t)) - 1).bit_length() for t in texts)
        yield f"words of {what}s: " + ", ".join(f"<= {size}: {n}" for size, n in sorted(sizes.items()))
    first = Counter((units(r.part("question")) or [""])[0] for r in rows)
    yield "questions begin with: " + ", ".join(f"{w} {n}" for w, n in sorted(first.items(), key=lambda x: (-x[1], x[0]))[:10])


def _stop_if_unparsable(failed: list[Dropped], calls: int) -> None:
    if len(failed) > UNPARSABLE_SHARE * calls:
        shown = "\n".join(f"  {d.id}: {d.detail!r}" for d in failed[:SAMPLES])
        raise UserError(f"synthetic-qa needs a teacher that keeps to its form: {len(failed)} of {calls} answers could not be "
                        f"parsed, after all tries. Samples:\n{shown}\nAnother teacher, more shots or form=json may help.")
