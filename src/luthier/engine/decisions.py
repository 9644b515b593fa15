"""Decision transformers: a GPT-2 that reads steps of control, (return to go, state, action), and writes actions.

A step is a token for the return, one for the state, and one for each number of the action, which is one of `BINS` bins from -1
to 1. Returns and states are continuous: they take their tokens' places as linear maps of what the row says. A row is an example
whose parts of type `array` are called `states` [steps, size], `returns` [steps] and, to be learned, `actions` [steps, numbers]
(bins). Text is read as by any model. Source: Chen et al. 2021, arXiv 2106.01345; bins: Schmied et al. 2023, arXiv 2306.14884.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.example import Dropped, Example
from luthier.core.kinds import DroppedRow, Tokens

if TYPE_CHECKING:
    import torch

    from luthier.engine.rendering import Render

TYPE = "luthier_decision"
BINS = 64
RETURN, STATE = "<return>", "<state>"
WORDS = (RETURN, STATE, *(f"<action {n}>" for n in range(BINS)))


def to_bins(actions: np.ndarray) -> np.ndarray:
    """The bins of numbers from -1 to 1; what lies beyond is in the last one."""
    return np.clip(np.floor((np.asarray(actions) + 1) / 2 * BINS), 0, BINS - 1).astype(int)


def from_bins(bins: np.ndarray) -> np.ndarray:
    """The middles of bins."""
    return (np.asarray(bins) + 0.5) / BINS * 2 - 1


def ids_of(tokenizer: Any) -> list[int] | None:
    """The ids of `WORDS`; None where a tokenizer does not know them."""
    found: list[int | None] = tokenizer.convert_tokens_to_ids(list(WORDS))
    known = [i for i in found if i is not None]
    return known if len(set(known)) == len(WORDS) else None


def decides(example: Example) -> bool:
    """Whether an example is steps of control."""
    return any(p.type == "array" for t in example.turns for p in t.parts)


def tokens(example: Example, render: Render) -> Tokens:
    """A row of steps; what is learned are the actions.

    Raises:
        DroppedRow: a model without these tokens, parts that are missing or of other lengths, or an action that is no bin.
    """
    known = {p.name: np.asarray(p.value) for t in example.turns for p in t.parts if p.type == "array"}
    ids = ids_of(render.tokenizer)
    if ids is None or render.architecture != "decoder":
        raise DroppedRow(Dropped(example.id, "steps of control", "the row has arrays, and this is no decision "
                                                              "transformer"))
    if lacking := [n for n in ("states", "returns", "actions") if n not in known]:
        raise DroppedRow(Dropped(example.id, "no steps", f"it has no {', '.join(lacking)}"))
    states, returns, actions = (known[n] for n in ("states", "returns", "actions"))
    if states.ndim != 2 or actions.ndim != 2 or not len(states) == len(returns) == len(actions):
        shapes = ", ".join(f"{n} {np.shape(known[n])}" for n in ("states", "returns", "actions"))
        raise DroppedRow(Dropped(example.id, "no steps", "states and actions are [steps, numbers], returns [steps]; found "
                                                         f"{shapes}"))
    if actions.min(initial=0) < 0 or actions.max(initial=0) >= BINS:
        raise DroppedRow(Dropped(example.id, "no bin", f"actions are bins from 0 to {BINS - 1}; found {actions.min()} to "
                                                       f"{actions.max()}"))
    row: list[int] = []
    targets: list[bool] = []
    for action in actions:
        row += [ids[0], ids[1], *(ids[2 + int(n)] for n in action)]
        targets += [False, False, *[True] * len(action)]
    return Tokens(row, targets, pieces={"states": states.astype(np.float32),
                                        "returns": returns.astype(np.float32).reshape(-1, 1)})


@cache
def classes() -> tuple[Any, Any]:
    """(configuration, model), known to transformers under `TYPE` from the first call on."""
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPT2Model

    class DecisionConfig(GPT2Config):
        """GPT-2's, with the size of a state and the ids of the tokens that stand for returns and states."""

        model_type = TYPE

        def __init__(self, state_size: int = 4, return_id: int = 0, state_id: int = 1, **given: Any) -> None:
            self.state_size, self.return_id, self.state_id = state_size, return_id, state_id
            super().__init__(**given)

    class DecisionModel(GPT2Model):
        """The trunk."""

        config_class = DecisionConfig
        reads = ("states", "returns")

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.of_state = nn.Linear(config.state_size, config.n_embd)
            self.of_return = nn.Linear(1, config.n_embd)
            self.post_init()

        def embedded(self, ids: torch.Tensor, states: torch.Tensor | None, returns: torch.Tensor | None) -> torch.Tensor:
            """[rows, tokens, width] inputs; states and returns [steps of all rows, size] in the order of their tokens."""
            found: torch.Tensor = self.wte(ids)
            for given, part, stands in ((states, self.of_state, self.config.state_id),
                                        (returns, self.of_return, self.config.return_id)):
                if given is not None:
                    found = found.masked_scatter((ids == stands)[..., None], part(given.to(found.dtype)))
            return found

        def queried(self, ids: torch.Tensor, mask: torch.Tensor | None, states: torch.Tensor | None = None,
                    returns: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
            """What a pool's keys are compared with: embedded states, and of a row without any all of its tokens."""
            import torch as pytorch

            real = pytorch.ones_like(ids, dtype=pytorch.bool) if mask is None else mask.bool()
            at = real & (ids == self.config.state_id)
            return self.embedded(ids, states, returns), pytorch.where(at.any(1, keepdim=True), at, real)

        def forward(self, input_ids: Any = None, states: Any = None, returns: Any = None, inputs_embeds: Any = None,
                    **named: Any) -> Any:
            """As GPT-2, with what stands in the places of returns and states."""
            if input_ids is not None:
                inputs_embeds = self.embedded(input_ids, states, returns)
            return super().forward(inputs_embeds=inputs_embeds, **named)

    class DecisionLMHeadModel(GPT2LMHeadModel):
        """Trunk and scores."""

        config_class = DecisionConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.transformer = DecisionModel(config)
            self.post_init()

    AutoConfig.register(TYPE, DecisionConfig)
    AutoModelForCausalLM.register(DecisionConfig, DecisionLMHeadModel)
    return DecisionConfig, DecisionLMHeadModel
