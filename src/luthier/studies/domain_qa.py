"""Sharma et al. 2024: a retriever that is tuned on what users clicked finds better, and answers gain from it.

Users search bulletins in words of their own, which no bulletin holds, and click the right page and, in a share of all
pairs, a page that the untuned encoder had put first. MiniLM learns from the clicks with equal weights, with weights from
counts, and with counts dealt anew within each query (control), for equally many steps. It is asked for pages that nobody
clicked; search is by meaning alone. Answers are those of Gemma 3 270M with the first three passages of each retriever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale

FOUND, AMONG = Measure("ndcg", step="found"), Measure("recall", step="found")
SAID = Measure("recall-em", "answered")


class DomainQa(Study, name="domain-qa", seeds=[1]):
    """Does a retriever tuned on clicks find better, and do the weights of clicks matter?"""

    world: ClassVar[str] = "real models (MiniLM, Gemma 3 270M) on invented pages and clicks"
    paper: ClassVar[Paper] = Paper(
        "Retrieval Augmented Generation for Domain-specific Question Answering", "Sharma et al. 2024, arXiv 2404.14760",
        "A small retriever tuned on graded clicks beats larger generic encoders, and better passages give better answers.",
        "no number is remembered; nDCG of a tuned retriever above those of generic ones on product help")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"test": 4, "answered": 4}, {
            "encoder.model": "pico-encoder", "base.model": "pico", "pages.states": 2, "pages.crops": 4, "clicks.states": 2,
            "clicks.crops": 4, "clicks.tested": 4, "tuned.length": {"steps": 1}, "score.decoder.max_new_tokens": 1},
            arms=("as-is", "weighted"), about="every line, no evidence"),
        "default": Scale(3, {"test": 40, "answered": 40}),
        "large": Scale(5, {"test": 150, "answered": 150}, {
            "pages.states": 30, "clicks.states": 30, "clicks.tested": 150, "tuned.length": {"epochs": 3}}),
    }

    def recipe(self) -> dict[str, Any]:
        """Pages, clicks on them, an encoder that has learned from these, and what it finds."""
        return self._recipe("tuned-encoder")

    def _recipe(self, finds: str) -> dict[str, Any]:
        found = {"examples": "clicks", "index": "found-index", "encoder": finds}
        learned: dict[str, Any] = {} if finds == "encoder" else {
            "tuned": {"use": "fit", "tasks": [{"data": "clicks.train", "objective": "weighted-contrastive"}], "method": "full",
                      "learning_rate": 1e-4, "schedule": "constant", "length": {"epochs": 2}, "batch_rows": 32,
                      "micro_rows": 16, "dtype": "float32", "inputs": {"base": "encoder", "clicks": "clicks"}},
            "tuned-encoder": {"use": "whole-model", "inputs": {"base": "encoder", "tuned": "tuned"}}}
        return {"name": "domain-qa", "seed": 0, "steps": {
            "base": {"use": "base", "model": "gemma3-270m"},
            # Whoever evaluates a retriever has it answer; one token of a model with random weights costs least.
            "nobody": {"use": "base", "model": "pico"},
            "encoder": {"use": "base", "model": "minilm"},
            "pages": {"use": "bulletins"},
            "clicks": {"use": "bulletin-clicks", "tested": 40, "inputs": {"documents": "pages", "encoder": "encoder"}},
            **learned,
            "found-index": {"use": "index", "retriever": "hybrid:text=false",
                            "inputs": {"documents": "pages", "encoder": finds}},
            "found": {"use": "evaluate", "arm": "found", "sets": ["test"], "passages": 1, "decoder": "greedy:max_new_tokens=1",
                      "metrics": ["ndcg:k=4", "recall:k=4"], "inputs": {"base": "nobody", **found}},
            "score": {"use": "evaluate", "arm": "said", "sets": ["answered"], "passages": 3, "stops": ["newline"],
                      "decoder": "greedy:max_new_tokens=12", "metrics": ["recall-em"], "inputs": {"base": "base", **found}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """The encoder as it is; equal weights, weights from counts, and weights without meaning."""
        return {"as-is": self._recipe("encoder"), "unweighted": {"clicks.reader.weighting": "binary"}, "weighted": {},
                "permuted": {"clicks.permuted": True}}

    def guards(self) -> tuple[Guard, ...]:
        """There is something to learn: the encoder does not know the users' words."""
        return (Guard("the users' words are new to the encoder: nDCG of at most 0.7", FOUND, ("as-is",), most=0.7),)

    def claims(self) -> tuple[Claim, ...]:
        """Tuning, what the weights add, and whether answers gain."""
        return (
            Claim("tuning finds better", "tuned on weighted clicks, the encoder ranks pages better than as it is", "as-is",
                  "weighted", FOUND, "higher", 0.05, 0.4, 0.02, paper="tuned above larger generic encoders"),
            Claim("weights matter", "weights from counts rank better than the same weights dealt anew", "permuted", "weighted",
                  FOUND, "higher", 0.03, 0.25, 0.02, paper="relevance graded by behaviour", main=False),
            Claim("weights help", "weights from counts rank better than equal ones", "unweighted", "weighted", FOUND, "higher",
                  0.03, 0.25, 0.02, main=False),
            Claim("among four", "the right page is among the first four more often", "as-is", "weighted", AMONG, "higher",
                  0.05, 0.4, 0.02, main=False),
            Claim("answers gain", "with the tuned encoder's passages more answers hold the fact", "as-is", "weighted", SAID,
                  "higher", 0.05, 0.5, 0.02, paper="gains carry over to answers", main=False))
