"""Labels from a model with a head, and the features that heads read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from luthier.core.artifact import Artifact
from luthier.core.component import build
from luthier.core.example import Example
from luthier.core.kinds import Head, Prediction, Tokens
from luthier.core.step import Ctx
from luthier.engine.batches import collate
from luthier.engine.forward import Forward, answered
from luthier.engine.models import Model
from luthier.engine.output import Output
from luthier.engine.rendering import Render
from luthier.engine.scoring import batches_of


@torch.no_grad()
def classify(model: Model, tuned: Artifact, examples: Sequence[Example], ctx: Ctx) -> list[Prediction]:
    """The label of each example's text, with the probabilities of all labels. Long texts are cut to the trained length.

    A head without labels gives a number, which is the label; one that says something of every place gives labels joined by
    spaces, one a word of the text.
    """
    task, spec = next(iter(tuned.meta["heads"].items()))
    head, labels = model.heads[task], model.labels.get(task, [])
    component = build("head", spec)
    rows = read(model, examples, int(tuned.meta["template"].get("max_tokens", model.limit)))
    out: dict[int, Prediction] = {}
    for group, output in _outputs(model, rows, examples):
        probabilities = component.predict(answered(head, output))
        for i, row in zip(group, probabilities, strict=True):
            out[i] = _said(examples[i], rows[i], row, component, labels, model)
        ctx.progress(len(out), len(examples), "rows")
    return [out[i] for i in range(len(examples))]


@torch.no_grad()
def features(model: Model, examples: Sequence[Example], max_tokens: int) -> torch.Tensor:
    """[examples, width] float32 what a head is given of each example's text, cut to `max_tokens`."""
    rows = read(model, examples, max_tokens)
    found = {i: state for group, output in _outputs(model, rows, examples)
             for i, state in zip(group, output.pooled().float(), strict=True)}
    return torch.stack([found[i] for i in range(len(examples))])


def read(model: Model, examples: Sequence[Example], max_tokens: int) -> list[Tokens]:
    """Each example's text as the model reads it."""
    render = Render(model.tokenizer, model.architecture, max_tokens, over_long="truncate", sounds=model.sounds)
    return [render.text(e) for e in examples]


def _said(example: Example, read: Tokens, row: torch.Tensor, head: Head, labels: Sequence[str], model: Model) -> Prediction:
    if not labels:
        return Prediction(example.id, label=repr(float(row.flatten()[0])), tokens=len(read.ids))
    if row.ndim == 2:
        text = "\n".join(t.text for t in example.turns if not t.target)
        told = [labels[int(row[place].argmax())] for place in word_places(text, model.tokenizer) if place < len(row)]
        return Prediction(example.id, label=" ".join(told), tokens=len(read.ids))
    named = dict(zip(labels, row.tolist(), strict=True))
    return Prediction(example.id, label=head.label(named), probabilities=named, tokens=len(read.ids))


def word_places(text: str, tokenizer: Any) -> list[int]:
    """The place of the first token of each word of a text (words are parted by white space) among its ids."""
    offsets = tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    found = []
    for word in re.finditer(r"\S+", text):
        found.append(next(n for n, (begin, end) in enumerate(offsets) if end > word.start() and end > begin))
    return found


def _outputs(model: Model, rows: Sequence[Tokens], examples: Sequence[Example]) -> Iterator[tuple[list[int], Output]]:
    """Numbers of rows of similar length with what the model says to them."""
    run = Forward({"policy": model})
    for group in batches_of([len(r.ids) for r in rows], rows=32):
        batch = collate([{"input": rows[i]} for i in group], [examples[i].id for i in group], model.tokenizer.pad_token_id or 0,
                        model.device)
        yield group, run("policy", batch["input"])
