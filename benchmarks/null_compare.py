"""Error rates of the verdicts of `luthier compare`, measured on simulated scores through the functions that make them.

    python benchmarks/null_compare.py [--experiments 1000] [--out benchmarks/null_compare.md]

Scores are made question by question, as a grid leaves them, and go through `luthier.pipelines.verdicts.verdicts`:

    value[arm, seed, q] = difficulty[q] + effect[arm] + fortune[arm, seed] + suits[arm, q] + noise[arm, seed, q]

shared difficulty, the luck of a training, questions that suit an arm, and noise; `binary` cuts it at 0. Every arm has the
same distribution but for `effect`. What is counted:

- false alarms: experiments in which any pair of equal arms is called better or worse, after Holm (at most 5 % are wanted);
- coverage: pairs whose 95 % interval holds the true difference;
- power: at an effect of the size that `visible` names (the mean over experiments), the share of experiments that decide
  (80 % are promised).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luthier.core.finding import Finding
from luthier.pipelines.grid import Scores
from luthier.pipelines.verdicts import verdicts

METRIC = "accuracy"


@dataclass(frozen=True)
class World:
    """Sizes and standard deviations of a simulated comparison."""

    name: str
    arms: int = 3
    seeds: int = 3
    questions: int = 200
    sets: int = 1
    fortune: float = 0.1
    suits: float = 0.5
    noise: float = 0.5
    cluster: int = 1  # questions in one, which share what suits an arm
    binary: bool = False

    def scores(self, rng: np.random.Generator, effect: float = 0.0) -> dict[str, list[Scores]]:
        """Scores by arm and seed; `effect` is what the last arm is better by."""
        arms: dict[str, list[Scores]] = {f"arm-{i}": [{} for _ in range(self.seeds)] for i in range(self.arms)}
        groups = np.arange(self.questions) // self.cluster
        for number in range(self.sets):
            difficulty = rng.normal(size=self.questions)
            for place, runs in enumerate(arms.values()):
                suits = self.suits * rng.normal(size=groups[-1] + 1)[groups]
                for run in runs:
                    values = difficulty + suits + self.fortune * rng.normal() + self.noise * rng.normal(size=self.questions)
                    values += effect * (place == self.arms - 1)
                    values = (values > 0).astype(float) if self.binary else values
                    run[f"set-{number}", METRIC] = {f"q{i}": (f"c{groups[i]}", float(v)) for i, v in enumerate(values)}
        return arms


WORLDS = (
    World("three seeds, luck small"),
    World("three seeds, luck large", fortune=0.3),
    World("three seeds, luck alone", fortune=0.3, suits=0.0, noise=0.0),
    World("three seeds, right or wrong", binary=True),
    World("three seeds, four arms, two sets", arms=4, sets=2),
    World("five seeds, 40 clusters of 5", seeds=5, cluster=5),
    World("one seed, 30 questions", seeds=1, questions=30, fortune=0.0),
    World("two seeds, 40 clusters of 5", seeds=2, cluster=5, fortune=0.0),
)


def judged(world: World, experiments: int, effect: float = 0.0, seed: int = 0) -> Iterator[list[Finding]]:
    """The findings of one experiment after the other."""
    for number in range(experiments):
        rng = np.random.Generator(np.random.Philox(key=seed * 1_000_003 + number))
        yield verdicts(world.scores(rng, effect), {METRIC: True}, seed=number)


def null(world: World, experiments: int) -> Mapping[str, float]:
    """Shares of false alarms and of intervals that hold 0, and the mean smallest visible differences."""
    alarms, covered, alone, family = 0, [], [], []
    for findings in judged(world, experiments):
        alarms += any(f.verdict in ("better", "worse") for f in findings)
        covered += [f.interval[0] <= 0 <= f.interval[1] for f in findings if f.interval]
        alone += [f.extra["visible"] ** 2 for f in findings]
        family += [f.extra["visible_family"] ** 2 for f in findings]
    return {"alarms": alarms / experiments, "coverage": float(np.mean(covered)), "visible": float(np.mean(alone)) ** 0.5,
            "visible_family": float(np.mean(family)) ** 0.5}


def power(world: World, experiments: int, effect: float) -> float:
    """Share of experiments of two arms that decide for the better one, when it is better by `effect`."""
    found = [findings[0].verdict == "better" for findings in judged(world, experiments, effect, seed=1)]
    return float(np.mean(found))


def main() -> None:
    """Measure every world and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    n = options.experiments
    lines = [f"{n:,} experiments a row; the standard error of a share of 5 % is {100 * (0.05 * 0.95 / n) ** 0.5:.1f} %.", "",
             "| scores | family | false alarms | coverage of 95 % | visible (two arms) | power there |",
             "|---|---:|---:|---:|---:|---:|"]
    for world in WORLDS:
        found = null(world, n)
        size = world.arms * (world.arms - 1) // 2 * world.sets
        two = World(**{**world.__dict__, "arms": 2, "sets": 1})
        visible = null(two, max(50, n // 5))["visible"]
        # An effect before the cut is no difference of shares: there power is not measured.
        share = "–" if world.binary else f"{100 * power(two, n, visible):.1f} %"
        lines.append(f"| {world.name} | {size} | {100 * found['alarms']:.1f} % | {100 * found['coverage']:.1f} % | "
                     f"{visible:.3f} | {share} |")
        print(lines[-1], flush=True)
    if options.out:
        head = "# Error rates of `luthier compare`\n\nWritten by `benchmarks/null_compare.py`, which says what is simulated."
        options.out.write_text("\n".join([head, "", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
