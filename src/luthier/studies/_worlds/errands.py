"""errands: four small tasks with an adapter each, and a base that knows errands of other kinds, several in a row.

    judge the soup was rich     good              judge: what stands in a review; half of noun and word are for tests
    reverse pom tal ki          ki tal pom        reverse: three invented words
    add four seven              eleven            add: two numbers below ten
    pair colour red             {"colour": "red"} pair: a key and a value

A question has an errand a line, and its answer a line for each. Subsets: `pretrain` (sentences with all words), `asked`
(one to three errands of other kinds: copy, last, swap, join), `judge`, `reverse`, `add`, `pair` (rows of one task),
`mixed` (all of these in turn), `single` (tests of all tasks) and `composite` (tests of three different tasks in a row).
`meta` says the `task`, or the `segments` of a composite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn, question
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds._names import words

NUMBERS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
           "eighteen").split()
NOUNS = "soup bread room bed song film tool plot bath cake wine walk".split()
GOOD = "rich warm fresh kind bright soft clean fine".split()
BAD = "thin cold stale rude dark hard dirty dull".split()
KEYS = "colour shape size place name day price owner".split()
TASKS = ("judge", "reverse", "add", "pair")
Errand = tuple[str, str]  # what is asked, and the answer


class Errands(Step, name="errands"):
    """Rows of four tasks, composites of three, and what a base learns before."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    told: int = Field(3000, ge=8, description="questions of other kinds that the base learns from")
    train_rows: int = Field(60, ge=1, description="rows of each task to learn from")
    test_rows: int = Field(30, ge=1, description="single rows of each task in tests")
    composites: int = Field(120, ge=1, description="composite rows in tests")
    names: int = Field(24, ge=4, description="invented words")
    seed: int = Field(0, ge=0, description="which rows; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Draw the rows; those of tests are none of those that are learned from.

        Raises:
            UserError: a task has too few different errands.
        """
        draw = Rng(self.seed).within("errands")
        names = words(draw("names"), self.names)
        there = {task: _shuffled(made, draw(task)) for task, made in _tasks(names).items()}
        wanted = self.train_rows + self.test_rows
        for task, errands in there.items():
            if len(errands) < wanted:
                raise UserError(f"errands: task {task} has {len(errands)} different errands, too few for {self.train_rows} to "
                                f"learn from and {self.test_rows} for tests. Lower train_rows or test_rows.")
        rows: dict[str, list[Example]] = {task: [_row(f"{task}/{n}", task, e) for n, e in enumerate(errands[:self.train_rows])]
                                          for task, errands in there.items()}
        tests = {task: errands[self.train_rows:wanted] for task, errands in there.items()}
        rows["mixed"] = [row for together in zip(*(rows[task] for task in TASKS), strict=True) for row in together]
        rows["single"] = [_row(f"single/{task}/{n}", task, e) for task in TASKS for n, e in enumerate(tests[task])]
        rows["composite"] = [self._composite(n, tests, draw("composite", n)) for n in range(self.composites)]
        others, kinds = _others(names), draw("told")
        rows["asked"] = [_asked(f"asked/{n}", [others[int(kinds.integers(len(others)))](kinds)
                                               for _ in range(kinds.integers(1, 4))]) for n in range(self.told)]
        rows["pretrain"] = _sentences(names, draw("pretrain"))
        return write_examples(ctx.folder, rows)

    def _composite(self, number: int, tests: Mapping[str, Sequence[Errand]], rng: np.random.Generator) -> Example:
        tasks = [TASKS[i] for i in rng.permutation(len(TASKS))[:3]]
        errands = [tests[task][int(rng.integers(len(tests[task])))] for task in tasks]
        segments = [[task, e[side]] for side in (0, 1) for task, e in zip(tasks, errands, strict=True)]
        return _asked(f"composite/{number}", errands, segments=segments)


def _tasks(names: Sequence[str]) -> dict[str, list[Errand]]:
    """Every errand that each task has."""
    threes = [t for t in product(names, repeat=3) if len(set(t)) == 3]
    return {"judge": [(f"judge the {noun} was {word}", said) for said, group in (("good", GOOD), ("bad", BAD))
                      for noun, word in product(NOUNS, group)],
            "reverse": [(f"reverse {' '.join(t)}", " ".join(reversed(t))) for t in threes],
            "add": [(f"add {NUMBERS[a]} {NUMBERS[b]}", NUMBERS[a + b]) for a, b in product(range(10), repeat=2)],
            "pair": [(f"pair {key} {value}", f'{{"{key}": "{value}"}}') for key, value in product(KEYS, [*names, *GOOD])]}


def _others(names: Sequence[str]) -> list[Callable[[np.random.Generator], Errand]]:
    """Errands that the base learns, from words of all tasks."""
    pool = [*names, *NUMBERS[:10], *KEYS, *GOOD, *BAD]

    def some(rng: np.random.Generator, count: int) -> list[str]:
        return [pool[i] for i in rng.permutation(len(pool))[:count]]

    def copy(rng: np.random.Generator) -> Errand:
        said = " ".join(some(rng, int(rng.integers(1, 4))))
        return f"copy {said}", said

    def last(rng: np.random.Generator) -> Errand:
        said = some(rng, 3)
        return f"last {' '.join(said)}", said[-1]

    def swap(rng: np.random.Generator) -> Errand:
        one, two = some(rng, 2)
        return f"swap {one} {two}", f"{two} {one}"

    def join(rng: np.random.Generator) -> Errand:
        one, two = some(rng, 2)
        return f"join {one} {two}", f'["{one}", "{two}"]'

    return [copy, last, swap, join]


def _sentences(names: Sequence[str], rng: np.random.Generator) -> list[Example]:
    """Each word of the tasks in a few sentences, so that it is one token and no stranger."""
    made = [f"The {noun} of {names[int(rng.integers(len(names)))]} was {word}." for noun, word in product(NOUNS, [*GOOD, *BAD])]
    made += [f"After {NUMBERS[i]} comes {NUMBERS[i + 1]}." for i in range(len(NUMBERS) - 1)]
    made += [f'One may judge, reverse, add and pair: {{"{key}": "{name}"}}.' for key, name in product(KEYS, names[:4])]
    return [Example(f"text/{n}", (Turn("assistant", (Part(text),), target=True),), task="text", cluster=f"text/{n}")
            for n, text in enumerate(made)]


def _asked(name: str, errands: Sequence[Errand], **meta: Any) -> Example:
    return question(name, "\n".join(q for q, _ in errands), "\n".join(a for _, a in errands), cluster=name, meta=meta)


def _row(name: str, task: str, errand: Errand) -> Example:
    return _asked(name, [errand], task=task)


def _shuffled(made: Sequence[Errand], rng: np.random.Generator) -> list[Errand]:
    return [made[i] for i in rng.permutation(len(made))]
