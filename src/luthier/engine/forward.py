"""The forward: what an objective may ask of the models it trains with.

`run(role, inputs)` computes the hidden states once; the `Output` that it gives computes the rest as far as it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.kinds import Tokens
from luthier.engine import routing
from luthier.engine.attention import NAME, no_masks
from luthier.engine.batches import TokenBatch, collate
from luthier.engine.output import Output, Vocabulary
from luthier.engine.packing import SHARED_TOKENS, pack
from luthier.engine.roles import adapter_off

if TYPE_CHECKING:
    from luthier.engine.frozen import Frozen
    from luthier.engine.models import Model


class Forward:
    """`run(role, inputs)` for an objective: `policy` is the model being trained, other roles are frozen.

    Roles in `bare` are the policy itself without its adapter. `measured` collects what objectives report besides
    their loss, as (sum, count) by name, until `take` reads it.
    """

    def __init__(self, models: Mapping[str, Model], bare: Collection[str] = ()) -> None:
        self.models = models
        self.bare = frozenset(bare)
        self.task = ""
        self.measured: dict[str, tuple[float, float]] = {}
        self._vocabulary = {role: vocabulary_of(model) for role, model in models.items()}
        self.packs = {role: packs(model) for role, model in models.items()}
        # What is known of the policy's frozen layers while it is trained; set by the training step.
        self.frozen: Frozen | None = None

    def __call__(self, role: str, inputs: TokenBatch, embeds: torch.Tensor | None = None, layers: bool = False,
                 routes: bool = False) -> Output:
        """Compute the hidden states of `role` for `inputs`; `embeds` [batch, tokens, width] replaces the embedded ids.

        layers: keep the states of all layers. routes: keep what the model's gates say (`Output.routes`).
        """
        model = self.models[role]
        bare = adapter_off(model) if role in self.bare else nullcontext()
        with torch.set_grad_enabled(torch.is_grad_enabled() and role == "policy"), bare:
            with routing.listening() if routes else nullcontext() as heard:
                output = hidden_states(model, inputs, self._vocabulary[role], embeds, layers, packed=self.packs[role],
                                       frozen=self.frozen if role == "policy" else None)
            output.routed = heard
            return output

    @property
    def splits(self) -> dict[str, bool]:
        """By role: can the trunk be asked without the vocabulary head?"""
        return {role: v is not None or self.models[role].architecture == "encoder" for role, v in
                self._vocabulary.items()}

    def measure(self, **values: torch.Tensor) -> None:
        """Report numbers [rows] that are shown beside the loss and never minimised; their mean is what is shown."""
        for name, value in values.items():
            total, count = self.measured.get(name, (0.0, 0.0))
            self.measured[name] = (total + float(value.detach().sum()), count + value.numel())

    def take(self) -> dict[str, float]:
        """The mean of what was measured since the last call."""
        found = {name: total / count for name, (total, count) in self.measured.items()}
        self.measured = {}
        return found

    @property
    def vocabulary_size(self) -> int:
        """Scores that the trained model makes for one learned token by the fused functions; 0 where it has no such head."""
        found = self._vocabulary["policy"]
        return len(found[0].weight) if found else 0  # type: ignore[arg-type]

    def head(self, features: torch.Tensor) -> torch.Tensor:
        """The current task's head on pooled features."""
        head = self.models["policy"].heads[self.task]
        scores: torch.Tensor = head(features.to(next(head.parameters()).dtype))
        return scores

    def said(self, output: Output) -> torch.Tensor:
        """What the current task's head says to an output, of whatever it reads."""
        return answered(self.models["policy"].heads[self.task], output)


def hidden_states(model: Model, inputs: TokenBatch, vocabulary: Vocabulary | None, embeds: torch.Tensor | None = None,
                  layers: bool = False, packed: bool = False, frozen: Frozen | None = None) -> Output:
    """One forward of one model. Without a split vocabulary head, the model's own scores are kept."""
    with routing.reading(inputs):
        return _hidden_states(model, inputs, vocabulary, embeds, layers, packed, frozen)


def _hidden_states(model: Model, inputs: TokenBatch, vocabulary: Vocabulary | None, embeds: torch.Tensor | None, layers: bool,
                   packed: bool, frozen: Frozen | None) -> Output:
    split = vocabulary is not None or model.architecture == "encoder"
    if packed and split and inputs.decoder_ids is None and inputs.only_tokens:
        return _packed(model, inputs, vocabulary, embeds, layers, frozen)
    if model.sounds:
        states = trunk_of(model)(**inputs.arguments(), **({"output_hidden_states": True} if layers else {}))
        return _heard(model, inputs, states, layers)
    if model.architecture == "encoder-decoder" and inputs.decoder_ids is None:
        return _encoded(model, inputs, embeds, layers)
    arguments: dict[str, Any] = {"attention_mask": inputs.mask, **inputs.arguments()}
    arguments |= {"input_ids": inputs.ids} if embeds is None else {"inputs_embeds": embeds}
    if inputs.decoder_ids is not None:
        arguments |= {"decoder_input_ids": inputs.decoder_ids, "decoder_attention_mask": inputs.decoder_mask}
    if layers:
        arguments["output_hidden_states"] = True
    if model.architecture != "encoder":
        arguments["use_cache"] = False
    side = inputs.ids if inputs.decoder_ids is None else inputs.decoder_ids
    place = torch.arange(side.numel(), device=side.device).view(side.shape)
    with frozen.around(inputs if embeds is None and not layers else None, place, side.shape) if frozen and split \
            else nullcontext():
        result = (trunk_of(model) if split else model.module)(**arguments)
    own = "hidden_states" if inputs.decoder_ids is None or split else "decoder_hidden_states"
    all_states = getattr(result, own, None) if layers else None
    if not split:
        # Prompt methods answer for their virtual tokens too; the batch's own positions are the last ones.
        scores = result.logits[:, -inputs.targets.shape[1]:]
        return Output(model, inputs, None, None, None, scores, all_states)
    return Output(model, inputs, result.last_hidden_state.flatten(0, 1), place, vocabulary, None, all_states)


def answered(head: torch.nn.Module, output: Output) -> torch.Tensor:
    """What a head says to an output: of its pooled features, or of states and mask where it reads these."""
    dtype = next(head.parameters()).dtype
    scores: torch.Tensor
    if getattr(head, "reads", "pooled") == "states":
        scores = head(output.states.to(dtype), output.inputs.mask)
    else:
        scores = head(output.pooled().to(dtype))
    return scores


def _encoded(model: Model, inputs: TokenBatch, embeds: torch.Tensor | None, layers: bool) -> Output:
    """What the encoder of a model of two sides says, where nothing is written."""
    inner = model.module.get_base_model() if hasattr(model.module, "get_base_model") else model.module
    named: dict[str, Any] = {"input_ids": inputs.ids} if embeds is None else {"inputs_embeds": embeds}
    result = inner.get_encoder()(attention_mask=inputs.mask, **named, **({"output_hidden_states": True} if layers else {}))
    place = torch.arange(inputs.ids.numel(), device=inputs.ids.device).view(inputs.ids.shape)
    return Output(model, inputs, result.last_hidden_state.flatten(0, 1), place, None, None,
                  getattr(result, "hidden_states", None) if layers else None)


def _heard(model: Model, inputs: TokenBatch, result: Any, layers: bool) -> Output:
    """What a model says to clips: it makes as many places of a clip as it likes, and all of them are real."""
    shape = result.last_hidden_state.shape[:2]
    ones = torch.ones(shape, dtype=torch.long, device=result.last_hidden_state.device)
    place = torch.arange(shape.numel(), device=ones.device).view(shape)
    seen = replace(inputs, ids=torch.zeros_like(ones), mask=ones, targets=torch.zeros_like(ones, dtype=torch.bool))
    return Output(model, seen, result.last_hidden_state.flatten(0, 1), place, None, None,
                  getattr(result, "hidden_states", None) if layers else None)


def _packed(model: Model, inputs: TokenBatch, vocabulary: Vocabulary | None, embeds: torch.Tensor | None,
            layers: bool, frozen: Frozen | None = None) -> Output:
    """The same without work on padding: all rows as one sequence, each seeing itself alone."""
    packed = pack(inputs.ids, inputs.mask, share=model.architecture == "decoder" and embeds is None)
    arguments: dict[str, Any] = {"position_ids": packed.positions, "layout": packed.layout}
    if embeds is None:
        arguments["input_ids"] = packed.ids
    else:
        real = inputs.mask.bool()
        order = packed.place[real].argsort()
        arguments["inputs_embeds"] = embeds[real][order][None]
    if layers:
        arguments["output_hidden_states"] = True
    if model.architecture != "encoder":
        arguments["use_cache"] = False
    known = inputs if embeds is None and not layers else None
    with no_masks(), frozen.around(known, packed.place, packed.ids.shape) if frozen else nullcontext():
        result = trunk_of(model)(**arguments)
    return Output(model, inputs, result.last_hidden_state[0], packed.place, vocabulary, None,
                  getattr(result, "hidden_states", None) if layers else None)


def packs(model: Model) -> bool:
    """Whether this model gives the same hidden states for rows in one pack as for the rows padded; asked once a module."""
    if model.packing is None or model.packing[0] is not model.module:
        model.packing = (model.module, _packs(model))
    return model.packing[1]


def _packs(model: Model) -> bool:
    """Compare packed and padded.

    Found by asking: two rows of different length, one of them twice, go through the model both ways. Models that read
    more than tokens and positions, or whose attention takes no layout, show up as a difference or as an error.
    """
    if model.architecture == "encoder-decoder" or model.pictures or model.sounds:
        return False
    if not _takes_layout(model) or not _tells_windows(model):
        return False
    top = model.vocabulary
    row = [(7 * i + 5) % top for i in range(2 * SHARED_TOKENS + 3)]
    rows = [row[:7], row, row[:-2] + [row[0]], row[3:12]]
    batch = collate([{"input": Tokens(r, [False] * len(r))} for r in rows], [""] * len(rows), 0, model.device)["input"]
    training = model.module.training
    model.module.eval()
    vocabulary = (model.module, None) if model.architecture == "decoder" else None  # only says that there is a trunk
    try:
        with torch.no_grad():
            padded = hidden_states(model, batch, vocabulary).states
            flat = hidden_states(model, batch, vocabulary, packed=True).states
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError):
        return False
    finally:
        model.module.train(training)
    real = batch.mask.bool()
    # In a short format two ways of computing differ by its rounding; a wrong neighbour shows up at full size.
    tolerance = 1e-4 if padded.dtype == torch.float32 else 6e-2
    distance = (padded[real] - flat[real]).float().norm() / padded[real].float().norm()
    return bool(distance <= tolerance)


def _takes_layout(model: Model) -> bool:
    """Have the model's attention ask for layouts, where it can be told to; without a layout it computes as before."""
    inner = model.module.get_base_model() if hasattr(model.module, "get_base_model") else model.module
    known = getattr(inner.config, "_attn_implementation", None)
    if known in (NAME, None):
        return known == NAME
    if known != "sdpa":
        return False
    config = getattr(model.module, "active_peft_config", None)
    if config is not None and config.is_prompt_learning:
        return False
    inner.set_attn_implementation(NAME)
    return bool(inner.config._attn_implementation == NAME)


class _Listening:
    """The layout of one row, that notes which layers ask with a window."""

    def __init__(self) -> None:
        self.windowed: dict[int, bool] = {}

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float | None,
               window: int | None, dropout: float, causal: bool) -> torch.Tensor:
        """See `Layout.attend`; the row is a single token, which sees itself: the answer is its value."""
        self.windowed[layer] = window is not None
        return value.repeat_interleave(query.shape[1] // value.shape[1], 1).transpose(1, 2)


@torch.no_grad()
def _tells_windows(model: Model) -> bool:
    """Whether layers that see a part of the row by the configuration say so when they ask a layout.

    A model may put its windows in masks alone, which layouts do without; on rows shorter than the window nothing else
    would show it.
    """
    inner = model.module.get_base_model() if hasattr(model.module, "get_base_model") else model.module
    config = inner.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    everywhere = bool(getattr(config, "sliding_window", None)) and getattr(config, "use_sliding_window", True)
    listening = _Listening()
    try:
        with no_masks():
            trunk_of(model)(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device), layout=listening,
                            position_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device))
    except (TypeError, ValueError, RuntimeError, NotImplementedError, AttributeError):
        return False
    return all(windowed == (kinds[layer] == "sliding_attention" if kinds else everywhere)
               and not (kinds and kinds[layer] == "chunked_attention")
               for layer, windowed in listening.windowed.items())


def trunk_of(model: Model) -> Callable[..., Any]:
    """The part of a model below its vocabulary head."""
    inner = model.module.get_base_model() if hasattr(model.module, "get_base_model") else model.module
    trunk: Callable[..., Any] = inner if model.architecture == "encoder" else inner.base_model
    return trunk


def vocabulary_of(model: Model) -> Vocabulary | None:
    """The vocabulary head and its cap, or None where trunk + head does not give what the whole model gives.

    Asked once of a model in which nothing is trained; of one in training every time, since methods change it in place.
    """
    if any(p.requires_grad for p in model.module.parameters()):
        return _vocabulary_of(model)
    if model.split is None or model.split[0] is not model.module:
        model.split = (model.module, _vocabulary_of(model))
    return model.split[1]


def _vocabulary_of(model: Model) -> Vocabulary | None:
    """The vocabulary head and its cap, or None where trunk + head does not give what the whole model gives.

    Found by asking, not from a list of models: both ways are computed on a few tokens and compared. Models that scale
    their scores in other ways, and prompts put in front by a method, show up as a difference.
    """
    if model.architecture == "encoder":
        return None
    inner = model.module.get_base_model() if hasattr(model.module, "get_base_model") else model.module
    head = inner.get_output_embeddings()
    cap = getattr(inner.config, "final_logit_softcapping", None)
    if inner.base_model is inner:
        return None
    if head is not None and any(name != "parametrizations" for name, _ in head.named_children()):
        return None  # an adapter on the head itself: its weight alone does not say what it computes
    if head is None or (getattr(model.module, "active_peft_config", None) is not None and \
            model.module.active_peft_config.is_prompt_learning):
        return None
    ids = torch.arange(5, 11, device=model.device)[None] % model.vocabulary
    batch = TokenBatch(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))
    if model.architecture == "encoder-decoder":
        batch.decoder_ids, batch.decoder_mask = ids, batch.mask
    training = model.module.training
    model.module.eval()
    with torch.no_grad():
        whole = hidden_states(model, batch, None).logits()
        parts = hidden_states(model, batch, (head, cap)).logits()
    model.module.train(training)
    close = (whole - parts).abs().max() <= 1e-3 * whole.abs().max().clamp(min=1)
    return (head, cap) if bool(close) else None
