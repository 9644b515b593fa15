"""Mitchell et al. 2023: a large base speaks in the manner of a small tuned model, and keeps what it knows.

Two tiny Llamas of one tokenizer have read the facts of an invented world, the large one long enough to know more of them.
Both learn a manner of answering from other facts. The large base is then asked with the small one's change added at every
token (up-scaled), with and without the filter, the reverse (down-scaled), with the change of another tuning (control), and
tuned itself (the bound). What is right and what is right in the manner is counted; GPT-4's judgement of help and truth,
mixtures of two manners and speed are not in this study.
In version 1 answers began with the manner, and tuning to it cost both models what they knew: the guards broke. Since version 2
the manner follows the fact, the rows are 340 and not 60, and each size has a rate of its own; set by a look at seed 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale

RIGHT, BOTH = Measure("recall-em", "facts"), Measure("exact-match", "styled")
WIDTHS = {"small": 24, "big": 128}
RATES = {"small": 2e-3, "big": 2e-4}


class EmulatedFineTuningStudy(Study, name="emulated-fine-tuning", seeds=[116], version=2):
    """Does a small model's tuning carry over to a large one at decoding?"""

    paper: ClassVar[Paper] = Paper(
        "An Emulator for Fine-Tuning Large Language Models using Small Language Models",
        "Mitchell et al. 2023, arXiv 2310.12962",
        "Scaling up pretraining improves what is true, scaling up tuning what helps; an up-scaled small tuning comes near the "
        "tuned large model without tuning it.", "Llama and Falcon judged by GPT-4; no number is remembered")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"facts": 4, "styled": 4}, {
            "facts.persons": 8, "facts.values": 2, "rows.train_rows": 4, "rows.test_rows": 4, "small.epochs": 1,
            "big.epochs": 1, "small.width": 16, "small.layers": 1, "big.width": 16, "big.layers": 1,
            "tuned.length": {"steps": 1}},
            arms=("small-tuned", "up-scaled"), about="every line, no evidence"),
        "default": Scale(3, {"facts": 150, "styled": 150}),
        "large": Scale(5, {"facts": 300, "styled": 300}, {"facts.persons": 300, "rows.test_rows": 300, "big.width": 192}),
    }

    def recipe(self) -> dict[str, Any]:
        """Facts, models of two sizes, the small one tuned, and its answers."""
        def model(name: str) -> dict[str, Any]:
            return {"use": "pretrained", "width": WIDTHS[name], "epochs": 30, "inputs": {"examples": "facts"}}

        return {"name": "emulated-fine-tuning", "seed": 0, "steps": {
            "facts": {"use": "facts-world", "untold_share": 0.1},
            "rows": {"use": "styled-facts", "train_rows": 340, "inputs": {"facts": "facts"}},
            "small": model("small"), "big": model("big"),
            "tuned": {"use": "fit", "method": "full", "learning_rate": RATES["small"], "length": {"epochs": 6},
                      "dtype": "float32", "inputs": {"base": "small", "examples": "rows"}},
            "score": {"use": "evaluate", "arm": "small-tuned", "sets": ["facts", "styled"],
                      "metrics": ["recall-em", "exact-match"], "decoder": "greedy:max_new_tokens=8",
                      "inputs": {"base": "small", "tuned": "tuned", "examples": "rows", "big": "big"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """Small tuned, large untuned, four emulations, and large tuned."""
        def emulated(more: str = "") -> dict[str, Any]:
            text = self.recipe()
            text["steps"]["score"]["decoder"] = f"emulate:max_new_tokens=8{more}"
            text["steps"]["score"]["inputs"]["small_base"] = "small"
            return text

        def turned(decoder: str) -> dict[str, Any]:
            """The large model tuned, and asked."""
            text = self.recipe()
            text["steps"]["tuned"]["learning_rate"] = RATES["big"]
            text["steps"]["tuned"]["inputs"]["base"] = "big"
            text["steps"]["score"] |= {"decoder": decoder, "inputs": {
                "base": "big", "tuned": "tuned", "examples": "rows", "big": "small", "small_base": "big"}}
            return text

        wrong = emulated()
        wrong["steps"]["tuned"]["tasks"] = [{"data": "examples.other"}]
        untuned = self.recipe()
        del untuned["steps"]["tuned"]
        untuned["steps"]["score"] |= {"shots": [4], "stops": ["newline"], "inputs": {"base": "big", "examples": "rows"}}
        return {"small-tuned": {}, "big-base": untuned, "up-scaled": emulated(), "filtered": emulated(",filter=nucleus,p=0.9"),
                "other-change": wrong, "down-scaled": turned("emulate:max_new_tokens=8"),
                "big-tuned": turned("greedy:max_new_tokens=8")}

    def guards(self) -> tuple[Guard, ...]:
        """Size knows more, and the manner can be learned."""
        return (Guard("the tuned large model is right at least 0.5 of the time", RIGHT, ("big-tuned",), least=0.5),
                Guard("the tuned small model at most 0.35 of the time: 15 points below", RIGHT, ("small-tuned",), most=0.35),
                Guard("the tuned large model is right in the manner at least 0.5 of the time", BOTH, ("big-tuned",), least=0.5))

    def claims(self) -> tuple[Claim, ...]:
        """Facts against the small tuned model, the manner against the large base, the control, and the bound."""
        return (
            Claim("knows more", "up-scaled it is right more often than the small tuned model", "small-tuned", "up-scaled",
                  RIGHT, "higher", 0.1, 0.5, 0.03, paper="pretraining scale gives truth"),
            Claim("in the manner", "up-scaled it is right in the manner more often than the large base with examples",
                  "big-base", "up-scaled", BOTH, "higher", 0.1, 0.5, 0.05, paper="tuning gives help"),
            Claim("by its own change", "it is right in the manner more often than with the change of another tuning",
                  "other-change", "up-scaled", BOTH, "higher", 0.1, 0.5, 0.03, main=False),
            Claim("the bound", "the tuned large model is right more often", "up-scaled", "big-tuned", RIGHT, "higher", 0.05,
                  0.4, 0.03, main=False),
            Claim("pretraining, not tuning", "up-scaled it is right more often than down-scaled", "down-scaled", "up-scaled",
                  RIGHT, "higher", 0.1, 0.5, 0.03, main=False),
            Claim("the filter", "with the filter it is right in the manner more often than without", "up-scaled", "filtered",
                  BOTH, "higher", 0.05, 0.4, 0.03, main=False))
