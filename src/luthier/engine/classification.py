"""Labels from a model with a head."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from luthier.core.artifact import Artifact
from luthier.core.component import build
from luthier.core.example import Example
from luthier.core.kinds import Prediction
from luthier.core.step import Ctx
from luthier.engine.batches import collate
from luthier.engine.forward import Forward
from luthier.engine.models import Model
from luthier.engine.rendering import Render
from luthier.engine.scoring import batches_of


@torch.no_grad()
def classify(model: Model, tuned: Artifact, examples: Sequence[Example], ctx: Ctx) -> list[Prediction]:
    """The label of each example's text, with the probabilities of all labels. Long texts are cut to the trained length."""
    task, spec = next(iter(tuned.meta["heads"].items()))
    head, labels = model.heads[task], model.labels[task]
    component = build("head", spec)
    limit = int(tuned.meta["template"].get("max_tokens", model.limit))
    render = Render(model.tokenizer, model.architecture, limit, over_long="truncate")
    rows = [render.text(e) for e in examples]
    run = Forward({"policy": model})
    out: dict[int, Prediction] = {}
    for group in batches_of([len(r.ids) for r in rows], rows=32):
        batch = collate([{"input": rows[i]} for i in group], [examples[i].id for i in group],
                        model.tokenizer.pad_token_id or 0, model.device)
        pooled = run("policy", batch["input"]).pooled()
        probabilities = component.predict(head(pooled.to(next(head.parameters()).dtype)))
        for i, row in zip(group, probabilities.tolist(), strict=True):
            named = dict(zip(labels, row, strict=True))
            out[i] = Prediction(examples[i].id, label=max(named, key=named.__getitem__), probabilities=named,
                                tokens=len(rows[i].ids))
        ctx.progress(len(out), len(examples), "rows")
    return [out[i] for i in range(len(examples))]
