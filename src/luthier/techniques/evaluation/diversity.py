"""diversity: how many different answers a model gives when it is asked the same again and again.

Each question is answered n times by sampling; value = the number of different answers, of 1 (always the same) to n. Answers
differ where their texts do, spaces around them aside. `details` holds the mean share of different answers.

When it helps: a model that was tuned hard may answer well and say one thing only, which best-of-n and pass-at-k can't use;
compare it with its base. Source: Biderman et al. 2024, "LoRA learns less and forgets less", section 4.4: unique outputs of 50
samples at temperature 0.8 (seed 171).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.example import Example
from luthier.core.kinds import Decoder, Metric, Prediction
from luthier.core.step import Ctx


class Diversity(Metric, name="diversity", seeds=[171]):
    """Different answers among n samples."""

    roles: ClassVar[tuple[str, ...]] = ("policy",)
    needs_answers: ClassVar[bool] = False
    unit: ClassVar[str] = "answers"
    n: int = Field(50, ge=2, description="answers to each question")
    decoder: Slot[Decoder] = Field(named("sample:temperature=0.8,max_new_tokens=64"), description="how answers are drawn")

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value`, how many of the `n` answers differ."""
        from luthier.engine.rendering import renderer

        model = ctx.roles["policy"]
        render = renderer(model)
        prompts = [p for e in examples for p in [render.prompt(e)] * self.n]
        made = ctx.engine.generate(model, prompts, self.decoder, rng=ctx.rng.within("diversity"), stop_ids=render.stop_ids,
                                   journal=ctx.journal, progress=ctx.progress)
        texts = [g.text.strip() for g in made]
        return [{"id": e.id, "value": len(set(texts[i * self.n:(i + 1) * self.n])), "n": self.n}
                for i, e in enumerate(examples)]

    def details(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """`share`: different answers of all answers."""
        return {"share": sum(r["value"] for r in records) / sum(r["n"] for r in records)} if records else {}
