"""component-change, bias-change: how far tuning moved each part of the model, by two measures that may order parts differently.

    change = 1/n · ||θ - θ0||_1 (the mean over entries)                 relative = ||θ - θ0||_2 / ||θ0||_2

θ and θ0 are one tensor after and before, an adapter merged. `component-change` has a bar for each component: what stands at
one place of every layer, weights and biases apart (its name without the layer's number), as the mean over layers. Embeddings,
last norms and poolers are components of their own. `bias-change` looks at bias terms alone, at each by its `change`, and tells
the mean of each layer. A tensor of zeros has no relative change. Heads that the base did not have are left out.

When it helps: to choose what to train next; after full tuning the largest movers are what a small method should hold. Sources:
ValizadehAslani & Liang 2024, "LayerNorm", arXiv 2403.20284, section 3 (seed 39); Ben Zaken et al. 2021, "BitFit", arXiv
2106.10199, section 4 (seed 153).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.files import write_lines
from luthier.core.finding import Finding, not_applicable
from luthier.core.kinds import Audit
from luthier.core.step import Ctx
from luthier.engine.subjects import Subject
from luthier.techniques.evaluation._tunes import loaded, tensors_of, weighed

if TYPE_CHECKING:
    import torch

TENSORS, COMPONENTS, LAYERS = "tensors.jsonl", "components.jsonl", "layers.jsonl"
LAYER = re.compile(r"(?<=\.)(\d+)(?=\.)")  # the first number of a name: that of its layer
SHOWN = 30  # bars of a report, largest first


class _Change(Audit):
    """Both audits: a line a tensor in `tensors.jsonl`, and what a class of this family tells of them."""

    battery: ClassVar[bool] = False
    terms: tuple[str, ...] = Field((), description="only tensors whose name contains one of these; all when left out")

    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """`audit/NAME`.

        Raises:
            UserError: data alone, a base in 4 bits, a learned prompt, models whose tensors differ in name or shape, numbers
                that are not finite, or no tensor of the names in `terms`.
        """
        name = f"audit/{self.info.name}"
        if subject.base is None and subject.tuned is None:
            raise UserError("There is no model here, only data. Name a run or a model folder: luthier audit RUN.")
        if subject.tuned is None:
            return [not_applicable(name, "the change is zero: nothing was tuned")]
        before, after = _sides(ctx, subject)
        meant = {n: after[n] for n in after if self.means(n)}
        if not meant:
            return [not_applicable(name, "this model has no bias terms")]
        chosen = {n: t for n, t in meant.items() if not self.terms or any(term in n for term in self.terms)}
        if not chosen:
            raise UserError(f"{self.info.name}: no tensor is called {', '.join(self.terms)}. This model has: "
                            f"{', '.join(sorted({component_of(n).rpartition('*.')[2] for n in meant}))}.")
        rows = [{"name": n, "component": component_of(n), "layer": layer_of(n), **moved(before[n], t)}
                for n, t in chosen.items()]
        write_lines(ctx.folder / TENSORS, rows)
        if not any(r["change"] for r in rows):
            return [not_applicable(name, f"the change is zero: none of {len(rows)} tensors has moved")]
        return [self.told(ctx, rows)]

    def means(self, name: str) -> bool:
        """Whether a tensor is looked at."""
        return True

    def told(self, ctx: Ctx, rows: Sequence[Mapping[str, Any]]) -> Finding:
        """The finding, from a row a tensor."""
        raise NotImplementedError


class ComponentChange(_Change, name="component-change", seeds=[39]):
    """How far each kind of tensor moved, averaged over layers."""

    mends: ClassVar[tuple[str, ...]] = ("method layernorm", "method bitfit")
    max_relative: float | None = Field(None, gt=0, description="most that a component may move, of its own size; no limit if "
                                                               "left out")

    def told(self, ctx: Ctx, rows: Sequence[Mapping[str, Any]]) -> Finding:
        parts = grouped(rows, "component")
        write_lines(ctx.folder / COMPONENTS, ({"name": n, **found} for n, found in parts.items()))
        sized = {n: p for n, p in parts.items() if p["relative"] is not None}
        by_size = max(sized, key=lambda n: sized[n]["relative"], default="")
        by_mean = max(parts, key=lambda n: parts[n]["change"])
        most = sized[by_size]["relative"] if by_size else 0.0
        drawn = sorted(parts, key=lambda n: -parts[n]["change"])[:SHOWN]
        return weighed("audit/component-change", most, self.max_relative, unit="of its size", evidence=COMPONENTS,
                       title="largest relative change of a component",
                       detail=f"{by_size or 'none has a size'}; by the mean over entries {by_mean} with "
                              f"{parts[by_mean]['change']:.3g}; {len(parts)} components, {len(rows)} tensors",
                       components=len(parts), most_relative=by_size, most_change=by_mean,
                       bars={"title": f"Change by component, {len(drawn)} of {len(parts)}", "head": [
                           "component", "mean over entries", "of its size"], "rows": [
                           [n, parts[n]["change"], parts[n]["relative"]] for n in drawn]})


class BiasChange(_Change, name="bias-change", seeds=[153]):
    """How far each bias term moved."""

    mends: ClassVar[tuple[str, ...]] = ("method bitfit",)
    max_change: float | None = Field(None, gt=0, description="most that a bias term may move on average; no limit if left out")

    def means(self, name: str) -> bool:
        return name.endswith("bias")

    def told(self, ctx: Ctx, rows: Sequence[Mapping[str, Any]]) -> Finding:
        layers = grouped(rows, "layer")
        write_lines(ctx.folder / LAYERS, ({"name": n or "outside of layers", **found} for n, found in layers.items()))
        kinds = grouped(rows, "component")
        worst = max(rows, key=lambda r: r["change"])
        each = ", ".join(f"{n or 'outside of layers'} {found['change']:.3g}" for n, found in layers.items())
        ranked = sorted(kinds, key=lambda n: -kinds[n]["change"])
        return weighed("audit/bias-change", worst["change"], self.max_change, unit="an entry", evidence=TENSORS,
                       title="largest change of a bias term", detail=f"{worst['name']}; by layer: {each}", tensors=len(rows),
                       most=ranked[0],
                       bars={"title": f"Change of bias terms, {len(ranked[:SHOWN])} of {len(ranked)} kinds", "head": [
                           "bias", "mean over entries"], "rows": [[n, kinds[n]["change"]] for n in ranked[:SHOWN]]})


def component_of(name: str) -> str:
    """A tensor's name with * for the number of its layer: the same for every layer."""
    return LAYER.sub("*", name, count=1)


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to, such as `encoder.layer.3`; "" for embeddings, last norms and poolers."""
    found = LAYER.search(name)
    return name[:found.end()] if found else ""


def moved(before: torch.Tensor, after: torch.Tensor) -> dict[str, float | None]:
    """`change` and `relative` of one tensor."""
    delta, size = (after - before).double(), float(before.double().norm())
    return {"change": float(delta.abs().mean()), "relative": float(delta.norm()) / size if size else None}


def grouped(rows: Iterable[Mapping[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    """Means of both measures over the tensors of equal `key`, and how many there are, in the order of the model."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    made: dict[str, dict[str, Any]] = {}
    for name, found in groups.items():
        sized = [r["relative"] for r in found if r["relative"] is not None]
        made[name] = {"change": sum(r["change"] for r in found) / len(found),
                      "relative": sum(sized) / len(sized) if sized else None, "tensors": len(found)}
    return made


def _sides(ctx: Ctx, subject: Subject) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """All tensors before and after tuning, float32, by name; heads are left out."""
    import torch

    root = subject.base or subject.tuned
    assert root is not None and subject.tuned is not None
    if root.meta.get("quantize", "none") != "none":
        raise UserError(f"{root.meta['name']} is held in 4 bits, whose rounding hides what tuning changed. Name the base "
                        "without quantize.")
    before, after = ({n: t for n, t in tensors_of(loaded(ctx, *pair)).items() if not n.startswith("heads/")}
                     for pair in ((subject.reference or root, None), (root, subject.tuned)))
    other = [f"{n} {tuple(before[n].shape) if n in before else 'missing'} against {tuple(t.shape)}" for n, t in after.items()
             if n not in before or before[n].shape != t.shape]
    if other:
        raise UserError(f"The two models can't be compared: {len(other)} tensors differ in name or shape, first {other[0]}. "
                        "Name the base that the model was tuned from: --base. What a learned prompt or a new module adds has "
                        "nothing to be compared with.")
    if lost := [n for n, t in after.items() if not bool(torch.isfinite(t).all() and torch.isfinite(before[n]).all())]:
        raise UserError(f"{lost[0]} holds numbers that are not finite. Tune again with a lower rate.")
    return before, after
