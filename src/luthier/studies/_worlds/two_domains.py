"""two-domains: what a model has learned before, and a skill that is new to it.

The source domain are statements of a facts world (its `pretrain` texts). The target domain are arithmetic traces, sums and
differences in which each line goes on from the last result:

    start 7 ; add 5 gives 12 ; take 4 gives 8 ; end 8

Subsets: `train`, `dev`, `target` (traces, all different) and `source` (statements).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
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
    highest: int = Field(40, ge=10, description="numbers lie between 0 and this")
    seed: int = Field(0, ge=0, description="which traces; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Draw the traces, and as many statements as there are traces to test on."""
        draw = Rng(self.seed).within("two-domains")
        wanted = self.train_rows + self.dev_rows + self.test_rows
        traces: dict[str, None] = {}
        while len(traces) < wanted:
            traces[self._trace(draw("trace", len(traces)))] = None
        rows = [_text(f"trace/{n}", text) for n, text in enumerate(traces)]
        told = [e for e in inputs["facts"].examples("pretrain") if "Question:" not in e.turns[0].text]
        source = [told[i] for i in draw("source").permutation(len(told))[:self.test_rows]]
        ends = (self.train_rows, self.train_rows + self.dev_rows)
        return write_examples(ctx.folder, {"train": rows[:ends[0]], "dev": rows[ends[0]:ends[1]], "target": rows[ends[1]:],
                                           "source": source})

    def _trace(self, rng: np.random.Generator) -> str:
        value = int(rng.integers(self.highest + 1))
        said = [f"start {value}"]
        for _ in range(self.lines):
            other = int(rng.integers(1, 10))
            adds = value + other <= self.highest and (value < other or rng.random() < 0.5)
            value = value + other if adds else value - other
            said.append(f"{'add' if adds else 'take'} {other} gives {value}")
        return " ; ".join([*said, f"end {value}"])


def _text(name: str, text: str) -> Example:
    return Example(name, (Turn("assistant", (Part(text),), target=True),), task="text", cluster=name)
