"""mera: several adapters to one of the same size, their neurons aligned by optimal transport before they are averaged.

At every site: W_down [m, in] with b_down, W_up [out, m] with b_up; for LoRA A and B. With adapter `anchor` as anchor and C
[m, m] the squared distances between neurons of adapter k and of the anchor, T = m · argmin <T, C>, T with uniform marginals;

    W_down,k <- T^T W_down,k     b_down,k <- T^T b_down,k     W_up,k <- W_up,k T     b_up,k as it is

and then the mean (or the sum) over all adapters. A neuron is what enters it (cost weights: its row of W_down, and its bias) or
what it says to texts (cost activations). Transport is exact with hungarian; sinkhorn spreads it, the more the larger `entropy`
x mean C.

When it helps: adapters of related tasks, each from a start of its own, as the start of a tune with few rows. Source: He et al.
2023, "MerA: merging pretrained adapters for few-shot learning", section 3 (seed 177); the same for LoRA is ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.identity import hash_file
from luthier.core.kinds import WeightRule

if TYPE_CHECKING:
    import torch

    from luthier.core.step import Ctx

DOWN, UP = ("down", "lora_A"), ("up", "lora_B")
SITE = re.compile(rf"(.*)\.({'|'.join(DOWN + UP)})\.(weight|bias)$")
SINKHORN_ROUNDS = 2000


class Mera(WeightRule, name="mera", seeds=[177]):
    """One adapter from several, neuron by neuron."""

    models: ClassVar[tuple[int, int]] = (2, 1 << 16)
    heads: ClassVar[Literal["merged", "kept", "dropped"]] = "dropped"  # those of other tasks
    align: Literal["transport", "none"] = Field("transport", description="whether neurons are brought into one order first")
    how: Literal["average", "sum"] = Field("average", description="what is made of the aligned adapters")
    cost: Literal["weights", "activations"] = Field("weights", description="by what neurons are told from one another")
    texts: str = Field("", description="a file of plain text, a text a line, for cost=activations")
    solver: Literal["hungarian", "sinkhorn"] = Field("hungarian", description="exact assignment, or one that spreads")
    entropy: float = Field(0.01, gt=0, description="how far sinkhorn spreads, as a share of the mean cost")
    anchor: int = Field(0, ge=0, description="which adapter keeps its order, counted from 0")

    @property
    def reads(self) -> Literal["weights", "adapter"]:
        return "adapter"

    @property
    def roles(self) -> tuple[str, ...]:
        return ("models",) if self.cost == "activations" and self.align == "transport" else ()

    def check(self, models: int) -> None:
        if self.anchor >= models:
            raise UserError(f"mera: anchor = {self.anchor}, and there are {models} adapters, counted from 0.")
        if self.cost == "activations" and not Path(self.texts).expanduser().is_file():
            raise UserError(f"mera: cost = activations needs a file of texts, one a line: texts=FILE; found {self.texts!r}.")
        if self.texts and self.cost != "activations":
            raise UserError("mera: cost = weights reads no texts. Leave out texts, or set cost=activations.")

    def content(self) -> dict[str, Any]:
        return {"texts": hash_file(Path(self.texts).expanduser())} if self.texts else {}

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        """The tensors of one site together.

        Raises:
            UserError: an adapter without pairs of down and up.
        """
        sites: dict[str, list[str]] = {}
        for name in names:
            found = SITE.match(name)
            sites.setdefault(found[1] if found else name, []).append(name)
        if not any(_parts(group) for group in sites.values()):
            raise UserError(f"mera merges bottleneck adapters and LoRA; this adapter has neither (first tensor: {names[0]}).")
        return list(sites.values())

    def statistics(self, ctx: Ctx) -> list[dict[str, torch.Tensor]]:
        """What every neuron says to the texts, [m, tokens] by the name of its W_down, for each adapter; nothing else."""
        if not self.roles:
            return []
        texts = [t for t in Path(self.texts).expanduser().read_text(encoding="utf-8").splitlines() if t.strip()]
        if not texts:
            raise UserError(f"mera: {self.texts} has no text.")
        return [_said(model, texts) for model in ctx.roles["models"]]

    def apply(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any
              ) -> dict[str, torch.Tensor]:
        """In float32; tensors that belong to no site are averaged as they are."""
        parts = _parts(group)
        given = [{n: t[n].float() for n in group} for t in tensors]
        if parts and self.align == "transport":
            anchor = given[self.anchor]
            given = [m if m is anchor else self._aligned(parts, m, k, anchor, stats) for k, m in enumerate(given)]
        share = len(given) if self.how == "average" else 1
        return {n: sum((m[n] for m in given[1:]), given[0][n].clone()) / share for n in group}

    def _aligned(self, parts: Mapping[str, str], own: dict[str, torch.Tensor], number: int, anchor: dict[str, torch.Tensor],
                 stats: Any) -> dict[str, torch.Tensor]:
        import torch

        down, up, bias = parts["down.weight"], parts["up.weight"], parts.get("down.bias")
        if self.cost == "activations":
            one, two = stats[number][down], stats[self.anchor][down]
        else:
            one, two = (torch.cat([m[down], m[bias][:, None]], 1) if bias else m[down] for m in (own, anchor))
        plan = transport(torch.cdist(one.double(), two.double()).square(), self.solver, self.entropy).float()
        return {**own, down: plan.T @ own[down], up: own[up] @ plan, **({bias: plan.T @ own[bias]} if bias else {})}


def _parts(group: Sequence[str]) -> dict[str, str]:
    """Names by `down.weight`, `up.weight`, … where the group is a site with both."""
    found = {f"{'down' if m[2] in DOWN else 'up'}.{m[3]}": n for n in group if (m := SITE.match(n))}
    return found if {"down.weight", "up.weight"} <= found.keys() else {}


def transport(cost: torch.Tensor, solver: str, entropy: float) -> torch.Tensor:
    """T [m, m] with rows and columns that sum to 1, from costs [m, m] in float64."""
    import torch
    from scipy.optimize import linear_sum_assignment

    if solver == "hungarian":
        rows, columns = linear_sum_assignment(cost.numpy())
        plan = torch.zeros_like(cost)
        plan[torch.from_numpy(rows), torch.from_numpy(columns)] = 1.0
        return plan
    scaled = -cost / (entropy * cost.mean().clamp(min=1e-300))
    for _ in range(SINKHORN_ROUNDS):
        scaled = scaled - scaled.logsumexp(1, keepdim=True)
        scaled = scaled - scaled.logsumexp(0, keepdim=True)
    return scaled.exp()


def _said(model: Any, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """[m, tokens] outputs of every down layer over all texts, by its name in the adapter's file."""
    import torch

    found: dict[str, list[torch.Tensor]] = {}

    def watch(name: str) -> Any:
        def add(module: Any, inputs: Any, output: torch.Tensor) -> None:
            found.setdefault(name, []).append(output.detach().float().reshape(-1, output.shape[-1]))

        return add

    layers = {f"{n.removesuffix('.default')}.weight": m for n, m in model.module.named_modules()
              if isinstance(m, torch.nn.Linear) and n.removesuffix(".default").rsplit(".", 1)[-1] in DOWN}
    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            for text in texts:
                ids = torch.tensor([model.tokenizer(text)["input_ids"][:model.limit]])
                extra = {"decoder_input_ids": ids} if model.architecture == "encoder-decoder" else {}
                model.module(input_ids=ids, **extra)
    finally:
        for hook in hooks:
            hook.remove()
    return {n: torch.cat(pieces).T for n, pieces in found.items()}
