"""Prefix tuning: n learned keys and values before those of every attention; every weight of the model stays as it is.

    z = [PREFIX; x; y] in a decoder, [PREFIX; x | PREFIX'; y] in an encoder-decoder, whose cross-attention has a third one:
    2 x attentions x tokens x (key heads x head width) numbers

Directly trained, they begin as the keys and values that the frozen model makes of `text`, or of drawn tokens: far
steadier with little data than random ones. With `mlp_hidden` they are trained as P = W2 tanh(W1 P' + b1) + b2, P'
[tokens, width], which is thrown away in the end; with a text as well the MLP is fitted to its keys and values first.

When it helps: many small tasks on one frozen model, little data, topics that were not trained on. Source: Li & Liang
2021, arXiv 2101.00190 (seed 86); hidden sizes there 512 and 800, 10 to 200 tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from luthier.core.errors import UserError
from luthier.core.kinds import Default, Hook, Tokens
from luthier.core.step import FitCtx
from luthier.techniques.methods._prompts import Prompted
from luthier.techniques.methods._shared import wrap

if TYPE_CHECKING:
    from luthier.engine.models import Model

SITES = ("enc", "dec", "cross")


class PrefixTuning(Prompted, name="prefix-tuning", seeds=[86]):
    """Learned keys and values before those of every attention."""

    sites: str = Field("all", description="which attentions, joined by +: enc, dec, cross; all that the model has")
    mlp_hidden: int = Field(0, ge=0, description="hidden size of the MLP that makes them while training; 0: trained directly")

    @field_validator("sites")
    @classmethod
    def _known(cls, value: str) -> str:
        strange = [s for s in value.split("+") if s not in (*SITES, "all")]
        if strange or ("all" in value and value != "all"):
            raise ValueError(f"sites are {', '.join(SITES)}, joined by +, or all")
        return value

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        """Raises UserError for sites that the model does not have, and a model whose attention can't be reached."""
        import torch

        from luthier.techniques.methods import _prefixed

        there = _prefixed.sites_of(model, self.begin_as(model, ctx))
        wanted = SITES if self.sites == "all" else self.sites.split("+")
        if missing := [s for s in wanted if s not in {x.kind for x in there}] if self.sites != "all" else []:
            raise UserError(f"prefix-tuning: sites = {self.sites}, and {model.name}, of the kind {model.architecture}, has no "
                            f"{missing[0]} attention; it has {', '.join(dict.fromkeys(x.kind for x in there))}.")
        chosen = [x for x in there if x.kind in wanted]
        wrapped = wrap(model, _prefixed.PrefixConfig(
            target_modules=[x.name for x in chosen], tokens=self.tokens,  # type: ignore[arg-type]
            shapes={x.name: [x.heads, *x.widths] for x in chosen}, shift=model.architecture == "decoder"))
        layers = _prefixed.prefixed(wrapped.module)
        with torch.no_grad():
            for site in chosen:
                layers[site.name].prefix.keys.copy_(site.key)
                layers[site.name].prefix.values.copy_(site.value)
        if self.mlp_hidden:
            for kind in dict.fromkeys(x.kind for x in chosen):
                self._make([layers[x.name] for x in chosen if x.kind == kind], model)
        return wrapped

    def _make(self, layers: list[Any], model: Model) -> None:
        """An MLP in the place of the prefixes of one kind; what it gives takes the place of their own numbers."""
        import torch

        from luthier.techniques.methods._prefixed import Maker

        sizes = [x.prefix.keys.shape[1] + x.prefix.values.shape[1] for x in layers]
        like = layers[0].prefix.keys
        maker = Maker(self.tokens, model.width, self.mlp_hidden, sum(sizes), like)
        if self.text and not like.is_meta:
            maker.fit(torch.cat([torch.cat([x.prefix.keys, x.prefix.values], 1) for x in layers], 1).detach())
        layers[0].add_module("prefix_maker", maker)
        for n, layer in enumerate(layers):
            layer.made.append((maker, sum(sizes[:n])))
            layer.prefix.requires_grad_(False)

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        """Raises UserError for rows that leave no room for the prefix."""
        rows = ctx.rows.task.rows if ctx.rows else []
        longest = max((len(part.ids) for row in rows for part in row.values() if isinstance(part, Tokens)), default=0)
        if model.architecture == "decoder" and longest + self.tokens > model.limit:
            raise UserError(f"prefix-tuning: {self.tokens} tokens and the longest row's {longest} are more than the "
                            f"{model.limit} positions of {model.name}. Lower tokens or max_tokens_per_example.")
        return Hook()

    def finish(self, model: Model, hook: Hook) -> None:
        """Keep what the MLP gives, and drop it."""
        import torch

        from luthier.techniques.methods._prefixed import prefixed

        layers = prefixed(model.module).values()
        with torch.no_grad():
            for layer in layers:
                if layer.made:
                    for own, made in zip((layer.prefix.keys, layer.prefix.values), layer.table(), strict=True):
                        own.copy_(made.transpose(0, 1).flatten(1))
        for layer in layers:
            if layer.made:
                layer.made.clear()
                layer.prefix.requires_grad_(True)
                if hasattr(layer, "prefix_maker"):
                    del layer.prefix_maker

    def loadable(self) -> None:
        from luthier.techniques.methods import _prefixed  # noqa: F401  (importing registers)

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(1e-2, "house default for prefixes of small models (Li & Liang 2021: 5e-5 to 8e-5 with "
                                               "an MLP on GPT-2); sweep it on dev")}
