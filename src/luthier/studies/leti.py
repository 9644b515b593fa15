"""Wang et al. 2023: programs with what the interpreter says of them train a model better than good and bad alone.

A tiny Llama has read right and wrong programs of an invented family, and transcripts of errors. In three rounds it writes
programs for forty problems and learns from them: told good or bad with the traceback (textual), good or bad alone (binary),
with the tracebacks of other programs (shuffled, the control), or from those alone that pass. Each round has equally many
optimizer steps; in the textual arms they are spent on longer texts. Solutions by hand are the point of reference. The words
of feedback are the traceback's own, so what the base has read of them is their last line. How long the base reads was set
after a look at what it then passes: 0.09 after 6 epochs, 0.42 after 12.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale, without

PASSED = Measure("pass-at-k", "test")
WAYS = ("textual", "binary", "shuffled", "successes")
SAMPLE = {"use": "sample", "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 32}


class LetiStudy(Study, name="leti", seeds=[47]):
    """Does a model learn more from its own programs when it is told why they fail?"""

    paper: ClassVar[Paper] = Paper(
        "LETI: Learning to Generate from Textual Interactions", "Wang et al. 2023, arXiv 2305.10314",
        "Textual feedback reaches the level of binary feedback in less than half of the steps; on MBPP it is above tuning on "
        "solutions, without any.", "CodeGen 350M and 2B on MBPP and HumanEval; no number is remembered")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"test": 2}, {
            "world.pretrain_rows": 16, "world.problems": 2, "base.width": 16, "base.layers": 1, "base.epochs": 1,
            "base.vocabulary": 300, "trained.times": 1,
            "trained.steps.told.steps": ["leti:samples=2,decoder={use: sample, max_new_tokens: 2}"],
            "trained.steps.tuned.length": {"steps": 1},
            "score.metrics": ["pass-at-k:n=1,decoder={use: sample, max_new_tokens: 2}"]},
            arms=("base", "gold"), about="world, base, solutions and programs that are run; no evidence"),
        "default": Scale(2, {"test": 40}),
        "large": Scale(3, {"test": 60}, {"world.problems": 60, "trained.times": 5, "base.width": 192}),
    }

    def recipe(self) -> dict[str, Any]:
        """Programs, a model of them, rounds of its own attempts, and what it passes then."""
        told = {"use": "curate", "subsets": ["train"], "inputs": {"rows": "world", "writer": "base"},
                "steps": [self._told("textual")]}
        tuned = {"use": "fit", "method": "full", "learning_rate": 3e-4, "schedule": "constant", "dtype": "float32",
                 "optimizer": "adamw:weight_decay=0.01", "length": {"steps": 40}, "batch_rows": 16,
                 "tasks": [{"data": {"examples.train": 1.0, "examples.pretrain": 1.0}, "objective": "leti"}],
                 "inputs": {"base": "base", "examples": "told"}}
        whole = {"use": "whole-model", "inputs": {"base": "base", "tuned": "tuned"}}
        return {"name": "leti", "seed": 0, "steps": {
            "world": {"use": "small-programs"},
            "base": {"use": "pretrained", "vocabulary": 400, "epochs": 10, "batch_rows": 8, "inputs": {"examples": "world"}},
            "trained": {"use": "repeat", "times": 3, "carry": {"base": "whole"}, "result": "whole",
                        "steps": {"told": told, "tuned": tuned, "whole": whole},
                        "inputs": {"world": "world", "base": "base"}},
            "score": {"use": "evaluate", "arm": "trained", "sets": ["test"], "metrics": [self._asked("<|good|>")],
                      "inputs": {"base": "trained", "examples": "world"}}}}

    def _told(self, way: str) -> dict[str, Any]:
        return {"use": "leti", "samples": 8, "seconds": 1, "feedback": way, "decoder": SAMPLE}

    def _asked(self, prefix: str) -> dict[str, Any]:
        return {"use": "pass-at-k", "n": 5, "prefix": prefix, "seconds": 1, "decoder": SAMPLE}

    def arms(self) -> dict[str, dict[str, Any]]:
        """The base, four ways to tell, and solutions."""
        base, gold = (without(self.recipe(), "trained", score__arm=name) for name in ("base", "gold"))
        for text in (base, gold):
            text["steps"]["score"] |= {"metrics": [self._asked("")], "inputs": {"base": "base", "examples": "world"}}
        gold["steps"]["tuned"] = {**self.recipe()["steps"]["trained"]["steps"]["tuned"], "length": {"steps": 120},
                                  "tasks": [{"data": {"examples.gold": 1.0, "examples.pretrain": 1.0}, "objective": "leti"}],
                                  "inputs": {"base": "base", "examples": "world"}}
        gold["steps"]["score"]["inputs"]["tuned"] = "tuned"
        ways = {way: {"trained.steps.told.steps": [self._told(way)]} for way in WAYS}
        ways["successes"]["score.metrics"] = [self._asked("")]
        return {"base": base, "gold": gold, **ways}

    def guards(self) -> tuple[Guard, ...]:
        """The base passes now and then."""
        return (Guard("the base passes at least 0.15 of its programs", PASSED, ("base",), least=0.15),
                Guard("and at most 0.5", PASSED, ("base",), most=0.5))

    def claims(self) -> tuple[Claim, ...]:
        """Against the base; the text against none, and against that of others."""
        return (
            Claim("self-training helps", "told with tracebacks of its own programs the model passes more than before", "base",
                  "textual", PASSED, "higher", 0.05, 0.35, 0.03, paper="pass@1 rises with the rounds"),
            Claim("the text helps", "with its own tracebacks it passes more than with those of other programs", "shuffled",
                  "textual", PASSED, "higher", 0.05, 0.3, 0.03, paper="textual above binary"),
            Claim("above binary", "with tracebacks it passes more than with good and bad alone", "binary", "textual", PASSED,
                  "higher", 0.05, 0.3, 0.03, paper="binary's level in less than half of the steps", main=False),
            Claim("above successes", "with tracebacks it passes more than from its successes alone", "successes", "textual",
                  PASSED, "higher", 0.05, 0.3, 0.03, main=False),
            Claim("solutions help", "after tuning on solutions it passes more than before", "base", "gold", PASSED, "higher",
                  0.05, 0.35, 0.03, main=False),
            Claim("near solutions", "it passes more than after tuning on solutions", "gold", "textual", PASSED, "higher", 0.05,
                  0.4, 0.03, paper="above the baseline tuned on MBPP's solutions", main=False))
