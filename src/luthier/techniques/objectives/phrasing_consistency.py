"""phrasing-consistency: answer right, and alike under two phrasings of the same instruction.

With a row in its reference phrasing r and in a drawn paraphrase i, both before the same answer y of T tokens,

    L = (1 - lam) · sum_t CE(y_t | r, x)  +  lam · sum_t KL(P(· | r, x, y_<t) || P(· | i, x, y_<t))         match: logits
    L = (1 - lam) · sum_t CE(y_t | r, x)  +  lam · (1 - cos(h_r, h_i)) a row                              match: hidden

where h [width] is the last layer's state that the answer's first token is predicted from. Both sides of the match carry
gradients unless `detach_reference`. The first part keeps the second from being met by answering nothing in particular.
lam 0 is supervised tuning on the reference phrasing. Rows have `meta["paraphrases"]`, other texts of their question: the data
step `rephrase-instructions` writes them.

When it helps: with `--method prompt-tuning`, a model that will be asked in other words. Source: Sun, Shaib & Wallace 2023,
"Evaluating the zero-shot robustness of instruction-tuned language models", section 5 (seed 163).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.example import Dropped, Example
from luthier.core.kinds import DroppedRow, Features, Objective
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.batches import TokenBatch
    from luthier.engine.forward import Forward
    from luthier.engine.output import Output
    from luthier.engine.rendering import Render


class PhrasingConsistency(Objective, name="phrasing-consistency", seeds=[163]):
    """Learn to answer, and to answer alike however the question is worded."""

    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {"nll": "additive", "consistency": "additive"}
    architectures: ClassVar[tuple[Any, ...]] = ("decoder",)
    lam: float = Field(0.8, ge=0, lt=1, description="weight of the likeness; 1 - lam is that of the right answer")
    match: Literal["logits", "hidden"] = Field("logits", description="what must be alike: the distributions over next tokens, "
                                               "or the state before the answer")
    detach_reference: bool = Field(False, description="only the paraphrase is moved towards the reference")

    def rows(self, example: Example, render: Render, rng: Rng) -> list[Features]:
        return [self.encode(example, render, rng)]  # two phrasings of one row can't be divided alike

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        """`input`, the reference, and `paraphrase`, tokens with the same learned answer."""
        texts = example.meta.get("paraphrases") or ()
        if not texts:
            raise DroppedRow(Dropped(example.id, "no paraphrases", "meta.paraphrases is empty: put the data step "
                                                                   "rephrase-instructions before"))
        other = texts[int(rng("paraphrase", example.id).integers(len(texts)))]
        reference, paraphrase = render.tokens(example), render.tokens(reworded(example, other))
        if _learned(reference) != _learned(paraphrase):
            raise DroppedRow(Dropped(example.id, "other tokens", "the answer has other tokens after the paraphrase"))
        return {"input": reference, "paraphrase": paraphrase}

    def coefficients(self) -> dict[str, float]:
        return {"nll": 1 - self.lam, "consistency": self.lam}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        learned = batch["input"].learned
        return {"nll": learned, "consistency": learned if self.match == "logits" else len(batch["input"])}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        layers = self.match == "hidden"
        reference = run("policy", batch["input"], layers=layers)
        parts = {"nll": reference.nll().sum()}
        if self.lam == 0:
            return {**parts, "consistency": parts["nll"].new_zeros(())}
        paraphrase = run("policy", batch["paraphrase"], layers=layers)
        found = self._hidden(reference, paraphrase) if layers else self._logits(reference, paraphrase)
        run.measure(**{"kl" if not layers else "distance": found})
        return {**parts, "consistency": found.sum()}

    def _logits(self, reference: Output, paraphrase: Output) -> torch.Tensor:
        """[learned] KL(reference || paraphrase)."""
        if self.detach_reference:
            return paraphrase.kl(reference)
        return kl(reference.logits(), paraphrase.logits())

    def _hidden(self, reference: Output, paraphrase: Output) -> torch.Tensor:
        """[rows] 1 - cos of the states before the answers."""
        from torch.nn.functional import cosine_similarity

        said = _before_answer(reference)
        return 1 - cosine_similarity(said.detach() if self.detach_reference else said, _before_answer(paraphrase), dim=-1)


def kl(reference: torch.Tensor, paraphrase: torch.Tensor) -> torch.Tensor:
    """[rows] KL of the distributions of two [rows, vocabulary] scores, in nats; gradients flow into both."""
    p, q = reference.float().log_softmax(-1), paraphrase.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def reworded(example: Example, text: str) -> Example:
    """The example with another text of its question."""
    return replace(example, turns=tuple(
        t if t.target else replace(t, parts=tuple(replace(p, value=text) if p.name == "question" else p for p in t.parts))
        for t in example.turns))


def _learned(tokens: Any) -> list[int]:
    return [i for i, t in zip(tokens.ids, tokens.targets, strict=True) if t]


def _before_answer(output: Output) -> torch.Tensor:
    """[rows, width] the last layer's states from which the first learned tokens are predicted."""
    inputs: TokenBatch = output.inputs
    first = inputs.targets.int().argmax(1) - 1
    # A learned prompt stands before the tokens of the batch and has states of its own.
    states = output.hidden(-1)[:, -inputs.ids.shape[1]:]
    return states[range(len(inputs)), first].float()
