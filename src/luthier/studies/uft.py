"""Wang et al. 2024: demonstrations and feedback in one training keep what one after the other loses.

A tiny Llama that knows an invented world learns a form of answers from 80 demonstrations and truth from 80 rated answers to
other questions (`rated-facts`): by supervised tuning on the demonstrations, by UFT on these alone, by UFT on both, and
by supervised tuning followed by DPO or UNA on the feedback. All but the first stage of the last two are LoRA of rank 8 for
as many rows; beta is 0.1, since with answers of a few tokens the paper's 0.01 stays in the middle of the sigmoid (arm
`uft-0.01`). Each arm has two rates and stands for itself at the one that is better on the form of other facts. Form and truth
are read from likelihoods per token, so that length does not decide. Nothing was settled by a trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Choice, Claim, Guard, Measure, Paper, Scale, without

FORM, TRUTH, DEV = (Measure("preference-accuracy", on) for on in ("form", "truth", "form-dev"))
RATES = (3e-4, 1e-3)
TASKS: Mapping[str, Mapping[str, Any]] = {
    "sft": {"data": "examples.demos", "objective": "supervised"},
    "uft-demos": {"data": "examples.demos", "objective": "uft:beta=0.1"},
    "uft": {"data": "examples.mixed", "objective": "uft:beta=0.1"},
    "uft-0.01": {"data": "examples.mixed", "objective": "uft:beta=0.01"},
    "sft-dpo": {"data": "examples.pairs", "objective": "dpo:beta=0.1"},
    "sft-una": {"data": "examples.feedback", "objective": "una:beta=0.1"}}
STEPS = {"sft": 80, "uft-demos": 80, "uft": 160, "uft-0.01": 160, "sft-dpo": 80, "sft-una": 80}


class UftStudy(Study, name="uft", seeds=[90]):
    """Does one training on demonstrations and feedback keep what two in a row lose?"""

    paper: ClassVar[Paper] = Paper(
        "UFT: Unifying Fine-Tuning of SFT and RLHF/DPO/UNA through a Generalized Implicit Reward Function",
        "Wang, Bi, Zhu et al. 2024, arXiv 2410.21438",
        "Trained on both at once a model follows instructions better than after one stage and then the other.",
        "Mistral-7B: IFEval 46.0 (UFT), 25 to 27 (in a row), 29.5 (SFT); TruthfulQA 54.1 against 47.8 to 49.7")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"form": 3, "truth": 3, "form-dev": 2}, {
            "facts.persons": 24, "facts.values": 4, "base.width": 16, "base.layers": 1, "base.epochs": 1, "rows.rows": 6,
            "rows.tested": 3, "rows.dev_facts": 2, "rows.least_mentions": 1, "first.epochs": 1, "tuned.length": {"steps": 1}},
            arms=("base", "uft-0.001", "sft-una-0.001"), about="every line, no evidence"),
        "default": Scale(3, {"form": 60, "truth": 60, "form-dev": 20}),
        "large": Scale(5, {"form": 150, "truth": 150, "form-dev": 20}, {
            "facts.persons": 400, "base.width": 192, "rows.rows": 160, "rows.tested": 150}),
    }

    def recipe(self) -> dict[str, Any]:
        """A base that knows facts, tuned, and weighed."""
        return {"name": "uft", "seed": 0, "steps": {
            "facts": {"use": "facts-world"},
            "base": {"use": "pretrained", "inputs": {"examples": "facts"}},
            "rows": {"use": "rated-facts", "inputs": {"facts": "facts"}},
            "tuned": {"use": "fit", "tasks": [TASKS["uft"]], "method": "lora:rank=8", "schedule": "constant",
                      "dtype": "float32", "batch_rows": 8, "length": {"steps": 160},
                      "inputs": {"base": "base", "examples": "rows"}},
            "score": {"use": "evaluate", "arm": "tuned", "sets": ["form", "truth", "form-dev"],
                      "metrics": ["preference-accuracy"], "inputs": {"base": "base", "tuned": "tuned", "examples": "rows"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """The base; each way of tuning at two rates."""
        found: dict[str, dict[str, Any]] = {"base": without(self.recipe(), "tuned")}
        for name, task in TASKS.items():
            for rate in RATES:
                text = self.recipe()
                text["steps"]["tuned"] |= {"tasks": [dict(task)], "learning_rate": rate, "length": {"steps": STEPS[name]}}
                if name.startswith("sft-"):
                    text["steps"]["first"] = {"use": "guarded-model", "data": "examples.demos", "batch_rows": 8, "epochs": 8,
                                              "learning_rate": 3e-4, "inputs": {"base": "base", "examples": "rows"}}
                    for step in ("tuned", "score"):
                        text["steps"][step]["inputs"]["base"] = "first"
                found[f"{name}-{rate:g}"] = text
        return found

    def guards(self) -> tuple[Guard, ...]:
        """The form is new, and can be learned."""
        return (Guard("the form is new to the base: preferred in at most 0.5", FORM, ("base",), most=0.5),
                Guard("supervised tuning teaches it: at least 0.8", FORM, ("sft-0.001",), least=0.8))

    def choices(self) -> tuple[Choice, ...]:
        """The rate that is better on form-dev, for every arm."""
        return tuple(Choice(name, tuple(f"{name}-{rate:g}" for rate in RATES), DEV) for name in TASKS)

    def claims(self) -> tuple[Claim, ...]:
        """Truth at equal form, against each order; form against the sequences; demonstrations alone; the paper's beta."""
        return (
            Claim("truer than supervised", "after UFT on both the right answer is preferred more often than after supervised "
                  "tuning", "sft", "uft", TRUTH, "higher", 0.05, 0.4, 0.05, paper="TruthfulQA 54.1"),
            Claim("keeps the form", "the form is preferred more often after UFT on both than after supervised tuning and UNA",
                  "sft-una", "uft", FORM, "higher", 0.05, 0.4, 0.05, paper="IFEval 46.0 against 25 to 27"),
            Claim("than DPO in a row", "the form is preferred more often after UFT on both than after supervised tuning and "
                  "DPO", "sft-dpo", "uft", FORM, "higher", 0.05, 0.4, 0.05, main=False),
            Claim("truer than in a row", "the right answer is preferred more often after UFT on both than after supervised "
                  "tuning and UNA", "sft-una", "uft", TRUTH, "higher", 0.05, 0.4, 0.05, paper="54.1 against 47.8 to 49.7",
                  main=False),
            Claim("less drift", "UFT on demonstrations alone leaves the right answer preferred more often than supervised "
                  "tuning", "sft", "uft-demos", TRUTH, "higher", 0.05, 0.3, 0.05, main=False),
            Claim("a small beta", "with the paper's beta of 0.01 the form is preferred less often", "uft", "uft-0.01", FORM,
                  "lower", 0.05, 0.4, 0.05, main=False))
