"""inlined-functions: functions with a part that was once a helper, and the same with the helper taken out again.

A function of two numbers has `least` to `most` statements, each a sum, difference or product of earlier names and small
numbers. A run of two or three of them, of which only the last result is used later, is the helper: written as a function
and called it is the program after, in line the one before. Both are known to do the same, and tests compare the results for
random numbers with what the statements compute by hand.

Subsets: `pretrain` (both programs as texts), `train`, `test`: the question is the program before, the answer the one after,
`meta["tests"]` calls it. No function stands in two subsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.example import Example, Part, Turn, question
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step

NAMES = "cdehijkm"  # without the names of the function and its helper
Statement = tuple[str, str, str, str]  # target, left, sign, right


class InlinedFunctions(Step, name="inlined-functions"):
    """Pairs of programs before and after a method was extracted, with tests."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    pretrain_rows: int = Field(1500, ge=1, description="functions that a base learns from")
    train_rows: int = Field(300, ge=1, description="functions to train on")
    test_rows: int = Field(100, ge=1, description="functions that are asked in the end")
    least: int = Field(4, ge=4, description="fewest statements")
    most: int = Field(5, ge=4, le=8, description="most statements")
    calls: int = Field(4, ge=1, description="calls that tests make")
    seed: int = Field(0, ge=0, description="which functions; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Draw the functions until there are enough different ones."""
        draw = Rng(self.seed).within("inlined-functions")
        wanted = self.pretrain_rows + self.train_rows + self.test_rows
        pairs: dict[str, tuple[str, str]] = {}
        number = 0
        while len(pairs) < wanted:
            rng = draw("function", number)
            body, at, size = self._drawn(rng)
            before, after = _before(body), _after(body, at, size)
            pairs[before] = (after, self._tests(body, rng))
            number += 1
        rows = [question(f"f{n}", before, after, cluster=f"f{n}", meta={"before": before, "tests": tests})
                for n, (before, (after, tests)) in enumerate(pairs.items())]
        held = (self.test_rows, self.test_rows + self.train_rows)
        texts = [Example(f"text/{r.id}", (Turn("assistant", (Part(f"Question: {r.part('question')}\nAnswer: {r.answer}"),),
                                               target=True),), task="text", cluster=r.id) for r in rows[held[1]:]]
        return write_examples(ctx.folder, {"pretrain": texts, "asked": rows[held[1]:], "train": rows[held[0]:held[1]],
                                           "test": rows[:held[0]]})

    def _drawn(self, rng: np.random.Generator) -> tuple[list[Statement], int, int]:
        """Statements, where the helper begins among them, and how many it has."""
        count = int(rng.integers(self.least, self.most + 1))
        size = int(rng.integers(2, 4))
        at = int(rng.integers(0, count - size))
        body: list[Statement] = []
        for n in range(count):
            # What the helper made on its way is not seen behind it; each statement goes on from the one before.
            seen = ["a", "b", *NAMES[:n]] if n < at + size else ["a", "b", *NAMES[:at], *NAMES[at + size - 1:n]]
            left = NAMES[n - 1] if n else "a"
            right = str(rng.choice(seen)) if rng.random() < 0.6 else str(int(rng.integers(1, 10)))
            body.append((NAMES[n], left, str(rng.choice(["+", "-", "*"])), right))
        return body, at, size

    def _tests(self, body: Sequence[Statement], rng: np.random.Generator) -> str:
        lines = []
        for _ in range(self.calls):
            a, b = (int(x) for x in rng.integers(-9, 10, 2))
            lines.append(f"assert f({a}, {b}) == {computed(body, a, b)}")
        return "\n".join(lines)


def computed(body: Sequence[Statement], a: int, b: int) -> int:
    """What a function gives for two numbers, worked out statement by statement."""
    known: dict[str, int] = {"a": a, "b": b}
    for target, left, sign, right in body:
        one, two = (known[x] if x in known else int(x) for x in (left, right))
        known[target] = one + two if sign == "+" else one - two if sign == "-" else one * two
    return known[body[-1][0]]


def _line(statement: Statement) -> str:
    target, left, sign, right = statement
    return f" {target} = {left} {sign} {right}\n"


def _before(body: Sequence[Statement]) -> str:
    return "def f(a, b):\n" + "".join(map(_line, body)) + f" return {body[-1][0]}"


def _after(body: Sequence[Statement], at: int, size: int) -> str:
    """The function with a call of the helper, and the helper below it."""
    taken = body[at:at + size]
    made: set[str] = set()
    needed: dict[str, Any] = {}
    for target, *read in taken:
        needed |= dict.fromkeys(x for x in (read[0], read[2]) if not x.lstrip("-").isdigit() and x not in made)
        made.add(target)
    names, result = ", ".join(needed), taken[-1][0]
    kept = "".join(map(_line, body[:at])) + f" {result} = g({names})\n" + "".join(map(_line, body[at + size:]))
    return (f"def f(a, b):\n{kept} return {body[-1][0]}\ndef g({names}):\n" + "".join(map(_line, taken))
            + f" return {result}")
