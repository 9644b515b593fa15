"""Chen & Mueller 2024: rows that a model has no confidence in are better left out, and better still corrected by itself.

A tiny Llama that knows an invented world is tuned on 120 questions about facts that it was told, 30 per cent of which have
another fact's answer: on all, on a drawn half, on what CLEAR's filter keeps, on that with CLEAR's corrections, and on the right
answers. All trainings have as many steps. Asked are facts about other persons. Answers are one invented word, so samples are
compared by sameness alone; what so small a model thinks of an answer can hardly be more than noise, and filtering by samples
alone (`samples`, beta = 1) is an arm. Sixty questions left the first claim undecided, over three seeds (version 1) and over
twelve (version 2). Version 3 has more persons, of whom 110 facts are asked, and a rate that ends at 0, so that seeds agree;
rate and length were set after a look at two seeds, since at 0.001 in 60 steps wrong answers cost nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale, without

RIGHT = Measure("exact-match")
CLEAR = ("clear:samples=3,similarity=same,decoder={use: sample, temperature: 1, top_p: 1, max_new_tokens: 4},"
         "written={use: greedy, max_new_tokens: 4}")


class ClearStudy(Study, name="clear", seeds=[93], version=3):
    """Do a model's own confidence and answers mend noisy rows?"""

    paper: ClassVar[Paper] = Paper(
        "Automated Data Curation for Robust Language Model Fine-Tuning", "Chen & Mueller 2024, arXiv 2403.12776",
        "Filtering by confidence improves on the noisy data for every model and data set, and correction adds to it.",
        "SQuAD-N, Emails-N, DROP-N with a fifth of the targets wrong; no number is remembered")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"test": 3}, {
            "facts.persons": 24, "facts.values": 4, "base.width": 16, "base.layers": 1, "base.epochs": 1, "rows.rows": 6,
            "rows.tested": 3, "rows.least_mentions": 1, "first.length": {"steps": 1}, "tuned.length": {"steps": 1},
            "score.decoder": "greedy:max_new_tokens=2"},
            arms=("noisy", "filtered", "corrected"), about="every line, no evidence"),
        "default": Scale(8, {"test": 110}, {"facts.persons": 200, "rows.tested": 110}),
        "large": Scale(8, {"test": 200}, {"facts.persons": 500, "base.width": 192, "rows.rows": 400, "rows.tested": 200}),
    }

    def recipe(self) -> dict[str, Any]:
        """A base that knows facts, noisy rows, what the filter keeps of them, a training and a test."""
        fit = {"use": "fit", "tasks": [{"data": "examples.train"}], "method": "lora:rank=8", "schedule": "cosine",
               "dtype": "float32", "learning_rate": 4e-3, "batch_rows": 12, "length": {"steps": 120}}
        return {"name": "clear", "seed": 0, "steps": {
            "facts": {"use": "facts-world"},
            "base": {"use": "pretrained", "inputs": {"examples": "facts"}},
            "rows": {"use": "noisy-facts", "inputs": {"facts": "facts"}},
            "kept": {"use": "curate", "subsets": ["train"], "steps": [CLEAR], "inputs": {"rows": "rows", "writer": "base"}},
            "tuned": {**fit, "inputs": {"base": "base", "examples": "kept"}},
            "score": {"use": "evaluate", "arm": "tuned", "sets": ["test"], "metrics": ["exact-match"],
                      "decoder": "greedy:max_new_tokens=4", "inputs": {"base": "base", "tuned": "tuned", "examples": "rows"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """The base; all rows, a half, the right answers; the filter, with samples alone, and with corrections."""
        found: dict[str, dict[str, Any]] = {"base": without(without(self.recipe(), "tuned"), "kept")}
        for name, subset in (("noisy", "train"), ("half", "half"), ("clean", "clean")):
            text = self.recipe()
            del text["steps"]["kept"]
            text["steps"]["tuned"] |= {"tasks": [{"data": f"examples.{subset}"}],
                                       "inputs": {"base": "base", "examples": "rows"}}
            found[name] = text
        corrected = self.recipe()
        steps = corrected["steps"]
        steps["first"] = copy.deepcopy(steps["tuned"])
        steps["mended"] = {"use": "curate", "subsets": ["train"], "steps": [f"{CLEAR},eta=0.8"],
                           "inputs": {"rows": "rows", "writer": "base", "tuned": "first"}}
        steps["tuned"]["inputs"]["examples"] = "mended"
        return {**found, "filtered": {}, "samples": {"kept.steps": [f"{CLEAR},beta=1"]}, "corrected": corrected}

    def guards(self) -> tuple[Guard, ...]:
        """Facts are known, and wrong answers cost something that right ones do not."""
        return (Guard("right answers keep what is known: at least 0.6 right", RIGHT, ("clean",), least=0.6),
                Guard("noise costs something: at most 0.9 right", RIGHT, ("noisy",), most=0.9))

    def claims(self) -> tuple[Claim, ...]:
        """The filter against all rows and against fewer; the correction; the clean rows; samples alone."""
        return (
            Claim("filter", "more is right after training on what the filter keeps than on all rows", "noisy", "filtered",
                  RIGHT, "higher", 0.05, 0.35, 0.03, paper="every model and data set"),
            Claim("not by having fewer", "more is right after training on what the filter keeps than on a drawn half", "half",
                  "filtered", RIGHT, "higher", 0.05, 0.35, 0.03),
            Claim("correction", "corrections add to the filter", "filtered", "corrected", RIGHT, "higher", 0.05, 0.3, 0.03,
                  paper="adds to filtering", main=False),
            Claim("short of clean", "the right answers are still better than what the filter keeps", "filtered", "clean",
                  RIGHT, "higher", 0.05, 0.3, 0.03, main=False),
            Claim("samples alone", "the filter by samples alone keeps better rows", "filtered", "samples", RIGHT, "higher",
                  0.05, 0.3, 0.03, main=False))
