"""Ansell et al. 2021: what a language and what a task have moved can be added, where both have moved few weights.

The other language is English with its letters exchanged. A tiny BERT has read 2400 English reviews and 600 ciphered ones, all
different. It reads 480 further ones of each language (60 + 60 steps for sparse arms, 60 for dense ones), learns sentiment from
400 English reviews on top of what English has moved (20 + 60 steps, or 60), and is asked about ciphered reviews: base and task
alone, with what English has moved (`source`), and with what the cipher has moved, for dense differences, dense ones halved, LT-
SFT at a density of 10 %, the same number of entries chosen by chance, and densities of 3, 30 and 100 %.
Tokens are pieces of words, not letters: most of a run is reading, and letters would leave it far fewer steps.
Adapters of MAD-X are no arm: the house does not stack adapters of two trainings. The gate is English: a model that does not
know the task has nothing to carry over. Settings were written down before the first run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale, without

CIPHER, ENGLISH = Measure("accuracy", "cipher"), Measure("accuracy", "english")
PHASE, FIRST, RATE = 60, 20, 1e-3
DENSITIES: Mapping[str, str] = {"3": "0.03", "30": "0.3", "100": "1.0"}
WHOLE = {"method": "full", "length": {"steps": PHASE}}


def _sparse(params: str, **more: Any) -> dict[str, dict[str, Any]]:
    """Settings of the two trainings by LT-SFT: both phases of a language are as long, a task's first one is short."""
    method = {"use": "lt-sft", "params": float(params), **more}
    return {"language": {"method": {**method, "full_share": 0.5, "l1": 0.1}, "length": {"steps": 2 * PHASE}},
            "task": {"method": {**method, "full_share": FIRST / (FIRST + PHASE)}, "length": {"steps": FIRST + PHASE}}}


FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "lt-sft": _sparse("0.1"), "rand-sft": _sparse("0.1", by="random"), "dense": {"language": WHOLE, "task": WHOLE},
    "dense-half": {"language": WHOLE, "task": WHOLE, "scale": 0.5},
    **{f"lt-sft-{name}": _sparse(params) for name, params in DENSITIES.items()}}


class LtSftStudy(Study, name="lt-sft", seeds=[70]):
    """Does a task learned in English carry over to a cipher by adding what the cipher has moved?"""

    paper: ClassVar[Paper] = Paper(
        "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", "Ansell, Ponti, Korhonen, Vulic 2021, arXiv 2110.07560",
        "Sparse differences of a language and a task compose, and transfer better than stacked adapters; sparsity is crucial.",
        "mBERT; named entities and parts of speech about 2.5 points above MAD-X")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"cipher": 2, "english": 2}, {
            "rows.texts": 10, "rows.more": 4, "rows.train": 4, "rows.tests": 2, "base.width": 16, "base.layers": 1,
            "base.epochs": 1, "source.length": {"steps": 4}, "language.length": {"steps": 4}, "task.length": {"steps": 4}},
            arms=("task", "lt-sft"), about="every line, no evidence"),
        "default": Scale(2, {"cipher": 400, "english": 400}),
        "large": Scale(5, {"cipher": 1600, "english": 1600}, {
            "rows.texts": 12_000, "rows.more": 2000, "rows.train": 1600, "rows.tests": 1600}),
    }

    def recipe(self) -> dict[str, Any]:
        """A model that has read two languages; both read on, a task on top of one, and the task with the other."""
        return self._family("lt-sft")

    def _family(self, name: str) -> dict[str, Any]:
        said = FAMILIES[name]
        fit = {"use": "fit", "learning_rate": RATE, "batch_rows": 16, "dtype": "float32", "over_long": "truncate",
               "max_tokens_per_example": 96}
        reads = {**fit, **said["language"], "over_long": "drop"}
        both = {"base": "base", "examples": "rows"}
        return {"name": "lt-sft", "seed": 0, "steps": {
            "rows": {"use": "ciphered-reviews"},
            "base": {"use": "pretrained", "kind": "encoder", "width": 128, "vocabulary": 4096, "epochs": 8,
                     "inputs": {"examples": "rows"}},
            "source": {**reads, "tasks": [{"data": "examples.here", "objective": "mlm"}], "inputs": both},
            "start": {"use": "whole-model", "inputs": {"base": "base", "tuned": "source"}},
            "language": {**reads, "tasks": [{"data": "examples.there", "objective": "mlm"}], "inputs": dict(both)},
            "task": {**fit, **said["task"], "tasks": [{"data": "examples.train", "objective": "classify", "head": "linear"}],
                     "inputs": {"base": "start", "examples": "rows"}},
            "tuned": {"use": "composed", "scale": said.get("scale", 1.0),
                      "inputs": {"base": "base", "start": "start", "task": "task", "language": "language"}},
            "score": {"use": "evaluate", "arm": "tuned", "sets": ["cipher", "english"], "metrics": ["accuracy"],
                      "inputs": {**both, "tuned": "tuned"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """The task with no language, with its own, and with the other by each family."""
        own = without(self.recipe(), "language")
        own["steps"]["tuned"]["inputs"]["language"] = "source"
        return {"task": without(self.recipe(), "language"), "source": own,
                **{name: self._family(name) for name in FAMILIES}}

    def guards(self) -> tuple[Guard, ...]:
        """The task is known in its own language, and not all of it in the other."""
        return (Guard("the task is learned in English: at least 0.65 right", ENGLISH, ("source",), least=0.65),
                Guard("the cipher is another language: at most 0.85 right without it", CIPHER, ("task",), most=0.85))

    def claims(self) -> tuple[Claim, ...]:
        """What the language adds, and whether it must be sparse; which entries; halves; densities."""
        def above(name: str, says: str, left: str, right: str, **rest: Any) -> Claim:
            return Claim(name, says, left, right, CIPHER, "higher", 0.05, 0.5, 0.03, **rest)

        return (
            above("the language helps", "with what the cipher has moved more ciphered reviews are sorted right than by the "
                  "task alone", "task", "lt-sft", paper="zero-shot transfer"),
            above("sparse", "sparse differences compose better than dense ones", "dense", "lt-sft",
                  paper="sparsity is crucial"),
            above("than halves", "sparse differences compose better than dense ones halved", "dense-half", "lt-sft",
                  main=False),
            above("which entries", "entries that moved most compose better than as many by chance", "rand-sft", "lt-sft",
                  main=False),
            above("not any language", "what the cipher has moved helps more than what English has", "source", "lt-sft",
                  main=False),
            *(above(f"density {name} %", f"a density of 10 % is better than one of {name} %", f"lt-sft-{name}", "lt-sft",
                    main=False) for name in DENSITIES))
