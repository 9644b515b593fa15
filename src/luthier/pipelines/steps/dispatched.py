"""dispatched: each question goes to one of several adapters as a whole, and is scored as any arm's.

By the true task of the row (`task`), or by the nearest mean of an encoder's embeddings of the questions that each
adapter learned from (`encoder`; rows of the subset `mixed` say their `task`). A question about several tasks gets one
adapter all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.artifact import Artifact
from luthier.core.errors import UserError
from luthier.core.example import Example, Passage
from luthier.core.kinds import Prediction
from luthier.core.step import Ctx
from luthier.engine.models import Model
from luthier.engine.rendering import Prompting
from luthier.pipelines.steps.evaluate import Evaluate


class Dispatched(Evaluate, name="dispatched"):
    """Answer each question with one of several adapters."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", "examples": "examples", "encoder?": "model", "*": "adapter"}
    by: Literal["task", "encoder"] = Field("task", description="who chooses the adapter: the row, or an encoder")

    def _run(self, model: Model, inputs: Mapping[str, Artifact], ctx: Ctx, began: float) -> Artifact:
        ctx.roles = {**ctx.roles, "inputs": inputs}
        return super()._run(model, inputs, ctx, began)

    def _answer(self, model: Model, rows: Sequence[Example], found: Sequence[Sequence[Passage]], prompting: Prompting, ctx: Ctx
                ) -> tuple[list[Prediction], int]:
        inputs: Mapping[str, Artifact] = ctx.roles["inputs"]
        adapters = [n for n in inputs if n not in ("base", "examples", "encoder")]
        chosen = self._tasks(rows) if self.by == "task" else self._nearest(rows, inputs, ctx)
        if strange := sorted(set(chosen) - set(adapters)):
            raise UserError(f"dispatched: no adapter is called '{strange[0]}'; there are {', '.join(adapters)}.")
        said: dict[str, Prediction] = {}
        tokens = 0
        for name in dict.fromkeys(chosen):
            mine = [i for i, c in enumerate(chosen) if c == name]
            tuned = ctx.engine.load(inputs["base"], inputs[name])
            made, read = super()._answer(tuned, [rows[i] for i in mine], [found[i] for i in mine], prompting, ctx)
            said |= {rows[i].id: p for i, p in zip(mine, made, strict=True)}
            tokens += read
        return [said[e.id] for e in rows], tokens

    def _tasks(self, rows: Sequence[Example]) -> list[str]:
        return [str(e.meta.get("task") or e.meta["segments"][0][0]) for e in rows]

    def _nearest(self, rows: Sequence[Example], inputs: Mapping[str, Artifact], ctx: Ctx) -> list[str]:
        encoder: Any = ctx.engine.load(inputs["encoder"])
        known = list(inputs["examples"].examples("mixed"))
        learned = ctx.engine.embed(encoder, [e.part("question") for e in known])
        names = sorted({str(e.meta["task"]) for e in known})
        middles = [learned[[e.meta["task"] == name for e in known]].mean(0) for name in names]
        asked = ctx.engine.embed(encoder, [e.part("question") for e in rows])
        return [names[max(range(len(names)), key=lambda i: float(row @ middles[i]))] for row in asked]
