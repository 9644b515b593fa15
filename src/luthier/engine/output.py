"""Output: what a model says to a batch, computed as far as it is asked for.

The vocabulary is computed only where it is asked for: the probability of each learned token comes from a fused function
that never keeps [tokens, vocabulary] scores, only chunks of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from luthier.core.errors import LuthierError
from luthier.engine import fused

if TYPE_CHECKING:
    from luthier.engine.batches import TokenBatch
    from luthier.engine.models import Model
    from luthier.engine.routing import Routed

LOGITS_LIMIT = 1 << 27
Vocabulary = tuple[nn.Module, float | None]


@dataclass
class Output:
    """What one model says to one batch of sequences, computed as far as it is asked for.

    `flat` are the last hidden states of all tokens [tokens, width] of the side that predicts, and `place` [batch,
    longest] says where each row's tokens are among them; None when the model only gives scores. `rows` are the batch
    rows of the learned positions, in the order of `nll`.
    """

    model: Model
    inputs: TokenBatch
    flat: torch.Tensor | None
    place: torch.Tensor | None
    vocabulary: Vocabulary | None
    all_scores: torch.Tensor | None = None
    all_states: tuple[torch.Tensor, ...] | None = None
    routed: list[Routed] | None = None

    @property
    def rows(self) -> torch.Tensor:
        """[learned] row number of each learned position."""
        return self.inputs.targets[:, 1:].nonzero()[:, 0]

    @property
    def states(self) -> torch.Tensor:
        """[batch, tokens, width] last hidden states; what stands at padding has no meaning."""
        assert self.flat is not None and self.place is not None
        return self.flat[self.place]

    def nll(self, weights: torch.Tensor | None = None, z: float = 0.0) -> torch.Tensor:
        """[learned] weight x (-log-probability + z log_sum²) of every learned token, float32, row by row."""
        if self.flat is not None:
            return fused.nll(self._predicting(), self._head(), self._targets(), weights, z)
        scores = self._said().float()
        losses = nn.functional.cross_entropy(scores, self._targets(), reduction="none")
        losses = losses + z * scores.logsumexp(-1).square() if z else losses
        return losses if weights is None else losses * weights

    def log_sum(self) -> torch.Tensor:
        """[learned] log of the sum of exp(scores)."""
        return self._said().float().logsumexp(-1) if self.flat is None else fused.log_sum(self._predicting(), self._head())

    def log_probabilities(self, ids: torch.Tensor) -> torch.Tensor:
        """[learned, k] log-probabilities of the given ids [learned, k]."""
        if self.flat is None:
            return self._logs().gather(1, ids)
        return fused.log_probabilities(self._predicting(), self._head(), ids)

    def topk(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """([learned, k] highest log-probabilities, falling; their ids); gradients flow through the former."""
        if self.flat is None:
            values, ids = self._logs().topk(k, -1)
            return values, ids
        return fused.topk(self._predicting(), self._head(), k)

    def entropy(self) -> torch.Tensor:
        """[learned] entropy of the distribution at each learned position, in nats."""
        if self.flat is None:
            logs = self._logs()
            return -(logs.exp() * logs).sum(-1)
        return fused.entropy(self._predicting(), self._head())

    def kl(self, other: Output) -> torch.Tensor:
        """[learned] KL(other || self) at the learned positions; gradients flow into self only."""
        if self.flat is None or other.flat is None:
            theirs = other.logits().detach().log_softmax(-1)
            return (theirs.exp() * (theirs - self.logits().log_softmax(-1))).sum(-1)
        return fused.kl(self._predicting(), self._head(), other._predicting(), other._head())

    def mse(self, other: Output) -> torch.Tensor:
        """[learned] mean squared difference of the scores; gradients flow into self only."""
        if self.flat is None or other.flat is None:
            return (self.logits() - other.logits().detach()).square().mean(-1)
        return fused.mse(self._predicting(), self._head(), other._predicting(), other._head())

    def row_log_probabilities(self) -> torch.Tensor:
        """[batch] log-probability of each row's learned tokens together, float32."""
        nll = self.nll()
        return torch.zeros(len(self.inputs), device=nll.device).index_add(0, self.rows, -nll)

    def logits(self) -> torch.Tensor:
        """[learned, vocabulary] scores at the learned positions, float32; refused above a stated size."""
        if self.flat is None:
            return self._said().float()
        head, hidden = self._head(), self._predicting()
        if len(hidden) * head.size > LOGITS_LIMIT:
            raise LuthierError(f"logits() of {len(hidden)} positions exceed {LOGITS_LIMIT} numbers; use nll() or kl().")
        return head.scores(hidden)

    def predicting(self) -> torch.Tensor:
        """[learned, width] the last hidden states that predict the learned tokens.

        A model that can't be asked without its vocabulary head (`Forward.splits`) has them with `layers=True`.
        """
        if self.flat is not None:
            return self._predicting()
        if self.all_states is None:
            raise LuthierError(f"{self.model.name} gives its hidden states with run(role, inputs, layers=True) only.")
        states = self.all_states[-1][:, -self.inputs.targets.shape[1]:]
        return states[:, :-1][self.inputs.targets[:, 1:]]

    def hidden(self, layer: int) -> torch.Tensor:
        """[batch, tokens, width] after `layer` layers (0 = embeddings, -1 = last)."""
        if self.all_states is None:
            raise LuthierError("hidden(layer) needs run(role, inputs, layers=True).")
        states = self.all_states[layer]
        return states if self.place is None else states.flatten(0, 1)[self.place]

    def routes(self) -> list[Routed]:
        """What each gate said, [batch, tokens, ...] of the tokens that `inputs.ids` holds; padding has no meaning."""
        if self.routed is None:
            raise LuthierError("routes() needs run(role, inputs, routes=True).")
        place = self.place
        if place is None:
            return self.routed
        return [said.map(lambda x: x.flatten(0, -2)[place]) for said in self.routed]

    def pooled(self) -> torch.Tensor:
        """[batch, width]: mean over the tokens, padding left out."""
        assert self.flat is not None and self.place is not None
        real = self.inputs.mask.bool()
        rows = real.nonzero()[:, 0]
        sums = self.flat.new_zeros(len(real), self.flat.shape[1], dtype=torch.float32)
        means = sums.index_add(0, rows, self.flat[self.place[real]].float()) / real.sum(1, keepdim=True)
        return means.to(self.flat.dtype)

    def _targets(self) -> torch.Tensor:
        """[learned] ids of the learned tokens."""
        ids = self.inputs.ids if self.inputs.decoder_ids is None else self.inputs.decoder_ids
        return ids[:, 1:][self.inputs.targets[:, 1:]]

    def _predicting(self) -> torch.Tensor:
        """[learned, width] the hidden states that predict the learned tokens."""
        assert self.flat is not None and self.place is not None
        return self.flat[self.place[:, :-1][self.inputs.targets[:, 1:]]]

    def _said(self) -> torch.Tensor:
        """[learned, vocabulary] the model's own scores of the learned tokens."""
        assert self.all_scores is not None
        return self.all_scores[:, :-1][self.inputs.targets[:, 1:]]

    def _logs(self) -> torch.Tensor:
        """[learned, vocabulary] log-probabilities by the model's own scores."""
        return self._said().float().log_softmax(-1)

    def _head(self) -> fused.Head:
        if self.vocabulary is None:
            raise LuthierError(f"{self.model.name} has no vocabulary head: this objective needs a language model.")
        module: Any = self.vocabulary[0]
        return fused.Head(module.weight, getattr(module, "bias", None), self.vocabulary[1])
