"""small-programs: functions of one number or one list, right and wrong ones, and what the interpreter says of them.

A problem is a comment and the head of a function, such as

    # f(x) gives x times 3 plus 7
    def f(x):

and its solution one line, with the line break before it: a prompt that ends in one would be cut inside a token. Subsets:
`pretrain` (programs of known problems, a share of them wrong, as they are written; and transcripts, a program and below it the
last line of its traceback), `train` and `test` (problems with `meta["tests"]` and the solution as answer, of other numbers than
those known), `gold` (the solved problems of `train` as texts).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.example import Example, Part, Turn, question
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step

# What is asked, the solution, and wrong ones with what the interpreter would say of them in the end.
WRONG = (("y", "NameError: name 'y' is not defined"), ("(x", "SyntaxError: '(' was never closed"),
         ("x + 'a'", "TypeError: unsupported operand type(s) for +: 'int' and 'str'"), ("x", "AssertionError"))
LISTS = (("the sum of x plus {n}", "sum(x) + {n}"), ("the largest of x times {n}", "max(x) * {n}"),
         ("the length of x plus {n}", "len(x) + {n}"), ("the first of x minus {n}", "x[0] - {n}"))
VALUES = ((1, 2, 5), (-3, 0, 4), (7, 7, 1))


class SmallPrograms(Step, name="small-programs", version=2):
    """Problems with tests, and programs of which some are wrong."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    pretrain_rows: int = Field(1500, ge=1, description="programs and transcripts that a base learns from")
    wrong_share: float = Field(0.6, ge=0, le=1, description="share of programs of the base that are wrong")
    problems: int = Field(40, ge=1, description="problems to train on, and as many to be asked in the end")
    seed: int = Field(0, ge=0, description="which problems; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Draw problems without repetition; known ones, trained ones and asked ones are different."""
        draw = Rng(self.seed).within("small-programs")
        every = [_linear(a, b) for a in range(2, 16) for b in range(1, 16)] + [
            _listed(n, kind) for n in range(1, 16) for kind in range(len(LISTS))]
        order = draw("problems").permutation(len(every))
        found = [every[i] for i in order]
        train, test, known = found[:self.problems], found[self.problems:2 * self.problems], found[2 * self.problems:]
        texts = [_text(f"pretrain/{n}", self._written(known, draw("written", n))) for n in range(self.pretrain_rows)]
        return write_examples(ctx.folder, {
            "pretrain": texts, "train": [_problem(f"train/{n}", p) for n, p in enumerate(train)],
            "test": [_problem(f"test/{n}", p) for n, p in enumerate(test)],
            "gold": [_text(f"gold/{n}", f"{head}{body}") for n, (head, body, _) in enumerate(train)]})

    def _written(self, known: list[tuple[str, str, str]], rng: np.random.Generator) -> str:
        """A program of a known problem; of a wrong one every second time with what is said of it."""
        head, body, _ = known[int(rng.integers(len(known)))]
        if rng.random() >= self.wrong_share:
            return head + body
        expression, said = WRONG[int(rng.integers(len(WRONG)))]
        return f"{head}\n    return {expression}" + (f"\n# {said}" if rng.random() < 0.5 else "")


def _linear(a: int, b: int) -> tuple[str, str, str]:
    """(Head, body, tests) of a linear function."""
    tests = "\n".join(f"assert f({x}) == {a * x + b}" for x in (0, 1, -2))
    return f"# f(x) gives x times {a} plus {b}\ndef f(x):", f"\n    return x * {a} + {b}", tests


def _listed(n: int, kind: int) -> tuple[str, str, str]:
    """The same of a list; what is right is worked out here, not by the solution."""
    asked, solution = LISTS[kind]
    right = (lambda x: sum(x) + n, lambda x: max(x) * n, lambda x: len(x) + n, lambda x: x[0] - n)[kind]
    tests = "\n".join(f"assert f({list(x)}) == {right(x)}" for x in VALUES)
    return f"# f(x) gives {asked.format(n=n)}\ndef f(x):", f"\n    return {solution.format(n=n)}", tests


def _problem(name: str, problem: tuple[str, str, str]) -> Example:
    head, body, tests = problem
    return question(name, head, body, cluster=name, references=(body,), meta={"tests": tests})


def _text(name: str, text: str) -> Example:
    return Example(name, (Turn("assistant", (Part(text),), target=True),), task="text", cluster=name)
