"""Mohammadshahi et al. 2023: a question is judged better by the answer that it leads to than by its words.

Gemma 3 270M learns to answer questions beside their passage, and MiniLM to rate an answer beside the intended one, both on
invented bulletins. RQUGE, ROUGE-L, word F1 and the cosine of MiniLM then put questions in the right order or not: a question
in other words above questions about another fact of the same passage (`fact`), or about another section (`section`). The latter
is hard by design, since a reader that is shown one passage answers from it. No person rated anything here, and the training of
a reader on re-ranked questions is not tried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale, without

FACT, SECTION = (Measure("ranks-right", on) for on in ("fact", "section"))


class RqugeStudy(Study, name="rquge", seeds=[106]):
    """Does answering a question judge it better than comparing its words does?"""

    world: ClassVar[str] = "real models (Gemma 3 270M, MiniLM) on invented bulletins"
    paper: ClassVar[Paper] = Paper(
        "RQUGE: Reference-Free Metric for Evaluating Question Generation by Answering the Question",
        "Mohammadshahi et al. 2023, arXiv 2211.01482",
        "Rating the answer that a question leads to agrees better with people than metrics that compare words with a "
        "reference, and is not misled by other words.",
        "no number is remembered; correlations with human ratings, which there are none of here")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"fact": 3, "section": 3}, {
            "base.model": "pico", "encoder.model": "pico-encoder", "rows.states": 2, "rows.crops": 3, "rows.tested": 3,
            "reader.length": {"steps": 1}, "reader.method": "lora:rank=4", "scorer.length": {"steps": 1}},
            arms=("rquge", "rouge-l"), about="every line, no evidence"),
        "default": Scale(2, {"fact": 60, "section": 60}),
        "large": Scale(5, {"fact": 200, "section": 200}, {
            "rows.states": 40, "rows.tested": 200, "reader.length": {"steps": 200}, "scorer.length": {"epochs": 4}}),
    }

    def recipe(self) -> dict[str, Any]:
        """A reader, a scorer of its answers, and the order in which they put questions."""
        return {"name": "rquge", "seed": 0, "steps": {
            "base": {"use": "base", "model": "gemma3-270m"},
            "encoder": {"use": "base", "model": "minilm"},
            "rows": {"use": "candidate-questions"},
            "reader": {"use": "fit", "tasks": [{"data": "examples.read", "objective": "supervised"}],
                       "method": "lora:rank=16,alpha=32", "learning_rate": 5e-4, "length": {"steps": 60}, "batch_rows": 4,
                       "inputs": {"base": "base", "examples": "rows"}},
            "scorer": {"use": "fit", "tasks": [{"data": "examples.rate", "objective": "span-scorer", "head": "linear"}],
                       "method": "full", "learning_rate": 1e-4, "length": {"epochs": 1}, "batch_rows": 16, "dtype": "float32",
                       "inputs": {"base": "encoder", "examples": "rows"}},
            "score": {"use": "ranked", "sets": ["fact", "section"],
                      "metric": {"use": "rquge", "ask": "trained", "decoder": "greedy:max_new_tokens=12"},
                      "inputs": {"examples": "rows", "qa": "reader", "scorer": "scorer"}},
        }}

    def _words(self, metric: str) -> dict[str, Any]:
        """A metric that compares a candidate with the reference."""
        text = without(without(without(self.recipe(), "reader"), "scorer"), "base", rows__form="reference",
                       score__metric=metric)
        text["steps"]["score"]["inputs"]["encoder"] = "encoder"
        return text

    def arms(self) -> dict[str, dict[str, Any]]:
        """RQUGE, and metrics of words and of meaning."""
        return {"rquge": {}, **{name: self._words(name) for name in ("rouge-l", "f1", "similarity")}}

    def guards(self) -> tuple[Guard, ...]:
        """Reader and scorer know another fact from the right one."""
        return (Guard("questions about another fact are told from the right ones at all: at least 0.6", FACT, ("rquge",),
                      least=0.6),)

    def claims(self) -> tuple[Claim, ...]:
        """Other words and other facts; another section; meaning in place of words."""
        return (
            Claim("above words", "RQUGE puts more questions in other words above those about another fact than ROUGE-L does",
                  "rouge-l", "rquge", FACT, "higher", 0.2, 0.5, 0.03, paper="above all reference-based metrics"),
            Claim("above meaning", "RQUGE does so more than the cosine of MiniLM does", "similarity", "rquge", FACT, "higher",
                  0.2, 0.5, 0.03, paper="above all reference-based metrics", main=False),
            Claim("above F1", "RQUGE does so more than word F1 does", "f1", "rquge", FACT, "higher", 0.2, 0.5, 0.03,
                  main=False),
            Claim("another section", "RQUGE puts more questions above those about another section than ROUGE-L does", "rouge-l",
                  "rquge", SECTION, "higher", 0.2, 0.5, 0.03, main=False))
