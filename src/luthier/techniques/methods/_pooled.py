"""A pool of modulators with keys, as a tuner in PEFT: each row of a batch takes the one whose key its inputs are most like.

    q = mean of the row's embedded inputs,   sim_j = cos(q, k_j),   j* = argmax sim_j

While training used entries are left to the tasks that used them: sim' = (sim + 1) / 2 inv, inv_j = 1 / (f_j + 1e-6) divided
by its sum, f_j the share of the rows of earlier trainings that took j. Each entry is a weight of its own, and one that no row
took has no gradient: in one stacked tensor, momentum and weight decay would go on moving all.

Importing this module makes the tuner known to PEFT.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig
from torch import nn

from luthier.core.errors import UserError
from luthier.engine.routing import read
from luthier.techniques.methods._shared import sides
from luthier.techniques.methods._tuners import Around, LayerTuner, register

SMALLEST = 1e-6  # added to the share of an entry's rows


@dataclass
class PooledConfig(PeftConfig):
    """target_modules: modulated layers; of IA3, `before` are those whose inputs are scaled, and `fused` hold q, k and v.

    entries: of the pool, the first `reserved` of which modulate nothing; rank, alpha: of LoRA.
    """

    target_modules: list[str] = field(default_factory=list)
    modules_to_save: list[str] | None = None
    exclude_modules: list[str] | None = None
    modulator: str = "lora"
    entries: int = 1
    reserved: int = 0
    rank: int = 8
    alpha: float = 16
    before: list[str] = field(default_factory=list)
    fused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = "LUTHIER_POOLED"  # type: ignore[assignment]


@dataclass(frozen=True)
class Picked:
    """What the rows of a forward take: modulated `rows` (None: all `count` of them) by modulator `there[at]`."""

    count: int
    rows: torch.Tensor | None
    there: list[int]
    at: torch.Tensor

    @classmethod
    def of(cls, choice: torch.Tensor, reserved: int) -> Picked:
        """From entries [rows]."""
        modulated = choice >= reserved
        rows = None if bool(modulated.all()) else modulated.nonzero().flatten()
        there, at = (choice[modulated] - reserved).unique(return_inverse=True)
        return cls(len(choice), rows, there.tolist(), at)


class Keys(nn.Module):
    """The keys of a pool, and which entry each row of the forward that is made takes (`picked`).

    It hangs at `asked`, the module that embeds the inputs: a model's trunk, of two sides the encoder. What is written later
    stays with the entries of its prompt.
    """

    counts: torch.Tensor

    def __init__(self, config: PooledConfig, asked: nn.Module) -> None:
        super().__init__()
        embedding = asked.get_input_embeddings().weight  # type: ignore[operator]
        blank = embedding.new_empty(embedding.shape[1])
        self.entries = nn.ParameterList(torch.empty_like(blank).uniform_(-1, 1) for _ in range(config.entries))
        self.reserved = config.reserved
        self.register_buffer("counts", torch.zeros(config.entries, dtype=torch.long, device=embedding.device))
        self.inverse: torch.Tensor | None = None
        self.takes: int | Sequence[int] | Callable[[], int] | None = None
        self.picked: Picked | None = None
        self.__dict__["asked"] = asked  # not through nn.Module: it holds this one
        asked.register_forward_pre_hook(self.before, with_kwargs=True)

    def before(self, asked: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Choose for the rows that are about to be read.

        Raises:
            NotImplementedError: rows in one pack, where an entry can't be given to each.
        """
        if named.get("layout") is not None:
            raise NotImplementedError("rows that take entries of a pool are not packed")
        cache = named.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            return
        ids = given[0] if given else named.get("input_ids")
        seen = ids if ids is not None else named["inputs_embeds"]
        if seen.is_meta:  # a plan knows no values; that all rows take one entry costs what any choice does
            self.picked = Picked(len(seen), None, [0], torch.zeros(len(seen), dtype=torch.long, device="meta"))
            return
        rows = read()
        ours = rows is not None and rows.decoder_ids is None and (ids is None or rows.ids is ids)
        targets = rows.targets if rows is not None and ours else None
        mask = named.get("attention_mask")
        more = {n: v for n, v in named.items() if n in getattr(asked, "reads", ())}
        self.picked = Picked.of(self.choose(self.query(ids, mask, targets, named.get("inputs_embeds"), more)), self.reserved)

    @torch.no_grad()
    def query(self, ids: torch.Tensor | None, mask: torch.Tensor | None, targets: torch.Tensor | None = None,
              embeds: torch.Tensor | None = None, more: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """[rows, width] mean of the embedded inputs, float32: of what is asked, that is before the first learned token.

        A row that is learned from its beginning counts whole. A model may say itself what of its inputs counts (`queried`).

        Raises:
            UserError: a row of nothing but padding.
        """
        if hasattr(self.asked, "queried"):
            embeds, at = self.asked.queried(ids, mask, **(more or {}))  # type: ignore[operator]
        else:
            if embeds is None:
                embeds = self.asked.get_input_embeddings()(ids)  # type: ignore[operator, union-attr, attr-defined]
            at = torch.ones(embeds.shape[:2], device=embeds.device, dtype=torch.bool) if mask is None else mask.bool()
            if targets is not None:
                earlier = at & ~(targets.cumsum(1) > 0)
                early = earlier.sum(1, keepdim=True) > 1  # the start token alone asks nothing
                at = torch.where(early, earlier, at)
        empty = (at.sum(1) == 0).nonzero().flatten().tolist()
        if empty:
            raise UserError(f"l2m: row {empty[0]} of a batch of {len(at)} is nothing but padding, and has no query. Leave "
                            "empty rows out.")
        kept = at.unsqueeze(-1).float()
        return (embeds.float() * kept).sum(1) / kept.sum(1)

    @torch.no_grad()
    def choose(self, query: torch.Tensor) -> torch.Tensor:
        """[rows] entries. While training, shares of earlier trainings count against an entry."""
        if self.takes is not None:
            given = torch.as_tensor(self.takes() if callable(self.takes) else self.takes, device=query.device)
            if given.dim() and len(given) != len(query):
                raise UserError(f"l2m: {len(given)} entries are given to {len(query)} rows.")
            return given.expand(len(query))
        keys = torch.stack([key.float() for key in self.entries])
        likeness = nn.functional.cosine_similarity(query[:, None], keys[None], dim=-1)
        if self.training and self.inverse is not None:
            likeness = (likeness + 1) / 2 * self.inverse
        return likeness.argmax(1)

    def likeness(self, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """[rows] cos(q, k) of what each row of a `TokenBatch` takes, with gradients for these keys, and the entries."""
        more = {n: v for n, v in inputs.arguments().items() if n in getattr(self.asked, "reads", ())}
        targets = inputs.targets if inputs.decoder_ids is None else None
        query = self.query(inputs.ids, inputs.mask, targets, None, more)
        chosen = self.choose(query)
        there, at = chosen.unique(return_inverse=True)
        keys = torch.stack([self.entries[j].float() for j in there.tolist()])
        return nn.functional.cosine_similarity(query, keys[at], dim=-1), chosen

    def penalise(self) -> None:
        """From now on the present shares count against entries; where no row has taken any, nothing does."""
        total = int(self.counts.sum())
        if total:
            inverse = 1 / (self.counts.double() / total + SMALLEST)
            self.inverse = (inverse / inverse.sum()).float()


class Modulators(nn.Module):
    """The entries of one layer: of LoRA A [rank, in] and B [out, rank], of IA3 a vector of ones."""

    def __init__(self, config: PooledConfig, size: tuple[int, int], scaled: int, like: torch.Tensor) -> None:
        super().__init__()
        options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        count = config.entries - config.reserved
        self.lora = config.modulator == "lora"
        self.scale = config.alpha / config.rank
        if self.lora:
            self.down = nn.ParameterList(torch.empty(config.rank, size[0], **options) for _ in range(count))
            self.up = nn.ParameterList(torch.zeros(size[1], config.rank, **options) for _ in range(count))
            for down in self.down:
                nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        else:
            self.vectors = nn.ParameterList(torch.ones(scaled, **options) for _ in range(count))

    def added(self, x: torch.Tensor, picked: Picked) -> torch.Tensor:
        """[rows, tokens, out] scale B_j A_j x from x [rows, tokens, in]."""
        down, up = (_stacked(part, picked) for part in (self.down, self.up))
        return self.scale * (x.to(down.dtype) @ down.transpose(1, 2) @ up.transpose(1, 2))

    def scaled(self, x: torch.Tensor, picked: Picked) -> torch.Tensor:
        """x [rows, tokens, width] with its last numbers scaled by the rows' vectors."""
        vectors = _stacked(self.vectors, picked)
        whole = nn.functional.pad(vectors, (x.shape[-1] - vectors.shape[1], 0), value=1.0)
        return x * whole[:, None].to(x.dtype)


def _stacked(parts: nn.ParameterList, picked: Picked) -> torch.Tensor:
    """The weights of each row; only entries that some row takes get gradients."""
    return torch.stack([parts[j] for j in picked.there])[picked.at]


class Pooled(Around):
    """A linear layer that each row goes through with the modulator of its entry."""

    adapter_layer_names = ("pooled_layers",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: PooledConfig, like: torch.Tensor, name: str,
                 keys: Keys) -> None:
        size = sides(base_layer)
        scales_inputs = name in config.before
        scaled = size[0] if scales_inputs else size[1] * 2 // 3 if name in config.fused else size[1]
        super().__init__(base_layer, adapter_name, Modulators(config, size, scaled, like),  # type: ignore[arg-type]
                         config.inference_mode)
        self.scales_inputs = scales_inputs
        self.__dict__["keys"] = keys  # they stand in the model once, at the tuner

    def forward(self, x: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        """The layer's answer [rows, tokens, out], modulated.

        Raises:
            UserError: rows that nobody has chosen entries for.
        """
        out: torch.Tensor
        if self.off:
            out = self.base_layer(x, *given, **named)
            return out
        part, picked = self.pooled_layers[self.active_adapters[0]], self.keys.picked
        if picked is None or x.dim() != 3 or picked.count != len(x):
            raise UserError(f"l2m: a layer is given {tuple(x.shape)}, and entries are chosen for "
                            f"{picked.count if picked else 0} rows. Layers that don't see rows apart can't be modulated.")
        if self.scales_inputs and picked.there:
            x = self._on_rows(x, picked, part.scaled(self._rows(x, picked), picked))
        out = self.base_layer(x, *given, **named)
        if self.scales_inputs or not picked.there:
            return out
        if part.lora:
            added = part.added(self._rows(x, picked), picked).to(out.dtype)
            return out + added if picked.rows is None else out.index_add(0, picked.rows, added)
        return self._on_rows(out, picked, part.scaled(self._rows(out, picked), picked))

    @staticmethod
    def _rows(x: torch.Tensor, picked: Picked) -> torch.Tensor:
        return x if picked.rows is None else x[picked.rows]

    @staticmethod
    def _on_rows(x: torch.Tensor, picked: Picked, changed: torch.Tensor) -> torch.Tensor:
        return changed if picked.rows is None else x.index_copy(0, picked.rows, changed)

    def merge(self, *given: Any, **named: Any) -> None:
        """Refused: which modulator is taken depends on the input."""
        raise UserError("A pool of modulators can't be merged into the base's weights: each input takes another one. Keep it "
                        "beside the base, or use --method lora.")


class PooledModel(LayerTuner):
    """The seam for `Pooled`, which holds the keys for all layers."""

    prefix: str = "pooled_"
    tuner_layer_cls = Pooled
    pooled_keys: nn.ModuleDict

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        assert isinstance(config, PooledConfig)
        inner: Any = model
        asked = inner.get_encoder() if inner.config.is_encoder_decoder else inner.base_model
        self.pooled_keys = nn.ModuleDict({adapter_name: Keys(config, asked)})

    def _create_and_replace(self, peft_config: PeftConfig, adapter_name: str, target: nn.Module, target_name: str,
                            parent: nn.Module, current_key: str, parameter_name: str | None = None) -> None:
        assert isinstance(peft_config, PooledConfig)
        keys = self.pooled_keys[adapter_name]
        assert isinstance(keys, Keys)
        made = Pooled(target, adapter_name, peft_config, next(self.model.parameters()), current_key, keys)
        made.train(target.training)
        setattr(parent, target_name, made)


register("LUTHIER_POOLED", PooledConfig, PooledModel)
