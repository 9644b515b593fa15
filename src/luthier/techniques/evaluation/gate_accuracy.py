"""gate-accuracy: how often a model's gates send a token to the adapter of its task.

    value = mean over gates and tokens of [the likeliest adapter of the gate at the token = the adapter of the token's segment]

The tokens are those of the question with its right answer. `meta["segments"]` says what belongs to which adapter, a
list of [adapter, text] in the order in which the texts stand; tokens of no segment don't count. Without segments the
whole row belongs to `meta["task"]`. When it helps: to see whether several tasks in one answer are told apart. Source:
Xu et al. 2024, arXiv 2405.13053 (seed 109).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx


class GateAccuracy(Metric, name="gate-accuracy", seeds=[109]):
    """Share of gates and tokens that take the right adapter first."""

    roles: ClassVar[tuple[str, ...]] = ("policy",)
    needs_answers: ClassVar[bool] = False

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value`, and the `tokens` that it is a mean of; None for a model without gates or a row of no task.

        Raises:
            UserError: a row that names an adapter which the gates don't know.
        """
        from luthier.engine import routing
        from luthier.engine.rendering import renderer

        model = ctx.roles["policy"]
        names = routing.routes(model)
        render = renderer(model) if names else None
        return [self._record(e, model, render, names) if names else {"id": e.id, "value": None} for e in examples]

    def _record(self, example: Example, model: Any, render: Any, names: Sequence[str]) -> dict[str, Any]:
        import torch

        from luthier.engine import routing

        ids = render.tokens(example).ids
        wanted = self._labels(example, ids, render, names)
        places = [i for i, label in enumerate(wanted) if label is not None]
        if not places:
            return {"id": example.id, "value": None}
        best = torch.stack([gate.logits.argmax(-1) for gate in routing.heard(model, ids)])  # [gates, tokens]
        labels = torch.tensor([wanted[i] for i in places], device=best.device)
        return {"id": example.id, "value": float((best[:, places] == labels).float().mean()), "tokens": len(places)}

    def _labels(self, example: Example, ids: Sequence[int], render: Any, names: Sequence[str]) -> list[int | None]:
        """The adapter that each token belongs to."""
        task = example.meta.get("task")
        segments = example.meta.get("segments") or ([[task, None]] if task else [])
        strange = next((a for a, _ in segments if a not in names), None)
        if strange is not None:
            raise UserError(f"Row {example.id} is about the adapter '{strange}'; the model's are {', '.join(names)}.")
        if not example.meta.get("segments"):
            return [names.index(task) if task else None] * len(ids)
        ends = [len(render.tokenizer.decode(ids[:i + 1])) for i in range(len(ids))]
        text, begin = render.tokenizer.decode(ids), 0
        found: list[int | None] = [None] * len(ids)
        for adapter, part in segments:
            at = text.find(part, begin)
            if at < 0:
                raise UserError(f"Row {example.id}: its segment {part!r} does not stand in the row after those before it.")
            begin = at + len(part)
            for i, end in enumerate(ends):
                if at < end and (ends[i - 1] if i else 0) < begin:
                    found[i] = names.index(adapter)
        return found

