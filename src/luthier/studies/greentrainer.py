"""Huang et al. 2023: tensors chosen by what they are worth and what they cost come near full tuning at half of its FLOPs.

A tiny Llama that has read general parts of Python's documentation reads other parts, 120 steps. GreenTrainer may spend 0.54 or
0.67 of full tuning's FLOPs a step, which is what training the last of four layers takes, or the last two (counted as
`engine/flops.py` does, whole vocabulary frozen); LoRA takes about 0.67, too. As a control random importances choose at 0.54.
Every arm has two learning rates and stands for itself at the better one on dev. Bits per byte of texts that were kept out;
fewer are better. What each choice took is measured, and lies in `greentrainer.json` of each arm with the planned FLOPs.
Version 1 stated texts as independent units, where those of one module are one, and broke its own guard. Version 3 asks the
same of texts that no imported package changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Choice, Claim, Guard, Measure, Paper, Scale, without
from luthier.studies._worlds._started import DOCS_UNITS, docs_recipe

TARGET, SOURCE, DEV = (Measure("bits-per-byte", on) for on in ("target", "source", "dev"))
METHODS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "full": ("full", (1e-3, 3e-3)), "lora": ("lora:rank=8", (3e-3, 1e-2)),
    "last-one": ("layer-freezing:train_last=1", (1e-3, 3e-3)), "last-two": ("layer-freezing:train_last=2", (1e-3, 3e-3)),
    "green-54": ("greentrainer:rho=0.54,interval=1", (1e-3, 3e-3)),
    "green-67": ("greentrainer:rho=0.67,interval=1", (1e-3, 3e-3)),
    "random-54": ("greentrainer:rho=0.54,interval=1,control=true", (1e-3, 3e-3))}


class GreenTrainerStudy(Study, name="greentrainer", seeds=[15], version=3):
    """Is the choice of tensors worth its FLOPs?"""

    world: ClassVar[str] = "tiny models on Python's own documentation"
    paper: ClassVar[Paper] = Paper(
        "Towards Green AI in Fine-tuning Large Language Models via Adaptive Backpropagation",
        "Huang, Yang, Huang, Gao 2023, arXiv 2309.13192",
        "Up to 64 % of the FLOPs of full tuning are saved without loss, and up to 4 % is gained over LoRA at equal FLOPs.",
        "OPT, BLOOM and Flan-T5 on SciTLDR and DialogSum: rho 0.4, 0.5 and 0.7")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"target": 4, "source": 4, "dev": 2}, {
            "docs.pretrain_rows": 12, "docs.train_rows": 8, "docs.dev_rows": 2, "docs.test_rows": 4, "base.width": 32,
            "base.layers": 1, "base.epochs": 1, "base.vocabulary": 300, "tuned.length": {"steps": 1}},
            arms=("full-0.003", "green-54-0.003", "random-54-0.003"), about="every line, no evidence"),
        "default": Scale(3, DOCS_UNITS),
        "large": Scale(5, {"target": 27, "source": 50, "dev": 22}, {
            "docs.train_rows": 600, "docs.dev_rows": 60, "docs.test_rows": 200, "base.width": 192, "base.layers": 6}),
    }

    def recipe(self) -> dict[str, Any]:
        """A base that knows one half of the documentation reads the other."""
        return docs_recipe("greentrainer", {"steps": 120})

    def arms(self) -> dict[str, dict[str, Any]]:
        """The base, and methods x rates."""
        return {"base": without(self.recipe(), "tuned"),
                **{f"{name}-{rate:g}": {"tuned.method": method, "tuned.learning_rate": rate}
                   for name, (method, rates) in METHODS.items() for rate in rates}}

    def guards(self) -> tuple[Guard, ...]:
        """There is something to learn."""
        return (Guard("the target is new to the base: at least 1.5 bits a byte", TARGET, ("base",), least=1.5),)

    def choices(self) -> tuple[Choice, ...]:
        """Each method at its better rate on dev."""
        return tuple(Choice(name, tuple(f"{name}-{rate:g}" for rate in rates), DEV, "lowest")
                     for name, (_, rates) in METHODS.items())

    def claims(self) -> tuple[Claim, ...]:
        """Against other ways to spend as many FLOPs, and what the saving costs."""
        return (
            Claim("better than LoRA", "at about the FLOPs of LoRA it needs fewer bits for the target", "lora", "green-67",
                  TARGET, "lower", 0.02, 0.06, 0.01, paper="up to 4 % better at equal FLOPs"),
            Claim("the choice matters", "it needs fewer bits than random tensors at equal FLOPs", "random-54", "green-54",
                  TARGET, "lower", 0.02, 0.06, 0.01),
            Claim("better than the last layer", "it needs fewer bits than the last layer at equal FLOPs", "last-one",
                  "green-54", TARGET, "lower", 0.02, 0.06, 0.01, main=False),
            Claim("better than the last two", "it needs fewer bits than the last two layers at equal FLOPs", "last-two",
                  "green-67", TARGET, "lower", 0.02, 0.06, 0.01, main=False),
            Claim("the saving costs", "at 0.54 of the FLOPs it needs more bits than full tuning", "full", "green-54", TARGET,
                  "higher", 0.02, 0.06, 0.01, paper="no loss at 0.36 to 0.5", main=False))
