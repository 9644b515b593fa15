"""What decoders of this room share: drawing a token, and whether models read the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from luthier.core.errors import UserError

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model


def drawn(probabilities: torch.Tensor, rngs: Sequence[Callable[[], float]]) -> torch.Tensor:
    """[batch] ids in proportion to [batch, n] weights: the first whose cumulated share exceeds the item's number."""
    import torch

    reached = probabilities.double().cumsum(-1)
    numbers = torch.tensor([r() for r in rngs], dtype=torch.float64, device=probabilities.device)[:, None]
    place: torch.Tensor = (reached <= numbers * reached[:, -1:]).sum(-1)
    # Past the last token that has a chance there is only rounding.
    last = (probabilities > 0).long().mul(torch.arange(1, probabilities.shape[1] + 1, device=place.device)).amax(-1) - 1
    return torch.minimum(place, last)


def same_tokens(name: str, models: Mapping[str, Model]) -> None:
    """Refuse models whose tokenizers differ, beyond further tokens at the end of one.

    Raises:
        UserError: with the first differing token, or where two chat templates differ.
    """
    policy = models["policy"]
    known = {i: t for t, i in policy.tokenizer.get_vocab().items()}
    for role, model in models.items():
        if model.tokenizer is policy.tokenizer:
            continue
        other = {i: t for t, i in model.tokenizer.get_vocab().items()}
        for i in range(min(len(known), len(other))):
            if known.get(i) != other.get(i):
                raise UserError(f"{name}: {model.name} ({role}) reads other tokens than {policy.name}: token {i} is "
                                f"{other.get(i)!r} there and {known.get(i)!r} here. Both must come from one tokenizer.")
        one, two = (getattr(m.tokenizer, "chat_template", None) for m in (policy, model))
        if one and two and one != two:
            raise UserError(f"{name}: {model.name} ({role}) has another chat template than {policy.name}: what one was asked "
                            "the other never saw. Use models of one template.")
