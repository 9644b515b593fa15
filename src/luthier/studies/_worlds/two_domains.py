"""two-domains: what a model has learned before, and a skill that is new to it.

The source domain are statements of a facts world (its `pretrain` texts). The target domain are traces of sums (`has`) and
differences (`likes`) modulo N, each of which goes on from the last result. Words that the source tells of stand for the
numbers 0 to N - 1, so that a model of the source knows every token and none of their new meaning. With Klam = 7, Drosk = 5,
Veil = 12, Bront = 4 and Gris = 8:

    The work of Klam has Drosk makes Veil likes Bront makes Gris.

Subsets: `train`, `dev`, `target` (traces, all different) and `source` (statements).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step


class TwoDomains(Step, name="two-domains"):
    """Arithmetic traces to learn, and statements that may be forgotten."""

    inputs: ClassVar[dict[str, str]] = {"facts": "examples"}
    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    train_rows: int = Field(160, ge=1, description="traces to learn from")
    dev_rows: int = Field(30, ge=1, description="traces by which a learning rate is chosen")
    test_rows: int = Field(120, ge=1, description="traces and statements that are read in the end")
    lines: int = Field(6, ge=1, description="sums and differences in a trace")
    numbers: int = Field(24, ge=3, description="N, and words that stand for numbers")
    seed: int = Field(0, ge=0, description="which traces; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Draw the traces, and as many statements as there are traces to test on.

        Raises:
            UserError: the world tells of too few words.
        """
        draw = Rng(self.seed).within("two-domains")
        there = sorted({e.answer for e in inputs["facts"].examples("told")})
        if len(there) < self.numbers:
            raise UserError(f"two-domains: {len(there)} words are told of, too few for {self.numbers} numbers. Raise values.")
        names = [there[i] for i in draw("numbers").permutation(len(there))[:self.numbers]]
        wanted = self.train_rows + self.dev_rows + self.test_rows
        traces: dict[str, None] = {}
        drawn = 0
        while len(traces) < wanted:
            traces[self._trace(names, draw("trace", drawn))] = None
            drawn += 1
        rows = [_text(f"trace/{n}", text) for n, text in enumerate(traces)]
        told = [e for e in inputs["facts"].examples("pretrain") if "Question:" not in e.turns[0].text]
        source = [told[i] for i in draw("source").permutation(len(told))[:self.test_rows]]
        ends = (self.train_rows, self.train_rows + self.dev_rows)
        return write_examples(ctx.folder, {"train": rows[:ends[0]], "dev": rows[ends[0]:ends[1]], "target": rows[ends[1]:],
                                           "source": source})

    def _trace(self, names: list[str], rng: np.random.Generator) -> str:
        value = int(rng.integers(len(names)))
        said = f"The work of {names[value]}"
        for _ in range(self.lines):
            other, adds = int(rng.integers(1, min(10, len(names)))), rng.random() < 0.5
            value = (value + other if adds else value - other) % len(names)
            said += f" {'has' if adds else 'likes'} {names[other]} makes {names[value]}"
        return f"{said}."


def _text(name: str, text: str) -> Example:
    return Example(name, (Turn("assistant", (Part(text),), target=True),), task="text", cluster=name)
