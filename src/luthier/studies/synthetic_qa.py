"""Takahashi et al. 2023: question-answer pairs that a model writes from paragraphs train a reader of questions.

Gemma 3 270M learns by LoRA to answer from a passage: from gaps that rules make, from spans that recur in two passages,
from what Gemma itself writes with three solved examples, raw or filtered, or from questions in the users' manner, for
equally many steps. It is asked about passages that it never saw, in other words than any training question, each below
its passage. The paper's teacher is tuned on instructions and far larger; its writing without examples, which needs such a
one, is left out: `questions.sources` with another `teacher` tests it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale, without

OVERLAP, EXACT = Measure("f1", "unseen"), Measure("exact-match", "unseen")
FILTERS = "[fitting-length,'distinct:threshold=1.0,within=passage',grounded,self-contained]"


class SyntheticQaStudy(Study, name="synthetic-qa", seeds=[14]):
    """Do questions that a model writes train a reader, and what do filters and examples add?"""

    world: ClassVar[str] = "real model (Gemma 3 270M, teacher and student) on invented bulletins"
    paper: ClassVar[Paper] = Paper(
        "Training Generative Question-Answering on Synthetic Data Obtained from an Instruct-tuned Model",
        "Takahashi et al. 2023, PACLIC 37",
        "A model tuned on pairs that an instruct-tuned model wrote reads about as well as one tuned on curated data.",
        "no number is remembered; JaQuAD, F1 close to or above that of the curated set")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"unseen": 2}, {
            "base.model": "pico", "encoder.model": "pico-encoder",
            **{f"{step}.{field}": n for step in ("pages", "asked", "tests") for field, n in (("states", 2), ("crops", 10))},
            **{f"{step}.{field}": 2 for step in ("asked", "tests") for field in ("known", "unseen")},
            "tuned.length": {"steps": 1}, "tuned.method": "lora:rank=4", "score.decoder.max_new_tokens": 1},
            arms=("base", "cloze", "given"), about="every line, no evidence; pico writes no questions"),
        "default": Scale(2, {"unseen": 24}),
        "large": Scale(3, {"unseen": 100}, {
            **{f"{step}.states": 24 for step in ("pages", "asked", "tests")},
            **{f"{step}.unseen": 100 for step in ("asked", "tests")},
            "questions.most_per_source": 500, "tuned.length": {"steps": 120}}),
    }

    def recipe(self) -> dict[str, Any]:
        """Bulletins, questions that rules write from them, and a model that has learned to answer from passages."""
        told = {"use": "bulletin-questions", "held_states": 0}
        return {"name": "synthetic-qa", "seed": 0, "steps": {
            "base": {"use": "base", "model": "gemma3-270m"},
            "encoder": {"use": "base", "model": "minilm"},
            "pages": {"use": "bulletins"},
            "index": {"use": "index", "inputs": {"documents": "pages", "encoder": "encoder"}},
            "tests": {**told, "subsets": ["unseen"]},
            "questions": {"use": "synthesize", "sources": ["cloze:per_passage=3"], "filters": [], "most_per_source": 150,
                          "inputs": {"documents": "pages"}},
            "split": {"use": "split", "augment": ["show-passage:share=1"],
                      "inputs": {"questions": "questions", "test": "tests", "documents": "pages"}},
            "tuned": {"use": "fit", "tasks": [{"data": "examples.train", "objective": "supervised"}],
                      "method": "lora:rank=8,alpha=16", "learning_rate": 3e-4, "length": {"steps": 30},
                      "inputs": {"base": "base", "examples": "split"}},
            "score": {"use": "evaluate", "arm": "tuned", "sets": ["unseen"], "passages": 1, "retriever": "oracle",
                      "metrics": ["f1", "exact-match"], "decoder": "greedy:max_new_tokens=16", "stops": ["newline"],
                      "inputs": {"base": "base", "tuned": "tuned", "examples": "split", "documents": "pages",
                                 "index": "index", "encoder": "encoder"}},
        }}

    def _given(self) -> dict[str, Any]:
        """The recipe with questions in the users' manner, which nobody had to write from passages."""
        made = copy.deepcopy(self.recipe())
        made["steps"]["asked"] = {**made["steps"].pop("tests"), "subsets": ["all"]}
        made["steps"]["tests"] = self.recipe()["steps"]["tests"]
        del made["steps"]["questions"]
        made["steps"]["split"]["inputs"]["questions"] = "asked"
        return made

    def _written(self, filters: str) -> dict[str, Any]:
        """The recipe with questions that the base writes after three solved examples."""
        made = copy.deepcopy(self.recipe())
        made["steps"]["questions"].update(
            sources=[f"synthetic-qa:shots=3,per_context=3,filters={filters}"],
            inputs={"documents": "pages", "writer": "base"})
        return made

    def arms(self) -> dict[str, dict[str, Any]]:
        """Untrained with three solved examples; rules; the model's own questions, raw and filtered; questions of users."""
        return {"base": without(self._given(), "tuned", score__shots=[3]), "cloze": {},
                "spans": {"questions.sources": ["recurring-spans"]}, "written": self._written("[]"),
                "filtered": self._written(FILTERS), "given": self._given()}

    def guards(self) -> tuple[Guard, ...]:
        """The task can be learned at all."""
        return (Guard("users' questions teach the task: F1 of at least 0.5", OVERLAP, ("given",), least=0.5),)

    def claims(self) -> tuple[Claim, ...]:
        """Written questions against none and against users' own; filters and rules."""
        return (
            Claim("written questions help", "tuned on filtered questions of its own the model reads better than untuned",
                  "base", "filtered", OVERLAP, "higher", 0.05, 0.4, 0.03, paper="synthetic pairs suffice to train a reader"),
            Claim("filters help", "filtered questions train a better reader than raw ones", "written", "filtered", OVERLAP,
                  "higher", 0.05, 0.3, 0.03, main=False),
            Claim("better than rules", "filtered questions train a better reader than gaps made by rules", "cloze", "filtered",
                  OVERLAP, "higher", 0.05, 0.4, 0.03, main=False),
            Claim("users' questions are better", "users' questions train a better reader than filtered ones", "filtered",
                  "given", OVERLAP, "higher", 0.05, 0.4, 0.03, paper="about equal, with a far larger teacher", main=False),
            Claim("rules fall short", "users' questions train a better reader than gaps made by rules", "cloze", "given",
                  OVERLAP, "higher", 0.05, 0.4, 0.03, main=False),
            Claim("exact answers", "filtered questions give more answers that are right word for word than none", "base",
                  "filtered", EXACT, "higher", 0.05, 0.45, 0.03, main=False))
