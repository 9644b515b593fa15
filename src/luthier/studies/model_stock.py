"""Jang et al. 2024: two tunes and the base they came from do the work of an average of dozens.

MiniLM learns the sentiment of invented reviews of films and hotels six times over, from one linear probe, with six orders and
dropouts and no other difference. In six divisions of a pool, with a pair of neighbours each (all fifteen pairs at large), the
pair's stock is compared with its average, with the best of the six, with half a tune and half the base, and with soups of all
six: on the other half, and on short sentences about meals and tools. The base's head is the probe's.

Premises are looked at first: lengths of changes are guarded, and angles are compared within tensors and between them. That the
cosine of two changes is |m - W_0|² / |d|² is not: with the mean of the six as m it holds by algebra but for (1 - cosine) / 6.
What can fail is that the stock lies nearer than the average to the mean of the four others. A row or a tensor is the unit, the
six runs are given. Periodic stocks, which go on from what was merged, are not there. Settings were set beforehand.
Version 2 leaves out seeds of runs that nothing read; what is run is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale
from luthier.studies._worlds._soups import probe, tune

TEST, STRANGE = Measure("accuracy"), Measure("accuracy", "strange")
DISTANCE, T = Measure("distance", "tensors"), Measure("t", "tensors")
HOWS = ("best", "single", "average", "stock", "wise", "uniform", "greedy", "premises")
RUNS = 6


class ModelStockStudy(Study, name="model-stock", seeds=[29], version=2):
    """Are two tunes and their base as good as a soup of many?"""

    world: ClassVar[str] = "real model (MiniLM) on invented reviews"
    paper: ClassVar[Paper] = Paper(
        "Model Stock: All we need is just a few fine-tuned models", "Jang, Yun, Han 2024, arXiv 2403.19522",
        "Tunes lie on a thin shell around a centre, and the point nearest to it on the plane of two of them and the base is as "
        "good as soups of dozens, at home and under shift.",
        "CLIP ViT-B/32 about on par with soups of 48 at 1/24 of the cost; ViT-L/14: 87.8 on ImageNet, 74.9 over five shifts")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"test": 2, "strange": 2, "tensors": 1, "within": 1, "between": 1}, {
            "base.model": "pico-encoder", "reviews.train": 4, "reviews.pool": 4, "reviews.strange": 2, "score.splits": 1,
            "probe.length": {"steps": 1},
            **{f"run{n}.{field}": value for n in range(RUNS) for field, value in
               (("length", {"steps": 1}), ("max_tokens_per_example", 16))}},
            arms=("average", "stock", "premises"), about="every line, no evidence"),
        "default": Scale(1, {"test": 120, "strange": 48, **dict.fromkeys(("tensors", "within", "between"), 90)}),
        "large": Scale(1, {"test": 500, "strange": 48, **dict.fromkeys(("tensors", "within", "between"), 90)}, {
            "reviews.train": 1000, "reviews.pool": 1000, "reviews.strange": 144, "score.splits": RUNS * (RUNS - 1) // 2},
            about="all pairs, with 1000 reviews to learn from"),
    }

    def recipe(self) -> dict[str, Any]:
        """Reviews, a linear probe, six runs from it, and what is made of them."""
        runs = {f"run{n}": tune(5e-5, 4, 0.0) for n in range(RUNS)}
        return {"name": "model-stock", "seed": 0, "steps": {
            "base": {"use": "base", "model": "minilm"},
            "reviews": {"use": "short-reviews"},
            "probe": probe(), **runs,
            "score": {"use": "stocked", "inputs": {"base": "base", "examples": "reviews", "probe": "probe",
                                                   **{n: n for n in runs}}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """One tune, two, two and the base, one and the base, all six; and how they lie."""
        return {how: {"score.how": how} for how in HOWS}

    def guards(self) -> tuple[Guard, ...]:
        """Something is learned, something is left, tunes lie on a shell, and a stock is no average."""
        return (Guard("a run has learned: at least 0.7 right", TEST, ("single",), least=0.7),
                Guard("short sentences are not all right: at most 0.98", STRANGE, ("single",), most=0.98),
                Guard("changes are about equally long: at most 0.2 from their mean", Measure("share", "lengths"),
                      ("premises",), most=0.2),
                Guard("the base has a share in a stock: t of at most 0.95", T, ("stock",), most=0.95))

    def claims(self) -> tuple[Claim, ...]:
        """Nearer to the centre; better under shift than one and than the average; against soups of six; the premise."""
        return (
            Claim("nearer to the centre", "the stock of two lies nearer to the mean of the other tunes than their average does",
                  "average", "stock", DISTANCE, "lower", 0.02, 0.1, paper="the foot of the perpendicular from the centre"),
            Claim("better under shift", "on short sentences the stock of two is right more often than the best run", "best",
                  "stock", STRANGE, "higher", 0.03, 0.2, paper="more robust than any single tune"),
            Claim("than the average", "on short sentences the stock of two is right more often than their average", "average",
                  "stock", STRANGE, "higher", 0.03, 0.15),
            Claim("than the greedy soup", "on short sentences the stock of two is right more often than the greedy soup of six",
                  "greedy", "stock", STRANGE, "higher", 0.03, 0.2, paper="about on par with soups of 48", main=False),
            Claim("than the uniform soup", "on short sentences the stock of two is right more often than the mean of six",
                  "uniform", "stock", STRANGE, "higher", 0.03, 0.2, main=False),
            Claim("than one and the base", "on short sentences the stock of two is right more often than one tune halfway to "
                  "the base", "wise", "stock", STRANGE, "higher", 0.03, 0.2, main=False),
            Claim("better at home", "the stock of two is right more often than the best run", "best", "stock", TEST, "higher",
                  0.01, 0.2, paper="on par with many-model soups", main=False),
            Claim("cost at home", "the stock of two is right less often than their average: not expected", "average", "stock",
                  TEST, "lower", 0.01, 0.15, main=False),
            Claim("two are better than one", "on short sentences the average of two is right more often than one", "single",
                  "average", STRANGE, "higher", 0.03, 0.2, main=False),
            Claim("angles belong to tensors", "a pair's angle differs less from its tensor's than tensors differ", "premises",
                  "premises", Measure("degrees", "within"), "lower", 1.0, 5.0, left_measure=Measure("degrees", "between"),
                  paper="the angle of a layer is nearly constant over seeds", main=False))
