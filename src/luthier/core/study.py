"""What a published claim says in numbers: measures, guards, claims, trends, and how large a trial of them is.

A study (`kinds.Study`) names arms of a recipe and says with these what is read from their records. It holds no loop, no
tokeniser and no statistic: arms are run by the grid, and numbers are judged by the runner, the same way for all studies.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Direction = Literal["higher", "lower"]
SCALES = ("smoke", "default", "large")
AUDITED = "audit/"  # how names of findings of audits begin


@dataclass(frozen=True)
class Measure:
    """A number of an arm: `metric` over the subset `on`, in the records of the recipe's step `step`.

    Of an audit the items that it keeps: `on` is the stem of its evidence file, `metric` a number of each line, such as
    `intruders` on `matrices`.
    """

    metric: str
    on: str = "test"
    step: str = "score"

    def __str__(self) -> str:
        return f"{self.metric} on {self.on}"


@dataclass(frozen=True)
class Found(Measure):
    """One number a training, of an audit's finding: `on` is the finding's name, such as `audit/ood/change`.

    `metric` is `left`, `right`, `difference`, or a number of its `extra`, after a dot where it is one of several
    (`cases.observed`). Claims about it are weighed over trainings, and there are no more units than these.
    """

    def __str__(self) -> str:
        part = self.on.removeprefix(AUDITED).partition("/")[2]
        return f"{self.metric} of {self.step}" + (f", {part}" if part else "")


def measure_of(metric: str, on: str, step: str) -> Measure:
    """The measure that numbers belong to: those of a finding bear its name."""
    return (Found if on.startswith(AUDITED) else Measure)(metric, on, step)


@dataclass(frozen=True)
class Guard:
    """What must hold for the result to count. `arms` are those it is asked of, over the mean of all seeds."""

    says: str
    measure: Measure
    arms: tuple[str, ...]
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Choice:
    """An arm that stands for several, such as a method at its best learning rate.

    Of `among` it is the one whose `by`, averaged over seeds, is `best` or, with `near`, closest to that of the arm or
    choice named there. What it is chosen by is not what is claimed of it.
    """

    name: str
    among: tuple[str, ...]
    by: Measure
    best: Literal["highest", "lowest"] = "highest"
    near: str = ""


@dataclass(frozen=True)
class Claim:
    """That the measure of arm `right` is higher, or lower, than that of arm `left`; arms may be choices.

    `smallest` is the smallest difference of interest. `spread` is the standard deviation of a paired difference between
    questions and `seed_spread` that of the mean difference between seeds, both as they are assumed before the first run.
    What an audit `Found` is one number a training: its sides are paired by seed, and only `seed_spread` counts.
    With `left_measure` the sides are other questions of the same or of another arm, and are not paired. A study's verdict
    is that of its `main` claims.
    """

    name: str
    says: str
    left: str
    right: str
    measure: Measure
    direction: Direction
    smallest: float
    spread: float
    seed_spread: float = 0.0
    left_measure: Measure | None = None
    paper: str = ""
    main: bool = True


@dataclass(frozen=True)
class Trend:
    """That a response rises, or falls, with one of several terms, over all arms and seeds: least squares with a constant.

    A point is an arm under a seed. The response is its mean; a term is the sum of its values over the number of questions
    of all terms together. Points of one run (`runs`: arm -> run) depend on each other. `spread` is the assumed standard
    deviation of the coefficient between runs.
    """

    name: str
    says: str
    response: Measure
    terms: Mapping[str, Measure]
    term: str
    runs: Mapping[str, str]
    direction: Direction
    smallest: float
    spread: float
    paper: str = ""
    main: bool = False


@dataclass(frozen=True)
class Scale:
    """How large a study is: training seeds, the independent units of each subset, and the edits that make it so.

    `units` are questions, or the clusters that questions come in. `arms`: those that are run, all when left out.
    """

    seeds: int
    units: Mapping[str, int]
    edits: Mapping[str, Any] = field(default_factory=dict)
    arms: tuple[str, ...] = ()
    about: str = ""


@dataclass(frozen=True)
class Paper:
    """What was published: the claim in a sentence, and the numbers to stand beside ours."""

    title: str
    cite: str
    claim: str
    numbers: str


def without(recipe: Mapping[str, Any], step: str, **fields: Any) -> dict[str, Any]:
    """A recipe as text without one step and what is wired to it: the arm that was not trained.

    fields: further values as `step__field=value`, such as `score__shots=[4]`.
    """
    text = copy.deepcopy(dict(recipe))
    del text["steps"][step]
    for other in text["steps"].values():
        if "inputs" in other:
            other["inputs"] = {wanted: source for wanted, source in other["inputs"].items() if source != step}
    for path, value in fields.items():
        name, _, field_ = path.partition("__")
        text["steps"][name][field_] = value
    return text
