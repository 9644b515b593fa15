"""Liu et al. 2021: a T5's encoder and one of its decoder layers, driven by learned queries, classify as well as the whole T5.

A tiny T5 has filled in hidden spans of invented reviews. It learns their sentiment, and which aspects they speak of (several
labels a review), as text or through heads: queries through the first decoder layer, copied or drawn anew, the mean of the
states, or the first of them; and queries on a T5 that has learned nothing. Rates are chosen on dev where an arm has several.
Writers say labels in words: what is no label counts as wrong, and is told apart in the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Choice, Claim, Guard, Measure, Paper, Scale

TEST, DEV = (Measure("label-match", on) for on in ("test", "dev"))
RATES = (3e-4, 1e-3, 3e-3)
HEADS: Mapping[str, dict[str, Any]] = {
    "queries": {}, "random-layer": {"init": "random"}, "mean": {"pooling": "mean"}, "first": {"pooling": "first"}}
SEVERAL = ("queries", "mean", "text")  # arms with several rates


class EncT5Study(Study, name="enct5", seeds=[135]):
    """Are queries through one decoder layer as good as writing the label?"""

    paper: ClassVar[Paper] = Paper(
        "EncT5: A Framework for Fine-tuning T5 as Non-autoregressive Models", "Liu et al. 2021, arXiv 2110.08426",
        "EncT5 matches T5 with fewer weights and faster, and beats BERT of like size; queries help with several labels.",
        "GLUE and EURLEX57K; real checkpoints, which are not tested here")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"test": 2, "dev": 1}, {
            "rows.texts": 6, "rows.train": 8, "rows.tests": 2, "base.width": 32, "base.layers": 1, "base.epochs": 1,
            "tuned.length": {"steps": 1}}, arms=("queries-0.001", "text-0.001"), about="every line, no evidence"),
        "default": Scale(3, {"test": 300, "dev": 150}),
        "large": Scale(5, {"test": 1000, "dev": 500}, {"rows.texts": 20_000, "rows.tests": 1000, "base.width": 256}),
    }

    def recipe(self) -> dict[str, Any]:
        """Reviews, a T5 that has read some, and labels learned."""
        return {"name": "enct5", "seed": 0, "steps": {
            "rows": {"use": "labelled-reviews"},
            "base": {"use": "pretrained", "kind": "encoder-decoder", "layers": 4, "epochs": 6, "learning_rate": 2e-3,
                     "inputs": {"examples": "rows"}},
            "tuned": {"use": "fit", "tasks": [_task({})], "method": "full", "length": {"epochs": 6}, "learning_rate": 1e-3,
                      "batch_rows": 32, "micro_tokens": 4096, "dtype": "float32", "max_tokens_per_example": 128,
                      "inputs": {"base": "base", "examples": "rows"}},
            "score": {"use": "evaluate", "arm": "tuned", "sets": ["test", "dev"], "metrics": ["label-match"],
                      "decoder": "greedy:max_new_tokens=12", "inputs": {"base": "base", "tuned": "tuned", "examples": "rows"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """Ways of saying one label at several rates, several labels, and a T5 that has read nothing."""
        tasks = {name: _task(head) for name, head in HEADS.items()} | {"text": _WRITTEN}
        one = {f"{name}-{rate:g}": {"tuned.tasks": [task], "tuned.learning_rate": rate}
               for name, task in tasks.items() for rate in (RATES if name in SEVERAL else RATES[1:2])}
        many = {f"{name}-aspects": {"rows.problem": "aspects", "tuned.tasks": [task]} for name, task in (
            ("queries", _task({}, "multi")), ("mean", _task({"pooling": "mean"}, "multi")), ("text", _WRITTEN))}
        return {**one, **many, "not-pretrained": {"base.epochs": 0.01}}

    def guards(self) -> tuple[Guard, ...]:
        """There is something to learn."""
        return (Guard("writing the label is learned: at least 0.6", TEST, ("text-0.001",), least=0.6),)

    def choices(self) -> tuple[Choice, ...]:
        """Each at its best rate on dev."""
        return tuple(Choice(name, tuple(f"{name}-{rate:g}" for rate in RATES), DEV) for name in SEVERAL)

    def claims(self) -> tuple[Claim, ...]:
        """Queries against text, and against simpler ways."""
        def above(left: str, right: str, says: str, smallest: float = 0.05, **rest: Any) -> Claim:
            return Claim(f"{right} above {left}", says, left, right, TEST, "higher", smallest, 0.5, 0.03, **rest)

        return (above("text", "queries", "a head that queries drive says more labels right than writing them",
                      paper="matches T5"),
                above("mean", "queries", "queries are better than the mean of the states", main=False),
                above("first-0.001", "queries", "queries are better than the first state", paper="T5 has no CLS", main=False),
                above("random-layer-0.001", "queries-0.001", "a copied decoder layer is better than one drawn anew",
                      main=False),
                above("not-pretrained", "queries-0.001", "what the T5 has read helps", main=False),
                above("mean-aspects", "queries-aspects", "a query a label helps where there are several", main=False),
                above("text-aspects", "queries-aspects", "so it does against writing them", main=False))


def _task(head: dict[str, Any], problem: str = "single") -> dict[str, Any]:
    return {"data": "examples.train", "objective": {"use": "classify", "problem": problem},
            "head": {"use": "enct5", "problem": problem, **head}}


_WRITTEN = {"data": "examples.train", "objective": "supervised"}
