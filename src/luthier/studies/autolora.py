"""Zhang et al. 2024: ranks that a search finds for each layer do better than the same number of ranks spread evenly.

MiniLM learns the sentiment of invented reviews, most of which say good and bad, from 400 of them. A search of 75 steps (less
the tenth that AutoLoRA keeps for its own end) finds ranks for queries and values of six layers; then LoRA is trained for 75
steps on all rows with these ranks, with as many spread evenly, with as many dealt by chance, with those of a search in which
the selection learns from the rows that the weights see, and with the largest rank everywhere. All have one rate. Beside these,
each search is done twice, to see whether it says the same again. The pair that tells most is found against dealt by chance.
Where the selection hardly moved its ranks are noise, and a guard says so. AdaLoRA is no arm: PEFT's needs its own hook in the
loop and a term of the loss that its model adds itself, and without these it prunes nothing. Settings were written down before
the first run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale, without
from luthier.studies._worlds._sorting import RIGHT, smoke, sorting_recipe

STEPS, RATE, K0 = 75, 3e-3, 8
LEAD, AGREE = Measure("lead", "matrices", "ranks"), Measure("agreement", "pairs", "ranks")
LAYERS = 12  # queries and values of six layers


class AutoLoraStudy(Study, name="autolora", seeds=[94]):
    """Are ranks that a search finds better than as many ranks laid elsewhere?"""

    world: ClassVar[str] = "real model (MiniLM) on invented reviews"
    paper: ClassVar[Paper] = Paper(
        "AutoLoRA: Automatically Tuning Matrix Ranks in Low-Rank Adaptation Based on Meta Learning",
        "Zhang, Qiang, Somayajula, Xie 2024, arXiv 2403.09113",
        "Ranks found by bilevel search do better than LoRA with one rank and than AdaLoRA.",
        "GLUE, E2E, WebNLG, BioNLP; about half a point to a point on GLUE")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": smoke(1, ("found", "even"), {"matrices": 4, "pairs": 3},
                       **{"search.length": {"steps": 2}, "again.length": {"steps": 2}, "search.max_tokens_per_example": 16,
                          "again.max_tokens_per_example": 16, "search.method.search_share": 0.5,
                          "again.method.search_share": 0.5}),
        "default": Scale(3, {"test": 400, "matrices": LAYERS, "pairs": LAYERS - 1}),
        "large": Scale(5, {"test": 1600, "matrices": LAYERS, "pairs": LAYERS - 1}, {
            "texts.tests": 1600, "texts.train": 1600, "tuned.length": {"steps": 300}, "search.length": {"steps": 300},
            "again.length": {"steps": 300}}),
    }

    def recipe(self) -> dict[str, Any]:
        """Reviews to sort; two searches, what they said, and a training with the ranks of the first."""
        text = sorting_recipe("autolora", STEPS, problem="sentiment", train=400, dev=40)
        steps = text["steps"]
        tuned = steps["tuned"] | {"learning_rate": RATE}
        searching = {**tuned, "method": {"use": "autolora", "k0": K0, "search_share": 0.9}}
        inputs = dict(tuned["inputs"])
        return {**text, "steps": {
            "base": steps["base"], "texts": steps["texts"], "search": searching, "again": {**searching, "inputs": inputs},
            "ranks": {"use": "found-ranks", "inputs": {"search": "search", "again": "again"}},
            "tuned": {**tuned, "method": "ranked-lora:of=search", "inputs": {**inputs, "search": "search"}},
            "score": steps["score"]}}

    def arms(self) -> dict[str, dict[str, Any]]:
        """As found, on one level, evenly, by chance, and the largest rank everywhere."""
        def after(method: str) -> dict[str, Any]:
            return without(without(self.recipe(), "ranks"), "again", tuned__method=method)

        return {"found": {}, "one-level": {"search.method.control": True, "again.method.control": True},
                **{how: after(f"ranked-lora:of=search,how={how}") for how in ("even", "random")},
                "largest": without(after(f"ranked-lora:rank={K0}"), "search")}

    def guards(self) -> tuple[Guard, ...]:
        """The selection moved, and reviews are sorted."""
        return (Guard("the selection has moved: its highest values are at least 0.01 above where all began", LEAD,
                      ("found", "one-level"), least=0.01),
                Guard("sentiment is learned: at least 0.65 right", RIGHT, ("largest",), least=0.65))

    def claims(self) -> tuple[Claim, ...]:
        """Against chance, against one rank, against one level and against all ranks; the search against itself."""
        def above(name: str, says: str, left: str, right: str, **rest: Any) -> Claim:
            return Claim(name, says, left, right, RIGHT, "higher", 0.03, 0.35, 0.015, **rest)

        return (
            above("than chance", "ranks that were found sort more right than as many dealt by chance", "random", "found"),
            above("than one rank", "ranks that were found sort more right than as many spread evenly", "even", "found",
                  paper="half a point to a point on GLUE"),
            above("two levels", "ranks chosen on held-out rows sort more right than those chosen on the rows that are learned",
                  "one-level", "found", main=False),
            above("more weights", "the largest rank everywhere sorts more right than the ranks that were found", "found",
                  "largest", main=False),
            Claim("says the same", "two searches on held-out rows agree more than two on one level", "one-level", "found",
                  AGREE, "higher", 0.2, 0.8, 0.15, main=False))
