"""Liu et al. 2024: one sign a weight and one scale a matrix hold nearly all that full fine-tuning has learned.

Two tunes of different data, each of a tiny Llama, in float32 and with every weight but the embeddings: one that has read
general parts of Python's documentation reads other parts, and one that knows an invented world is taught facts that were
never told. Their changes are kept as one bit a weight, with plain scales and with scales distilled in 40 steps on 2 pieces of
64 tokens of what the base was made from; as two bits; and at the bytes of one bit as factors in bfloat16, or as the largest
entries (4 bytes of place and 2 of value: a 48th of all). Signs drawn at random, with the right scales, are the control. All
but the largest entries keep norms whole. Embeddings stand still, so that all of what is left out counts: one bit a weight are
106 kB in place of 3.4 MB. Asked are texts that were kept out, in bits per byte, and the taught facts themselves, by their
one-word answers.

Nothing is said of divergence from the tuned model, of memory or of speed. At the large scale Gemma 3 270M is taught the facts;
most of its bytes are embeddings, so that ten times less holds for its layers alone. Settings were written down before the
first run. Version 2 asks the same of texts that no imported package changes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Claim, Guard, Measure, Paper, Scale, without
from luthier.studies._worlds._started import docs_recipe, docs_scales

TARGET, SOURCE = Measure("bits-per-byte", "target"), Measure("bits-per-byte", "source")
FACTS = Measure("exact-match", "untold", "facts-score")
SHARE = 1 / 48  # of all entries of layers: 6 bytes each, as many bytes as a bit for every entry
DOCS = docs_scales(("tuned", "distilled", "low-rank", "largest", "random-signs"))
WORLDS = {"": "docs", "facts-": "facts"}  # what the names of a tune's steps begin with -> its world
RULES: Mapping[str, Mapping[str, Any]] = {
    "bit": {"rule": "bitdelta"},
    "distilled": {"rule": "bitdelta:steps=40,rows=2,tokens=64", "files": {"distill": "pretrain"}},
    "two-bits": {"rule": "bitdelta:bits=2"},
    "low-rank": {"rule": "low-rank"},
    "largest": {"rule": f"graft:sparsity={SHARE:.6f}"},
    "random-signs": {"rule": "bitdelta:signs=random"}}


class BitDeltaStudy(Study, name="bitdelta", seeds=[136], version=2):
    """Is a full tune worth one bit a weight?"""

    world: ClassVar[str] = "tiny models on Python's own documentation and on a synthetic world"
    paper: ClassVar[Paper] = Paper(
        "BitDelta: Your Fine-Tune May Only Be Worth One Bit", "Liu et al. 2024, arXiv 2402.10193",
        "A tune's change in one bit a weight, with distilled scales, is nearly as good as the tune.",
        "Llama-2 and Mistral, 7B to 70B: near lossless at less than a tenth of the memory")

    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": replace(DOCS["smoke"], units={**DOCS["smoke"].units, "untold": 16}, edits={
            **DOCS["smoke"].edits, "facts.persons": 12, "facts.values": 2, "facts-base.width": 16, "facts-base.layers": 1,
            "facts-base.epochs": 1, "facts-tuned.length": {"steps": 1}, "facts-score.decoder": "greedy:max_new_tokens=2"}),
        "default": replace(DOCS["default"], units={**DOCS["default"].units, "untold": 185}),
        "large": Scale(5, {**DOCS["large"].units, "untold": 660}, {
            "base.width": 192, "tuned.length": {"steps": 180}, "facts.persons": 500, "facts-base.use": "base",
            "facts-base.inputs": {}, "facts-base.model": "gemma3-270m", "facts-tuned.learning_rate": 5e-5},
            about="the facts with Gemma 3 270M"),
    }

    def recipe(self) -> dict[str, Any]:
        """A base that knows one half of the documentation reads the other; one that knows a world learns more of it."""
        text = docs_recipe("bitdelta", {"steps": 90})
        text["steps"]["tuned"] |= {"method": "full:freeze_bottom=0", "learning_rate": 1e-3}
        text["steps"] |= {
            "facts": {"use": "facts-world"},
            "facts-base": {"use": "pretrained", "inputs": {"examples": "facts"}},
            "facts-tuned": {"use": "fit", "tasks": [{"data": "examples.untold"}], "method": "full:freeze_bottom=0",
                            "learning_rate": 1e-3, "schedule": "constant", "length": {"epochs": 24}, "batch_rows": 8,
                            "dtype": "float32", "inputs": {"base": "facts-base", "examples": "facts"}},
            "facts-score": {"use": "evaluate", "arm": "tuned", "sets": ["untold"], "metrics": ["exact-match"],
                            "decoder": "greedy:max_new_tokens=4",
                            "inputs": {"base": "facts-base", "tuned": "facts-tuned", "examples": "facts"}}}
        return text

    def arms(self) -> dict[str, dict[str, Any]]:
        """The bases, the tunes, and what is kept of their changes."""
        return {"base": without(without(self.recipe(), "tuned"), "facts-tuned"), "tuned": {},
                **{name: self._kept(how) for name, how in RULES.items()}}

    def _kept(self, how: Mapping[str, Any]) -> dict[str, Any]:
        text = copy.deepcopy(self.recipe())
        for tune, world in WORLDS.items():
            read = {"examples": world} if "files" in how else {}
            score = text["steps"].pop(f"{tune}score")
            text["steps"][f"{tune}kept"] = {"use": "merge", **how, "inputs": {
                "base": f"{tune}base", "tuned": f"{tune}tuned", **read}}
            text["steps"][f"{tune}score"] = {**score, "inputs": {**score["inputs"], "tuned": f"{tune}kept"}}
        return text

    def guards(self) -> tuple[Guard, ...]:
        """There is something to keep."""
        return (Guard("the target is new to the base: at least 1.5 bits a byte", TARGET, ("base",), least=1.5),
                Guard("the facts are new to the base: at most 0.2 of them", FACTS, ("base",), most=0.2),
                Guard("they are learned: at least 0.8 of them", FACTS, ("tuned",), least=0.8))

    def claims(self) -> tuple[Claim, ...]:
        """What is kept, by signs alone, what is lost, and what else the bytes could hold."""
        def bits(name: str, says: str, left: str, right: str, smallest: float = 0.02, **more: Any) -> Claim:
            return Claim(name, says, left, right, TARGET, "lower", smallest, 0.06, 0.01, **more)

        def facts(name: str, says: str, left: str, right: str, **more: Any) -> Claim:
            return Claim(name, says, left, right, FACTS, "higher", 0.05, 0.4, 0.02, **more)

        return (
            bits("kept", "with one bit a weight and distilled scales the target needs fewer bits than the base needs", "base",
                 "distilled", 0.05, paper="near lossless"),
            facts("facts are kept", "with one bit a weight and distilled scales more facts are told than by the base", "base",
                  "distilled", paper="near lossless"),
            bits("by the signs", "with the change's own signs the target needs fewer bits than with random ones",
                 "random-signs", "bit", 0.05),
            bits("something is lost", "the tune itself needs fewer bits for the target than one bit a weight with distilled "
                 "scales", "distilled", "tuned", paper="near lossless: this is not expected", main=False),
            facts("facts are lost", "the tune itself tells more facts than one bit a weight with distilled scales", "distilled",
                  "tuned", paper="near lossless: this is not expected", main=False),
            bits("distillation", "distilled scales leave fewer bits for the target than plain ones", "bit", "distilled", 0.01,
                 main=False),
            facts("distillation on facts", "with distilled scales more facts are told than with plain ones", "bit", "distilled",
                  main=False),
            bits("second bit", "two bits leave fewer bits for the target than one", "bit", "two-bits", main=False),
            bits("than factors", "one bit a weight leaves fewer bits for the target than factors of the same bytes",
                 "low-rank", "bit", main=False),
            facts("than factors on facts", "one bit a weight tells more facts than factors of the same bytes", "low-rank",
                  "bit", main=False),
            bits("than the largest entries", "one bit a weight leaves fewer bits for the target than the largest entries of "
                 "the same bytes", "largest", "bit", main=False),
            facts("than the largest on facts", "one bit a weight tells more facts than the largest entries of the same bytes",
                  "largest", "bit", main=False),
            Claim("forgetting", "with distilled scales the source needs fewer bits than with the tune itself", "tuned",
                  "distilled", SOURCE, "lower", 0.02, 0.06, 0.01, main=False))
