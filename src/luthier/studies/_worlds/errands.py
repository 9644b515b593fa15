"""errands: four small tasks with an adapter each, and a base that knows errands of other kinds, several in a row.

    judge the soup was rich    judge: good      what stands in a review
    after four bath            after: five      the next number
    kind Jatol song            kind: fish       which kind an invented word is of
    place size room            place: Feleis    where a key is kept

One word tells the answer and the noun beside it does not; half of all pairs are for tests. A question has an errand a line,
and its answer a line for each, which names the errand. Subsets: `asked` (one to three errands of other kinds: copy, last, swap,
join), `pretrain` (these as texts, and sentences with all words), `judge`, `after`, `kind`, `place` (one to three errands of one
task), `mixed` (all of these in turn), `single` (tests of all tasks) and `composite` (tests of three different tasks in a row).
`meta` says the `task`, or the `segments` of a composite. In version 1 the words of questions were no tokens, so that the base
hardly knew any errand; tasks were learned from single errands alone, and three words to be put in reverse or two numbers to be
added asked too much of so tiny a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from operator import itemgetter
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn, question
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds._names import words

NUMBERS = "zero one two three four five six seven eight nine ten".split()
NOUNS = "soup bread room bed song film tool plot bath cake wine walk".split()
GOOD = "rich warm fresh kind bright soft clean fine".split()
BAD = "thin cold stale rude dark hard dirty dull".split()
KINDS = "bird fish tree".split()
KEYS = "colour shape size place name day price owner".split()
TASKS = ("judge", "after", "kind", "place")
Errand = tuple[str, str]  # what is asked, and the answer


class Errands(Step, name="errands", version=2):
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
        rows: dict[str, list[Example]] = {task: self._learned(task, errands[:self.train_rows])
                                          for task, errands in there.items()}
        tests = {task: errands[self.train_rows:wanted] for task, errands in there.items()}
        rows["mixed"] = [row for together in zip(*(rows[task] for task in TASKS), strict=True) for row in together]
        rows["single"] = [_asked(f"single/{task}/{n}", [e], task=task) for task in TASKS for n, e in enumerate(tests[task])]
        rows["composite"] = [self._composite(n, tests, draw("composite", n)) for n in range(self.composites)]
        others, kinds = _others(names), draw("told")
        rows["asked"] = [_asked(f"asked/{n}", [others[int(kinds.integers(len(others)))](kinds)
                                               for _ in range(kinds.integers(1, 4))]) for n in range(self.told)]
        texts = [f"Question: {e.part('question')}\nAnswer: {e.answer}" for e in rows["asked"]]
        rows["pretrain"] = [*_sentences(names, draw("pretrain")), *map(_text, range(len(texts)), texts)]
        return write_examples(ctx.folder, rows)

    @staticmethod
    def _learned(task: str, errands: Sequence[Errand]) -> list[Example]:
        """A row for each errand: it alone, or with one or two others of its task below, so that lines are not unlearned."""
        return [_asked(f"{task}/{n}", [errands[(n + k) % len(errands)] for k in range(1 + n % 3)], task=task)
                for n in range(len(errands))]

    def _composite(self, number: int, tests: Mapping[str, Sequence[Errand]], rng: np.random.Generator) -> Example:
        tasks = [TASKS[i] for i in rng.permutation(len(TASKS))[:3]]
        errands = [tests[task][int(rng.integers(len(tests[task])))] for task in tasks]
        segments = [[task, text(e)] for text in (itemgetter(0), _said) for task, e in zip(tasks, errands, strict=True)]
        return _asked(f"composite/{number}", errands, segments=segments)


def _tasks(names: Sequence[str]) -> dict[str, list[Errand]]:
    """Every errand that each task has."""
    some = names[:min(12, len(names))]
    return {"judge": [(f"judge the {noun} was {word}", said) for said, group in (("good", GOOD), ("bad", BAD))
                      for noun, word in product(NOUNS, group)],
            "after": [(f"after {NUMBERS[i]} {noun}", NUMBERS[i + 1]) for noun, i in product(NOUNS, range(10))],
            "kind": [(f"kind {name} {noun}", KINDS[i % 3]) for noun, (i, name) in product(NOUNS, enumerate(some))],
            "place": [(f"place {key} {noun}", names[-1 - i % len(names)])
                      for noun, (i, key) in product(NOUNS, enumerate(KEYS))]}


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
    """Each word of the tasks in a few sentences, in a line and at its beginning, so that it is one token and no stranger."""
    made = [f"The {noun} of {names[int(rng.integers(len(names)))]} was {word}." for noun, word in product(NOUNS, [*GOOD, *BAD])]
    made += [f"After {NUMBERS[i]} comes {NUMBERS[i + 1]}." for i in range(len(NUMBERS) - 1)]
    vocabulary = (*TASKS, "good", "bad", *NUMBERS, *KINDS, *KEYS, *NOUNS, *names)
    made += [f"{word}\n{word} {word}" for word in vocabulary for _ in range(4)]
    return [_text(f"sentence/{n}", text) for n, text in enumerate(made)]


def _text(name: str | int, text: str) -> Example:
    return Example(f"text/{name}", (Turn("assistant", (Part(text),), target=True),), task="text", cluster=f"text/{name}")


def _asked(name: str, errands: Sequence[Errand], **meta: Any) -> Example:
    return question(name, "\n".join(q for q, _ in errands), "\n".join(map(_said, errands)), cluster=name, meta=meta)


def _said(errand: Errand) -> str:
    """The line of an answer: what was asked for, and the answer."""
    return f"{errand[0].split()[0]}: {errand[1]}"


def _shuffled(made: Sequence[Errand], rng: np.random.Generator) -> list[Errand]:
    return [made[i] for i in rng.permutation(len(made))]
