"""Gu et al. 2024: cut early, a small base with few adapters does nearly what the whole one with all of them does.

MiniLM sorts invented reviews of four domains by sentiment, all arms in 200 steps, the estimation included: LoRA of rank 8 on
every linear layer; Light-PEFT (a third of heads and neurons, three quarters of the modules and half of the ranks cut); the
same cut at random; the base cut at random and the adapter by what was measured; and the adapter cut alone, on the whole base.
The test is on other reviews, many of them with a remark of the other kind. What is left, seconds a step and the spread of the
masks stand in each run's log; about 50 steps of estimation may order little. Three seeds (version 1) left all claims undecided.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale

RIGHT = Measure("accuracy")
LIGHT = "light-peft:estimate_share=0.25"
METHODS: Mapping[str, str] = {
    "lora": "lora:rank=8,alpha=16", "light": LIGHT, "random": f"{LIGHT},base_by=random,peft_by=random",
    "random-base": f"{LIGHT},base_by=random", "peft-only": f"{LIGHT},prune_heads=0,prune_ffn=0"}


class LightPeftStudy(Study, name="light-peft", seeds=[17], version=2):
    """Does it matter which heads, neurons, modules and ranks are cut?"""

    world: ClassVar[str] = "real model (MiniLM) on invented reviews"
    paper: ClassVar[Paper] = Paper(
        "Light-PEFT: Lightening Parameter-Efficient Fine-Tuning via Early Pruning", "Gu et al. 2024, arXiv 2406.03792",
        "With more than 40 % of the base cut and a quarter of the trained weights the quality is comparable.",
        "no number is remembered; RoBERTa-large and OPT on GLUE, SuperGLUE and question answering")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"test": 16}, {
            "base.model": "pico-encoder", "reviews.rows": 4, "reviews.test_rows": 4, "tuned.length": {"steps": 4},
            "tuned.max_tokens_per_example": 16}, arms=("lora", "light", "random"), about="every line, no evidence"),
        "default": Scale(12, {"test": 400}),
        "large": Scale(5, {"test": 1600}, {"reviews.rows": 400, "reviews.test_rows": 400, "tuned.length": {"steps": 800}}),
    }

    def recipe(self) -> dict[str, Any]:
        """Reviews to learn from, and others."""
        return {"name": "light-peft", "seed": 0, "steps": {
            "base": {"use": "base", "model": "minilm"},
            "reviews": {"use": "opinions", "rows": 60, "test_rows": 100},
            "tuned": {"use": "fit", "tasks": [{"data": "examples.all", "objective": "classify", "head": "linear"}],
                      "method": "lora", "learning_rate": 1e-3, "length": {"steps": 200}, "batch_rows": 16,
                      "over_long": "truncate", "max_tokens_per_example": 64, "dtype": "float32",
                      "inputs": {"base": "base", "examples": "reviews"}},
            "score": {"use": "evaluate", "arm": "tuned", "sets": ["test"], "metrics": ["accuracy"],
                      "inputs": {"base": "base", "tuned": "tuned", "examples": "reviews"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """LoRA, and what is cut by what."""
        return {name: {"tuned.method": method} for name, method in METHODS.items()}

    def guards(self) -> tuple[Guard, ...]:
        """The task is learned."""
        return (Guard("the task is learned: at least 0.75 right", RIGHT, ("lora",), least=0.75),)

    def claims(self) -> tuple[Claim, ...]:
        """Against cuts at random, and what the cut costs."""
        return (
            Claim("better than at random", "what is measured cuts better than chance: more reviews are sorted right", "random",
                  "light", RIGHT, "higher", 0.03, 0.4, 0.015, paper="comparable to the whole model"),
            Claim("the base matters", "with the base cut by its masks more are right than with the base cut at random",
                  "random-base", "light", RIGHT, "higher", 0.03, 0.4, 0.015, main=False),
            Claim("the cut costs", "fewer are right than by LoRA on the whole base", "lora", "light", RIGHT, "lower", 0.02, 0.3,
                  0.015, paper="comparable", main=False),
            Claim("the adapter's cut costs", "fewer are right with the adapter cut alone than by LoRA", "lora", "peft-only",
                  RIGHT, "lower", 0.02, 0.3, 0.015, paper="comparable", main=False))
