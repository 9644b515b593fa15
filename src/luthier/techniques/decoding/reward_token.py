"""reward-token: the prompt behind a token that says what kind of answer is wanted, such as `<|good|>`.

The token is put at the front, behind the model's start token; the rest is `how`. When it helps: models that learned good
and bad answers behind such tokens (`leti`). Source: Wang et al. 2023, section 2 (seed 47).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.kinds import Decoder
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.lookout import Lookout


class RewardToken(Decoder, name="reward-token", seeds=[47]):
    """Ask for a good answer, in the way in which good ones were learned."""

    token: str = Field("<|good|>", min_length=1, description="what is put before the prompt")
    how: Slot[Decoder] = Field(named("greedy"), description="how the answer is written")

    @property
    def searches(self) -> bool:
        return True

    def scores(self, states: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return self.how.scores(states)

    def search(self, look: Lookout, prompts: Sequence[Sequence[int]], rngs: Sequence[Rng]) -> list[list[int]]:
        asked = [self.put(look.models["policy"].tokenizer, p) for p in prompts]
        how = self.how.model_copy(update={"max_new_tokens": self.max_new_tokens})
        return look.continued("policy", asked, how, rngs, [len(p) for p in asked])

    def put(self, tokenizer: object, prompt: Sequence[int]) -> list[int]:
        """The prompt behind the token (its pieces, where the tokenizer has no such token)."""
        ids = list(tokenizer(self.token, add_special_tokens=False)["input_ids"])  # type: ignore[operator]
        start = getattr(tokenizer, "bos_token_id", None)
        first = 1 if start is not None and prompt and prompt[0] == start else 0
        return [*prompt[:first], *ids, *prompt[first:]]
