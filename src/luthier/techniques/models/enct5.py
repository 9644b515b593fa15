"""EncT5: the first decoder layers of a T5 as a head that learned queries drive; nothing is written.

The body is the encoder alone, all of it: states S [batch, places, d]. The head holds copies of the decoder's first
`decoder_layers` layers and of its last norm, P learned queries in place of text, and a linear map:

    H = decoder(queries; S) [batch, P, d];   single, regression: W H_1 + b;   multi: one query and one logit a label;
    tags: the query of place i is a common one plus S_i, P = places, and W H_i + b at each

Queries see each other in both directions. Where the T5 scales what its decoder says (tied embeddings), so is H, by d^-1/2.
pooling `mean` and `first` leave the decoder out: W applied to the mean of S, or to S_1. `init: random` draws the decoder
layers anew.

When it helps: a T5, and labels, numbers or tags rather than texts. Source: Liu et al. 2021, arXiv 2110.08426 (seed 135).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Head

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model

FAMILIES = "T5, mT5, UL2 and others whose decoder is a stack like T5's"


class EncT5(Head, name="enct5", seeds=[135]):
    """Queries that read an encoder through its model's first decoder layer."""

    reads: ClassVar[Literal["pooled", "states"]] = "states"
    problem: Literal["single", "multi", "regression", "tags"] = Field("single", description="as the objective's")
    pooling: Literal["query", "mean", "first"] = Field("query", description="queries through the decoder, or states without it")
    decoder_layers: int = Field(1, ge=1, description="layers of the decoder that are kept")
    init: Literal["copied", "random"] = Field("copied", description="the decoder layers' weights, or the same drawn anew")

    def build(self, body: Model, labels: Sequence[str]) -> torch.nn.Module:
        """Raises UserError for a model without such a decoder, or with too few layers."""
        import torch
        from torch import nn

        from luthier.techniques.models._queries import Queries

        inner = body.module.get_base_model() if hasattr(body.module, "get_base_model") else body.module
        decoder = inner.get_decoder() if body.architecture == "encoder-decoder" else None
        if decoder is None or not hasattr(decoder, "block") or not hasattr(decoder, "final_layer_norm"):
            what = {"encoder": "an encoder", "decoder": "a decoder"}.get(body.architecture, "another encoder-decoder")
            raise UserError(f"enct5: {body.name} is {what}; it needs one of {FAMILIES}.")
        if self.decoder_layers > len(decoder.block):
            raise UserError(f"enct5: decoder_layers = {self.decoder_layers}, but {body.name} has {len(decoder.block)}.")
        asks = self.pooling == "query"
        scaled = getattr(inner.config, "scale_decoder_outputs", bool(inner.config.tie_word_embeddings))
        outputs = 1 if self.problem == "regression" or (self.problem == "multi" and asks) else len(labels)
        module = Queries(self._layers(decoder) if asks else None, len(labels) if self.problem == "multi" else 1, outputs,
                         body.width,
                         self.problem, self.pooling, body.width ** -0.5 if scaled else 1.0)
        factor = float(getattr(inner.config, "initializer_factor", 1.0))
        with torch.no_grad():
            nn.init.normal_(module.linear.weight, std=factor * body.width ** -0.5)
            nn.init.zeros_(module.linear.bias)
            if module.queries is not None:
                nn.init.normal_(module.queries, std=factor)
        return module

    def _layers(self, decoder: Any) -> Any:
        """A stack of the first layers with the last norm, its embedding table left out."""
        config = copy.deepcopy(decoder.config)
        config.num_layers, config.use_cache = self.decoder_layers, False
        stack = type(decoder)(config)
        stack.embed_tokens = None
        own = stack.state_dict()
        if self.init == "copied":
            # Below an adapter, the layer that it sits on.
            held = {name.replace(".base_layer.", "."): weight for name, weight in decoder.state_dict().items()}
            stack.load_state_dict({name: held[name] for name in own})
        return stack.float().train(decoder.training).requires_grad_(True)  # like any head, whatever format the base has

    def predict(self, outputs: torch.Tensor) -> torch.Tensor:
        if self.problem == "multi":
            return outputs.float().sigmoid()
        return outputs.float() if self.problem == "regression" else outputs.float().softmax(-1)

    def label(self, probabilities: Mapping[str, float]) -> str:
        """The likeliest label; of several those of at least a half, joined by |."""
        if self.problem != "multi":
            return super().label(probabilities)
        return "|".join(name for name, chance in probabilities.items() if chance >= 0.5)
