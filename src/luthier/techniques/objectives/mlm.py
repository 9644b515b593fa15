"""Masked language modelling: -sum over chosen places of log p(the token that stood there | the text with these places hidden).

Of the tokens that are not special `share` are chosen, at least one; of these 80 % become the mask token, 10 % another token, 10
% stay. Scores are states times the embedding table, h E^T: the head that BERT ties, without its own layer, so that any
encoder learns without weights that its files lack. What a row hides depends on the row and the seed alone.

When it helps: an encoder and much unlabelled text of the field. Source: Devlin et al. 2019, arXiv 1810.04805; as warm-up seed
6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Turn
from luthier.core.kinds import DroppedRow, Features, Objective
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.rendering import Render


class Mlm(Objective, name="mlm"):
    """Learn to fill in hidden tokens of raw texts."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"masked": "additive"}
    architectures: ClassVar[tuple[Any, ...]] = ("encoder",)
    learns_to_stop: ClassVar[bool] = False
    share: float = Field(0.15, gt=0, lt=1, description="share of the tokens to be found again")

    def rows(self, example: Example, render: Render, rng: Rng) -> list[Features]:
        return [self.encode(example, render, rng)]

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        """Raises UserError for a tokenizer without a mask token."""
        mask = render.tokenizer.mask_token_id
        if mask is None:
            raise UserError("mlm: the tokenizer has no mask token to hide tokens with.")
        # All of a row is text here, whatever role says it.
        read = render.text(replace(example, turns=tuple(Turn("user", t.parts) for t in example.turns)))
        special = set(render.tokenizer.all_special_ids)
        places = [n for n, token in enumerate(read.ids) if token not in special]
        if not places:
            raise DroppedRow(Dropped(example.id, "nothing to learn", "the text has no token that can be hidden"))
        draw = rng("mlm")
        chosen = sorted(places[i] for i in draw.permutation(len(places))[:max(1, round(self.share * len(places)))])
        ids, legal = list(read.ids), [i for i in range(len(render.tokenizer)) if i not in special]
        for place, kind in zip(chosen, draw.random(len(chosen)), strict=True):
            ids[place] = mask if kind < 0.8 else legal[draw.integers(len(legal))] if kind < 0.9 else ids[place]
        hidden = set(chosen)
        return {"input": replace(read, ids=ids, targets=[n in hidden for n in range(len(ids))]),
                "was": tuple(read.ids[n] for n in chosen)}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        return {"masked": batch["input"].learned}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        import torch

        states = run("policy", batch["input"]).states[batch["input"].targets]
        scores = states @ run.models["policy"].module.get_input_embeddings().weight.to(states.dtype).T
        wanted = batch["was"][batch["was"] >= 0]
        run.measure(found=(scores.argmax(-1) == wanted).float())
        return {"masked": torch.nn.functional.cross_entropy(scores.float(), wanted, reduction="sum")}
