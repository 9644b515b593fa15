"""Mathav Raj et al. 2024: of several training formats made of the same documents, questions with answers teach most.

Gemma 3 270M learns bulletins as paragraphs, as questions with answers, from keywords to paragraph, or as paragraphs and
questions, by LoRA for equally many optimizer steps. It is asked about the same sections in other words (`known`), which
favours questions by form alone, and reads the sections again (`pages`), which favours paragraphs; bits per byte of the
same facts as plain statements, in a wording that no format has, are the neutral measure. Code formats are left out here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale, without

SAID = Measure("recall-em", "known")
STATED, PAGES = (Measure("bits-per-byte", on, "read") for on in ("statements", "pages"))
QUESTIONS = {"data": "examples.train", "objective": "supervised"}
PARAGRAPHS = {"data": "rows.train", "objective": "pretrain"}


class EnterpriseStudy(Study, name="enterprise", version=2, seeds=[126]):
    """Which format of the same documents teaches a model most?"""

    world: ClassVar[str] = "real model (Gemma 3 270M) on invented bulletins"
    paper: ClassVar[Paper] = Paper(
        "Fine Tuning LLM for Enterprise: Practical Guidelines and Recommendations", "Mathav Raj et al. 2024, arXiv 2404.10779",
        "Questions with answers teach more of documents than raw paragraphs do; mixed formats serve both.",
        "qualitative only: a 7B model, judged by experts")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"known": 2, "statements": 2, "pages": 2}, {
            "base.model": "pico", **{f"{step}.{field}": n for step in ("pages", "asked", "tests", "texts")
                                     for field, n in (("states", 2), ("crops", 6))},
            **{f"{step}.{field}": 2 for step in ("asked", "tests", "texts") for field in ("known", "unseen")},
            "tuned.length": {"steps": 1}, "tuned.method": "lora:rank=4", "score.decoder.max_new_tokens": 1},
            arms=("base", "paragraphs", "questions", "both"), about="every line, no evidence"),
        "default": Scale(2, {"known": 24, "statements": 24, "pages": 24}),
        "large": Scale(5, {"known": 100, "statements": 100, "pages": 100}, {
            **{f"{step}.states": 20 for step in ("pages", "asked", "tests", "texts")},
            **{f"{step}.known": 100 for step in ("asked", "tests", "texts")}, "tuned.length": {"steps": 240}}),
    }

    def recipe(self) -> dict[str, Any]:
        """Bulletins, questions about them, a second format, and a model that has learned from both."""
        told = {"use": "bulletin-questions", "states": 6, "held_states": 0, "unseen": 6}
        return {"name": "enterprise", "seed": 0, "steps": {
            "base": {"use": "base", "model": "gemma3-270m"},
            "pages": {"use": "bulletins", "states": 6},
            "asked": dict(told),
            "tests": {**told, "subsets": ["known", "unseen"]},
            "texts": {**told, "subsets": ["statements", "pages"]},
            "split": {"use": "split", "augment": ["show-passage:share=0"],
                      "inputs": {"questions": "asked", "test": "tests", "documents": "pages"}},
            "rows": {"use": "format-rows", "format": "paragraphs", "inputs": {"documents": "pages", "examples": "split"}},
            "tuned": {"use": "fit", "tasks": [QUESTIONS, PARAGRAPHS], "method": "lora:rank=16,alpha=32", "batch_rows": 4,
                      "learning_rate": 5e-4, "length": {"steps": 60},
                      "inputs": {"base": "base", "examples": "split", "rows": "rows"}},
            "score": {"use": "evaluate", "arm": "said", "sets": ["known"], "metrics": ["recall-em", "f1"],
                      "decoder": "greedy:max_new_tokens=12", "stops": ["newline"],
                      "inputs": {"base": "base", "tuned": "tuned", "examples": "split"}},
            "read": {"use": "evaluate", "arm": "read", "sets": ["statements", "pages"], "metrics": ["bits-per-byte"],
                     "inputs": {"base": "base", "tuned": "tuned", "examples": "texts"}},
        }}

    def _of(self, task: Mapping[str, str], **rows: Any) -> dict[str, Any]:
        """The recipe with one task of twice the rows a step, so that a step has as many rows in every arm."""
        made = copy.deepcopy(self.recipe())
        tuned = made["steps"]["tuned"]
        made["steps"]["rows"].update(rows)
        tuned.update(tasks=[dict(task)], batch_rows=8)
        del tuned["inputs"]["rows" if task["data"].startswith("examples") else "examples"]
        if "rows" not in tuned["inputs"]:
            del made["steps"]["rows"]
        return made

    def arms(self) -> dict[str, dict[str, Any]]:
        """Untrained with three solved examples; each format by itself; paragraphs and questions together."""
        base = without(without(self.recipe(), "tuned", score__shots=[3]), "rows")
        return {"base": base, "paragraphs": self._of(PARAGRAPHS), "questions": self._of(QUESTIONS),
                "keywords": self._of({**PARAGRAPHS, "objective": "supervised"}, format="keywords-paragraph"), "both": {}}

    def guards(self) -> tuple[Guard, ...]:
        """The facts are new, and what each format shows is learned."""
        return (Guard("the facts are new to the base: at most 0.25 of its answers hold them", SAID, ("base",), most=0.25),
                Guard("paragraphs are learned: at most 1 bit a byte", PAGES, ("paragraphs",), most=1.0))

    def claims(self) -> tuple[Claim, ...]:
        """The neutral measure decides; what each format is favoured by is shown beside it."""
        return (
            Claim("questions teach more", "after questions the facts as statements need fewer bits than after paragraphs",
                  "paragraphs", "questions", STATED, "lower", 0.05, 0.25, 0.03, paper="questions judged best"),
            Claim("questions answer better", "after questions more answers hold the fact than after paragraphs", "paragraphs",
                  "questions", SAID, "higher", 0.05, 0.4, 0.03, paper="questions judged best", main=False),
            Claim("paragraphs read better", "after paragraphs the sections need fewer bits than after questions", "questions",
                  "paragraphs", PAGES, "lower", 0.05, 0.25, 0.03, main=False),
            Claim("both answer", "with paragraphs in half of the rows more answers hold the fact than after questions alone",
                  "questions", "both", SAID, "higher", 0.05, 0.4, 0.03, paper="mixed formats serve both", main=False))
