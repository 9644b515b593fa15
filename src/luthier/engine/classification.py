"""Labels from a model with a head, and the features that heads read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from luthier.core.artifact import Artifact
from luthier.core.component import build
from luthier.core.example import Example
from luthier.core.kinds import Prediction, Tokens
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
    rows = read(model, examples, int(tuned.meta["template"].get("max_tokens", model.limit)))
    out: dict[int, Prediction] = {}
    for group, pooled in _pooled(model, rows, examples):
        probabilities = component.predict(head(pooled.to(next(head.parameters()).dtype)))
        for i, row in zip(group, probabilities.tolist(), strict=True):
            named = dict(zip(labels, row, strict=True))
            out[i] = Prediction(examples[i].id, label=max(named, key=named.__getitem__), probabilities=named,
                                tokens=len(rows[i].ids))
        ctx.progress(len(out), len(examples), "rows")
    return [out[i] for i in range(len(examples))]


@torch.no_grad()
def features(model: Model, examples: Sequence[Example], max_tokens: int) -> torch.Tensor:
    """[examples, width] float32 what a head is given of each example's text, cut to `max_tokens`."""
    rows = read(model, examples, max_tokens)
    found = {i: state for group, pooled in _pooled(model, rows, examples) for i, state in zip(group, pooled.float(), strict=True)}
    return torch.stack([found[i] for i in range(len(examples))])


def read(model: Model, examples: Sequence[Example], max_tokens: int) -> list[Tokens]:
    """Each example's text as the model reads it."""
    render = Render(model.tokenizer, model.architecture, max_tokens, over_long="truncate", sounds=model.sounds)
    return [render.text(e) for e in examples]


def _pooled(model: Model, rows: Sequence[Tokens], examples: Sequence[Example]) -> Iterator[tuple[list[int], torch.Tensor]]:
    """Numbers of rows of similar length with [those, width] of their pooled states."""
    run = Forward({"policy": model})
    for group in batches_of([len(r.ids) for r in rows], rows=32):
        batch = collate([{"input": rows[i]} for i in group], [examples[i].id for i in group], model.tokenizer.pad_token_id or 0,
                        model.device)
        yield group, run("policy", batch["input"]).pooled()
