"""Ovadia et al. 2023: new facts are better shown at question time than trained into the weights.

Pages about invented craftsmen are either searched for each question (one or three passages), or read on by continued
pretraining, as they are or with eight paraphrases of each, for equally many optimizer steps. Questions have four options
and are answered by the likeliest; their wording is unlike that of any page.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale, without

RIGHT = Measure("multiple-choice")


class FtOrRag(Study, name="ft-or-rag", seeds=[167]):
    """Continued pretraining or retrieval for facts that are new to a model?"""

    world: ClassVar[str] = "real models (Gemma 3 270M, MiniLM) on invented pages"
    paper: ClassVar[Paper] = Paper(
        "Fine-Tuning or Retrieval? Comparing Knowledge Injection in LLMs", "Ovadia et al. 2023, arXiv 2312.05934",
        "Retrieval injects new facts far better than continued pretraining, which needs many paraphrases of each.",
        "current events, Mistral 7B: base 0.48, retrieval 0.875, pretrained 0.50, with paraphrases 0.59 (as remembered)")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"test": 6}, {
            "base.model": "pico", "encoder.model": "pico-encoder", "pages.entities": 6, "rows.entities": 6,
            "tuned.length": {"steps": 1}, "tuned.method": "lora:rank=4"},
            arms=("base", "rag-1", "cpt-p8"), about="every line, no evidence"),
        "default": Scale(2, {"test": 40}),
        "large": Scale(5, {"test": 120}, {"pages.entities": 120, "rows.entities": 120, "tuned.length": {"steps": 240}}),
    }

    def recipe(self) -> dict[str, Any]:
        """Pages, their index, and a model that has read them on."""
        return {"name": "ft-or-rag", "seed": 0, "steps": {
            "base": {"use": "base", "model": "gemma3-270m"},
            "encoder": {"use": "base", "model": "minilm"},
            "pages": {"use": "pages-world"},
            "rows": {"use": "page-questions"},
            "index": {"use": "index", "inputs": {"documents": "pages", "encoder": "encoder"}},
            "read": {"use": "curate", "inputs": {"rows": "rows"}},
            "tuned": {"use": "fit", "tasks": [{"data": "examples.train", "objective": "pretrain"}],
                      "method": "lora:rank=16,alpha=32", "learning_rate": 5e-4, "length": {"steps": 60},
                      "inputs": {"base": "base", "examples": "read"}},
            "score": {"use": "evaluate", "arm": "tuned", "sets": ["test"], "metrics": ["multiple-choice"],
                      "inputs": {"base": "base", "tuned": "tuned", "examples": "rows", "index": "index", "encoder": "encoder"}},
        }}

    def arms(self) -> dict[str, dict[str, Any]]:
        """Untrained with 0, 1 and 3 passages; trained on pages and on paraphrases; both together."""
        paraphrased = {"read.steps": ["paraphrase:count=8"]}
        return {
            "base": without(self.recipe(), "tuned"),
            "rag-1": without(self.recipe(), "tuned", score__passages=1),
            "rag-3": without(self.recipe(), "tuned", score__passages=3),
            "cpt-p0": {}, "cpt-p8": paraphrased, "cpt-p8-rag-1": {**paraphrased, "score.passages": 1}}

    def guards(self) -> tuple[Guard, ...]:
        """The facts are new: the base guesses."""
        return (Guard("the facts are new to the base: at most 0.4 right of four options", RIGHT, ("base",), most=0.4),)

    def claims(self) -> tuple[Claim, ...]:
        """Retrieval against training; what training and paraphrases add."""
        return (
            Claim("retrieval wins", "one retrieved passage gives more right answers than pretraining with 8 paraphrases",
                  "cpt-p8", "rag-1", RIGHT, "higher", 0.1, 0.4, 0.03, paper="0.875 against 0.59"),
            Claim("training helps", "pretraining on the pages gives more right answers than the base", "base", "cpt-p0", RIGHT,
                  "higher", 0.05, 0.35, 0.03, paper="0.50 against 0.48", main=False),
            Claim("paraphrases help", "8 paraphrases of each page help at equal steps", "cpt-p0", "cpt-p8", RIGHT, "higher",
                  0.05, 0.35, 0.03, paper="0.59 against 0.50", main=False),
            Claim("both", "training adds to retrieval", "rag-1", "cpt-p8-rag-1", RIGHT, "higher", 0.05, 0.35, 0.03, main=False))
