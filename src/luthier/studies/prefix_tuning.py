"""Li & Liang 2021: prefixes write well from records, best when they begin as activations, and carry over to new topics.

Gemma 3 270M learns to say records of invented places in two sentences from few rows: by full fine-tuning, LoRA, a
prefix made by an MLP from random numbers, and a prefix that begins as the model's own keys and values of a text about
the task. Each has two learning rates and stands for itself at the one that is better on dev. It is asked about further
records of the topics it learned, and about topics that were kept out, and about rows it learned from, which shows how
far each has come: there are few updates. chrF judges; BLEU, which the paper reports, stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Choice, Claim, Guard, Measure, Paper, Scale, without

SEEN, UNSEEN, FITTED, DEV = (Measure("chrf", on) for on in ("seen", "unseen", "fitted", "dev"))
WORDS_SEEN, WORDS_UNSEEN = (Measure("bleu", on) for on in ("seen", "unseen"))
TEXT = "Say what the table tells about the place in two sentences:"
METHODS: Mapping[str, tuple[str, tuple[float, float]]] = {
    "full": ("full", (3e-5, 1e-4)),
    "lora": ("lora", (3e-4, 1e-3)),
    "random": ("prefix-tuning:tokens=10,mlp_hidden=512", (1e-3, 5e-3)),
    "activations": (f"prefix-tuning:{{tokens: 10, text: '{TEXT}'}}", (3e-3, 1e-2)),
}


def _arms(method: str) -> tuple[str, ...]:
    return tuple(f"{method}-{rate:g}" for rate in METHODS[method][1])


class PrefixTuningStudy(Study, name="prefix-tuning", seeds=[86]):
    """Does a prefix that begins as activations learn better, and carry over better than full tuning?"""

    world: ClassVar[str] = "a real model (Gemma 3 270M) on invented records"
    paper: ClassVar[Paper] = Paper(
        "Prefix-Tuning: Optimizing Continuous Prompts for Generation", "Li & Liang 2021, arXiv 2101.00190",
        "Prefixes equal full tuning with 0.1 % of the weights, and are better with little data and on unseen topics.",
        "GPT-2 medium, BLEU: E2E 69.7 against 68.2 (full); WebNLG unseen 45.6 against 27.7, seen 62.9 against 64.2")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"seen": 2, "unseen": 2, "fitted": 2, "dev": 1}, {
            "base.model": "pico", "world.train_rows": 4, "world.dev_rows": 1, "world.test_rows": 2,
            "tuned.length": {"steps": 1}, "score.decoder.max_new_tokens": 2},
            arms=("base", "full-3e-05", "random-0.001", "activations-0.003"), about="every line, no evidence"),
        "default": Scale(2, {"seen": 40, "unseen": 40, "fitted": 40, "dev": 12}),
        "large": Scale(3, {"seen": 150, "unseen": 150, "fitted": 150, "dev": 40}, {
            "world.train_rows": 500, "world.dev_rows": 40, "world.test_rows": 150, "tuned.length": {"epochs": 5}}),
    }

    def recipe(self) -> dict[str, Any]:
        """Records, a model that learns to say them, and what it says."""
        return {"name": "prefix-tuning", "seed": 0, "steps": {
            "base": {"use": "base", "model": "gemma3-270m"},
            "world": {"use": "records"},
            "tuned": {"use": "fit", "tasks": [{"data": "examples.train"}], "method": "full", "learning_rate": 1e-4,
                      "length": {"epochs": 2}, "batch_rows": 8, "inputs": {"base": "base", "examples": "world"}},
            "score": {"use": "evaluate", "arm": "tuned", "sets": ["seen", "unseen", "fitted", "dev"],
                      "metrics": ["chrf", "bleu"], "stops": ["newline"], "decoder": "greedy:max_new_tokens=48",
                      "inputs": {"base": "base", "tuned": "tuned", "examples": "world"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """Methods x learning rates, and the base with four solved records."""
        tuned = {f"{name}-{rate:g}": {"tuned.method": method, "tuned.learning_rate": rate}
                 for name, (method, rates) in METHODS.items() for rate in rates}
        return {"base": without(self.recipe(), "tuned", score__shots=[4]), **tuned}

    def guards(self) -> tuple[Guard, ...]:
        """There is something to learn, and it is learned: chrF of rows that were trained on stands for the training loss."""
        return (Guard("full tuning learns the rows: chrF of at least 0.5 on rows it has seen", FITTED, ("full-0.0001",),
                      least=0.5),)

    def choices(self) -> tuple[Choice, ...]:
        """Each method at the rate that is better on dev."""
        return tuple(Choice(name, _arms(name), DEV) for name in METHODS)

    def claims(self) -> tuple[Claim, ...]:
        """Where a prefix begins, and what carries over to new topics."""
        return (
            Claim("activations", "a prefix that begins as activations says known topics better than one from an MLP",
                  "random", "activations", SEEN, "higher", 0.03, 0.12, 0.02, paper="far better and steadier with little data"),
            Claim("new topics", "on topics that were kept out the prefix is better than full tuning",
                  "full", "activations", UNSEEN, "higher", 0.03, 0.12, 0.02, paper="WebNLG unseen 45.6 against 27.7"),
            Claim("known topics", "on known topics the prefix is worse than full tuning", "full", "activations", SEEN, "lower",
                  0.03, 0.12, 0.02, paper="WebNLG seen 62.9 against 64.2", main=False),
            Claim("against LoRA", "on topics that were kept out the prefix is better than LoRA",
                  "lora", "activations", UNSEEN, "higher", 0.03, 0.12, 0.02, main=False),
            Claim("fitted", "the prefix from an MLP has come less far on the rows it learned from",
                  "activations", "random", FITTED, "lower", 0.03, 0.12, 0.02, main=False),
            Claim("activations, by BLEU", "so it does by words", "random", "activations", WORDS_SEEN, "higher", 0.03, 0.15,
                  0.02, main=False),
            Claim("new topics, by BLEU", "so it is by words", "full", "activations", WORDS_UNSEEN, "higher", 0.03, 0.15, 0.02,
                  paper="WebNLG unseen 45.6 against 27.7", main=False))
