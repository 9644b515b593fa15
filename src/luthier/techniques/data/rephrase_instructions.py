"""rephrase-instructions: other wordings of each row's instruction, for training on more than one.

Each row gets `meta["paraphrases"]`, `count` texts of its question by other words, drawn for each row from a bank:
templates with the slot `{input}`, the first of which is the reference phrasing that the row itself takes. Without a
bank the row stays as it is worded and the paraphrases are frames that any question bears. By a model: the writer is
asked for other words. `separate` gives each paraphrase as a row of its own instead, which is plain augmentation.

When it helps: before the objective `phrasing-consistency`, and as its control. Source: Sun, Shaib & Wallace 2023,
"Evaluating the zero-shot robustness of instruction-tuned language models", section 5 (seed 163).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

import yaml
from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example
from luthier.core.kinds import DataStep, Decoder
from luthier.core.step import Ctx

FRAMES = (
    "Please answer the following.\n{input}", "{input}\nAnswer:", "Question for you: {input}", "Respond to this: {input}",
    "{input}\nWhat do you say?", "Here is a request. {input}", "Take a look and reply.\n\n{input}",
    "I would like to know: {input}",
    "Solve this one: {input}", "{input} (Answer in the usual form.)", "Could you handle this? {input}", "Next case.\n{input}",
)


class RephraseInstructions(DataStep, name="rephrase-instructions", seeds=[163]):
    """Other wordings of each row's instruction beside it, or as rows of their own."""

    roles: ClassVar[tuple[str, ...]] = ()
    gives: ClassVar[Literal["same", "more", "other"]] = "more"
    bank: str = Field("", description="YAML list of templates with {input}, the reference first; general frames if left out")
    count: int = Field(10, ge=1, description="paraphrases of each row, at most as many as the bank holds")
    by: Literal["bank", "model"] = Field("bank", description="templates, or the model in the role 'writer'")
    separate: bool = Field(False, description="each paraphrase is a row of its own")
    decoder: Slot[Decoder] = Field(named("sample:temperature=0.8,max_new_tokens=96"), description="how a model writes")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        """Rows without a question are left out. Raises UserError for a bank that can't be used."""
        reference, others = self._templates()
        for row in rows:
            text = row.part("question")
            if not text.strip():
                yield Dropped(row.id, "no question", "there is no instruction to reword")
                continue
            if self.by == "model":
                made, own = self._written(row.id, text, ctx), text
            else:
                drawn = ctx.rng("rephrase", row.id).permutation(len(others))[:self.count]
                made, own = [others[i].replace("{input}", text) for i in drawn], reference.replace("{input}", text)
            row = _worded(row, own)
            if self.separate:
                yield row
                yield from (replace(_worded(row, said), id=f"{row.id}~{n}") for n, said in enumerate(made, 1))
            else:
                yield replace(row, meta={**row.meta, "paraphrases": made})

    def _templates(self) -> tuple[str, tuple[str, ...]]:
        if not self.bank:
            return "{input}", FRAMES
        try:
            given = yaml.safe_load(Path(self.bank).expanduser().read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"{self.bank} can't be read: {error}") from None
        if not isinstance(given, list) or len(given) < 2:
            raise UserError(f"{self.bank} must be a list of two templates or more, the reference first.")
        wrong = [t for t in given if not isinstance(t, str) or "{input}" not in t]
        if wrong:
            raise UserError(f"{self.bank}: {wrong[0]!r} has no {{input}}: the row would not be seen.")
        if len(set(given)) < len(given):
            raise UserError(f"{self.bank}: a template stands there twice.")
        return given[0], tuple(given[1:])

    def _written(self, name: str, text: str, ctx: Ctx) -> list[str]:
        """A model's wordings that differ from the text and from each other."""
        from luthier.engine.rendering import Render

        if "writer" not in ctx.roles:
            raise UserError("rephrase-instructions:by=model needs a writer: inputs: {writer: base}.")
        writer = ctx.roles["writer"]
        render = Render(writer.tokenizer, writer.architecture, writer.limit)
        prompt = render._start() + render.encode(f"Request: {text}\n\nThe same request in other words: ")
        made = ctx.engine.generate(writer, [prompt] * self.count, self.decoder, rng=ctx.rng.within(f"rephrase/{name}"),
                                   stop="two lines")
        return list(dict.fromkeys(t for g in made if (t := g.text.strip()) and t != text))


def _worded(row: Example, text: str) -> Example:
    """The row with another text of its question."""
    return replace(row, turns=tuple(
        t if t.target else replace(t, parts=tuple(replace(p, value=text) if p.name == "question" else p for p in t.parts))
        for t in row.turns))
