"""Learned keys and values before those of every attention, as a tuner in PEFT.

    attention(q, [K_prefix; K], [V_prefix; V]),    K_prefix, V_prefix [tokens, key heads, head width] of each layer

They reach the attention through the interface of transformers that all its models call (`AttentionInterface.register`),
so that self-attention of encoders and decoders and cross-attention are one case. Every query sees the whole prefix: it
lies outside of masks and sliding windows, and its keys carry no position of their own. In a decoder-only model the
input begins at the position after the prefix; the relative positions of T5 count the prefix as no distance. Importing
this module makes the tuner known to PEFT.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from luthier.core.errors import UserError
from luthier.techniques.methods._tuners import Around, LayerTuner, register

if TYPE_CHECKING:
    from luthier.engine.models import Model

NAME = "luthier_prefixed"
_PREFIX: ContextVar[tuple[torch.Tensor, torch.Tensor] | None] = ContextVar("prefix", default=None)
_WATCHED: ContextVar[list[tuple[Any, torch.Tensor, torch.Tensor, int]] | None] = ContextVar("watched", default=None)


def _attend(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
            **named: Any) -> Any:
    watched, prefix = _WATCHED.get(), _PREFIX.get()
    if watched is not None:
        watched.append((module, key, value, query.shape[2]))
    if prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **named)
    length, causal = prefix[0].shape[1], named.pop("is_causal", None)
    causal = bool(getattr(module, "is_causal", True) if causal is None else causal)
    if attention_mask is None and causal and query.shape[2] > 1:
        queries, keys = query.shape[2], key.shape[2]
        attention_mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)[None, None]
    if attention_mask is not None:
        attention_mask = nn.functional.pad(attention_mask, (length, 0), value=attention_mask.dtype == torch.bool)
    if named.get("position_bias") is not None:
        named["position_bias"] = nn.functional.pad(named["position_bias"], (length, 0))
    key, value = (torch.cat([p[None].to(x.dtype).expand(len(x), -1, -1, -1), x], 2)
                  for p, x in zip(prefix, (key, value), strict=True))
    return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=False, **named)


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@dataclass(frozen=True)
class Site:
    """One attention module: its name, its kind, key heads, widths of key and value, and both as they were when it was asked."""

    name: str
    kind: str
    heads: int
    widths: tuple[int, int]
    key: torch.Tensor
    value: torch.Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Numbers of a prefix token's key and of its value."""
        return self.heads * self.widths[0], self.heads * self.widths[1]


def sites_of(model: Model, ids: Sequence[int]) -> list[Site]:
    """The attention modules of a model, found by watching a forward of these tokens, with the keys and values they make.

    Kinds: enc (self-attention of an encoder), dec (of a decoder) and cross. Tensors are [tokens, key heads x width].

    Raises:
        UserError: the model's attention can't be reached.
    """
    module: Any = model.module
    inner = module.get_base_model() if hasattr(module, "get_base_model") else module
    asked = torch.tensor([list(ids)], device=model.device)
    arguments: dict[str, Any] = {"input_ids": asked}
    if model.architecture == "encoder-decoder":
        # A decoder of another length than the encoder shows which keys are whose.
        arguments["decoder_input_ids"] = torch.cat([asked, asked[:, :1]], 1)
    training = module.training
    module.eval()
    reach(inner, model.name)
    with torch.no_grad(), _watching() as seen:
        module(**arguments)
    module.train(training)
    names = {id(m): n for n, m in inner.named_modules()}
    found: list[Site] = []
    for part, key, value, queries in seen:
        decoder = model.architecture == "decoder" or queries > len(ids)
        crosses = model.architecture == "encoder-decoder" and key.shape[2] == len(ids)
        kind = "enc" if not decoder else "cross" if crosses else "dec"
        flat = [x[0, :, :len(ids)].transpose(0, 1).flatten(1) for x in (key, value)]
        found.append(Site(names[id(part)], kind, int(key.shape[1]), (int(key.shape[3]), int(value.shape[3])), flat[0], flat[1]))
    if not found:
        raise UserError(f"prefix-tuning: the attention of {model.name} can't be reached. Try --method prompt-tuning or lora.")
    return found


@contextmanager
def _watching() -> Iterator[list[tuple[Any, torch.Tensor, torch.Tensor, int]]]:
    seen: list[tuple[Any, torch.Tensor, torch.Tensor, int]] = []
    token = _WATCHED.set(seen)
    try:
        yield seen
    finally:
        _WATCHED.reset(token)


def reach(inner: Any, name: str) -> None:
    """Have a model's attention come by here. Raises UserError where it can't."""
    try:
        inner.set_attn_implementation(NAME)
    except (ValueError, AttributeError) as error:
        raise UserError(f"prefix-tuning: the attention of {name} can't be reached: {error}. Try --method prompt-tuning or "
                        "lora.") from error


@dataclass
class PrefixConfig(PeftConfig):
    """target_modules: attentions with a prefix; shapes: key heads, width of key and of value of each; shift: whether positions
    of the input begin after the prefix.
    """

    target_modules: list[str] = field(default_factory=list)
    modules_to_save: list[str] | None = None
    exclude_modules: list[str] | None = None
    shapes: dict[str, list[int]] = field(default_factory=dict)
    tokens: int = 0
    shift: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = "LUTHIER_PREFIX"  # type: ignore[assignment]

    @property
    def num_virtual_tokens(self) -> int:
        """Positions of the model that the prefix takes."""
        return self.tokens if self.shift else 0


class Prefix(nn.Module):
    """Keys [tokens, heads x width] and values of one attention."""

    def __init__(self, tokens: int, shape: Sequence[int], like: torch.Tensor) -> None:
        super().__init__()
        self.heads = shape[0]
        self.keys, self.values = (nn.Parameter(torch.zeros(tokens, shape[0] * width, device=like.device, dtype=like.dtype))
                                  for width in shape[1:])

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Both as [heads, tokens, width]."""
        return self.shaped(self.keys, self.values)

    def shaped(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of every token as those of every head."""
        first, second = (x.unflatten(1, (self.heads, -1)).transpose(0, 1) for x in (keys, values))
        return first, second


class Maker(nn.Module):
    """P = W2 tanh(W1 P' + b1) + b2 of all attentions of a kind: [tokens, sum of their sizes]; P' [tokens, width]."""

    def __init__(self, tokens: int, width: int, hidden: int, total: int, like: torch.Tensor) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.start = nn.Parameter(torch.randn(tokens, width, **options))
        self.first, self.second = nn.Linear(width, hidden, **options), nn.Linear(hidden, total, **options)

    def forward(self, begin: int, end: int) -> torch.Tensor:
        """Columns `begin` to `end` of P."""
        inside = torch.tanh(self.first(self.start))
        return nn.functional.linear(inside, self.second.weight[begin:end], self.second.bias[begin:end])

    @torch.no_grad()
    def fit(self, table: torch.Tensor) -> None:
        """Make P this table [tokens, total] by least squares over W2; exact where there are as many hidden units as tokens."""
        inside = torch.tanh(self.first(self.start)).double().cpu()
        left = torch.linalg.lstsq(inside, (table - self.second.bias).double().cpu(), driver="gelsd").solution
        self.second.weight.copy_(left.T.to(self.second.weight))


class Prefixed(Around):
    """An attention with a prefix: its own, or columns of what a maker gives for all of its kind."""

    adapter_layer_names = ("prefix_layers",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, prefix: Prefix, inference_mode: bool = False) -> None:
        super().__init__(base_layer, adapter_name, prefix, inference_mode)
        # Where a maker is at work: it, which the first attention of its kind holds as a part, and the columns of this one.
        self.made: list[tuple[Maker, int]] = []

    @property
    def prefix(self) -> Prefix:
        """The one that is switched on."""
        found: Prefix = self.prefix_layers[self.active_adapters[0]]
        return found

    def table(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [heads, tokens, width]."""
        if not self.made:
            return self.prefix()
        maker, begin = self.made[0]
        keys = self.prefix.keys.shape[1]
        columns = maker(begin, begin + keys + self.prefix.values.shape[1])
        return self.prefix.shaped(columns[:, :keys], columns[:, keys:])

    def forward(self, *given: Any, **named: Any) -> Any:
        """The attention's answer, the prefix seen by every query."""
        token = _PREFIX.set(None if self.off else self.table())
        try:
            return self.base_layer(*given, **named)
        finally:
            _PREFIX.reset(token)

    def merge(self, *given: Any, **named: Any) -> None:
        """Refused: keys and values are no weights."""
        raise UserError("A prefix is keys and values, not weights: it can't be merged. Keep it beside the base.")


class PrefixModel(LayerTuner):
    """The seam for `Prefixed`, and the shift of positions."""

    prefix: str = "prefix_"
    tuner_layer_cls = Prefixed
    _handle: Any = None

    def _create_and_replace(self, peft_config: PeftConfig, adapter_name: str, target: nn.Module, target_name: str,
                            parent: nn.Module, current_key: str, parameter_name: str | None = None) -> None:
        assert isinstance(peft_config, PrefixConfig)
        made = Prefix(peft_config.tokens, peft_config.shapes[current_key], next(self.model.parameters()))
        if isinstance(target, Prefixed):
            target.prefix_layers[adapter_name] = made
            target.set_adapter(self.active_adapters)
            return
        around = Prefixed(target, adapter_name, made, peft_config.inference_mode)
        around.train(target.training)
        setattr(parent, target_name, around)
        if self._handle is None:
            reach(self.model, type(self.model).__name__)
            if peft_config.shift:
                self._handle = self.model.base_model.register_forward_pre_hook(_shifting(around), with_kwargs=True)

    def unload(self) -> nn.Module:
        """The base without prefixes and without their positions."""
        if self._handle is not None:
            self._handle.remove()
        return super().unload()


def _shifting(first: Prefixed) -> Any:
    """Positions of the input begin after the prefix, as long as it is on."""

    def shifted(trunk: Any, given: Any, named: dict[str, Any]) -> Any:
        if first.off:
            return None
        length = first.prefix.keys.shape[0]
        at = named.get("position_ids")
        if at is None:
            cache = named.get("past_key_values")
            asked = given[0] if given else named.get("input_ids")
            asked = named["inputs_embeds"] if asked is None else asked
            past = cache.get_seq_length() if cache is not None else 0
            at = torch.arange(past, past + asked.shape[1], device=asked.device)[None]
        return given, {**named, "position_ids": at + length}

    return shifted


def prefixed(module: Any) -> dict[str, Prefixed]:
    """The attentions with a prefix by the name that each has in the base."""
    return {n.removeprefix("base_model.model."): m for n, m in module.named_modules() if isinstance(m, Prefixed)}


register("LUTHIER_PREFIX", PrefixConfig, PrefixModel)
