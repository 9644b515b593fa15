"""Wortsman et al. 2022: the average of many fine-tuned models is better than the best of them, and costs no more.

MiniLM learns the sentiment of invented reviews of films and hotels ten times over, from one linear probe, with other rates,
lengths, weight decays and orders; two of the rates are high on purpose. What is made of the ten is chosen on half of a pool
of reviews and tested on the other half, in three divisions, and on short sentences about meals and tools. Two further runs
begin from random heads of their own: the negative control. A row is the unit, the ten runs are given: nothing is said of other
tens. Settings were set beforehand, from what such encoders are tuned with. Every run draws under its own name. Version 2 says
so, where version 1 wrote seeds that nothing read; what is run is the same.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale
from luthier.studies._worlds._soups import probe, tune

TEST, STRANGE, ORDER = Measure("accuracy"), Measure("accuracy", "strange"), Measure("agreement", "points")
# Learning rate, epochs, weight decay.
RUNS: tuple[tuple[float, int, float], ...] = (
    (1e-5, 3, 0.0), (1e-5, 6, 0.1), (3e-5, 2, 0.0), (3e-5, 4, 0.1), (5e-5, 3, 0.0), (5e-5, 6, 0.0), (1e-4, 2, 0.1),
    (1e-4, 4, 0.0), (3e-4, 3, 0.0), (3e-4, 6, 0.1))


class ModelSoupStudy(Study, name="model-soup", seeds=[44], version=2):
    """Is a soup of tunes better than the best of them?"""

    world: ClassVar[str] = "real model (MiniLM) on invented reviews"
    paper: ClassVar[Paper] = Paper(
        "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference time",
        "Wortsman et al. 2022, arXiv 2203.05482",
        "The greedy soup of models tuned with other hyperparameters is more accurate than the best of them, more so under "
        "distribution shift, at the cost of one model.",
        "CLIP ViT-B/32 on ImageNet: best single 80.38, greedy soup 81.03; ViT-G 90.94")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"test": 2, "strange": 2}, {
            "base.model": "pico-encoder", "reviews.train": 4, "reviews.pool": 4, "reviews.strange": 2, "score.splits": 1,
            "score.pairs": 1, "probe.length": {"steps": 1},
            **{f"run{n}.{field}": value for n in range(2) for field, value in
               (("length", {"steps": 1}), ("max_tokens_per_example", 16))}},
            arms=("best-of-2", "greedy-of-2"), about="every line, no evidence"),
        "default": Scale(1, {"test": 120, "strange": 48, "points": 15}),
        "large": Scale(1, {"test": 500, "strange": 48, "points": 45}, {
            "reviews.train": 1000, "reviews.pool": 1000, "reviews.strange": 144, "score.pairs": 9},
            about="with 1000 reviews to learn from"),
    }

    def recipe(self) -> dict[str, Any]:
        """Reviews, a linear probe, ten runs from it, and what is made of them."""
        runs = {f"run{n}": tune(*settings) for n, settings in enumerate(RUNS)}
        return {"name": "model-soup", "seed": 0, "steps": {
            "base": {"use": "base", "model": "minilm"},
            "reviews": {"use": "short-reviews"},
            "probe": probe(), **runs,
            "score": {"use": "souped", "inputs": {"base": "base", "examples": "reviews", **{n: n for n in runs}}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """The best run, soups and the ensemble; of two runs alone; the theory beside chance; random heads, and their soup."""
        hows = ("best", "uniform", "greedy", "learned", "ensemble", "theory", "chance")
        made: dict[str, Any] = {how: {"score.how": how} for how in hows}
        for how in ("best", "greedy"):
            text = self.recipe()
            for n in range(2, len(RUNS)):
                del text["steps"][f"run{n}"], text["steps"]["score"]["inputs"][f"run{n}"]
            text["steps"]["score"]["how"] = how
            made[f"{how}-of-2"] = text
        return {**made, "heads-apart": self._apart("best"), "heads-apart-soup": self._apart("uniform")}

    def _apart(self, how: str) -> dict[str, Any]:
        text = copy.deepcopy(self.recipe())
        steps = {n: s for n, s in text["steps"].items() if n in ("base", "reviews")}
        runs = {f"apart{n}": tune(1e-4, 4, 0.0, probed=False) for n in range(2)}
        score = {**text["steps"]["score"], "how": how,
                 "inputs": {"base": "base", "examples": "reviews", **{n: n for n in runs}}}
        return {**text, "steps": {**steps, **runs, "score": score}}

    def guards(self) -> tuple[Guard, ...]:
        """Something is learned, and something is left to be won."""
        return (Guard("the best run has learned: at least 0.7 right", TEST, ("best",), least=0.7),
                Guard("short sentences are not all right: at most 0.98", STRANGE, ("best",), most=0.98))

    def claims(self) -> tuple[Claim, ...]:
        """Greedy against the best under shift and at home; uniform, learned, ensemble; random heads; the theory."""
        return (
            Claim("better under shift", "on short sentences the greedy soup is right more often than the best run", "best",
                  "greedy", STRANGE, "higher", 0.03, 0.25, paper="larger gains under distribution shift"),
            Claim("better at home", "the greedy soup is right more often than the best run", "best", "greedy", TEST, "higher",
                  0.01, 0.2, paper="80.38 to 81.03", main=False),
            Claim("uniform is hurt", "with high rates among them the uniform soup is right less often than the greedy one",
                  "greedy", "uniform", TEST, "lower", 0.01, 0.25, main=False),
            Claim("learned", "the learned soup is right more often than the best run on short sentences", "best", "learned",
                  STRANGE, "higher", 0.03, 0.25, main=False),
            Claim("ensemble", "the ensemble is right more often than the best run on short sentences", "best", "ensemble",
                  STRANGE, "higher", 0.03, 0.25, main=False),
            Claim("of two", "of the first two runs alone the greedy soup is right more often on short sentences than the "
                  "better one", "best-of-2", "greedy-of-2", STRANGE, "higher", 0.03, 0.25, main=False),
            Claim("heads apart", "of two runs from random heads of their own the average is worse than the better one",
                  "heads-apart", "heads-apart-soup", TEST, "lower", 0.02, 0.3, main=False),
            Claim("theory", "the approximation orders soups by what they lose against ensembles better than chance", "chance",
                  "theory", ORDER, "higher", 0.25, 0.6, paper="the approximation follows the truth", main=False))
