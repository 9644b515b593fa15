"""model-soup: the average of tunes of one model; which of them, and how much of each, is chosen on held-out rows.

    uniform   W = 1/k · sum_i W_i
    greedy    models by held-out score, best first; S = {}; i joins S where score(mean(S + {i})) >= score(mean(S)); W = mean(S)
    learned   min over a, b of CE(b · f(x; sum_i s_i W_i), y), s = softmax(a), from equal shares and b = 1; W = sum_i s_i W_i

The greedy soup starts from the best model and is never worse than it on the held-out rows. b only calibrates and is left
out of W; it stays 1 where the vocabulary head is the embedding. Tunes must start from the same weights, heads included (a
linear probe first): else a barrier lies between them, and what is lost to it is told. In memory are one model and a tensor;
learned holds all models.

LoRA: `merged` averages what adapters make of the base and leaves a full model. The others leave an adapter: `exact`, B =
[s_1 B_1 … s_k B_k] and A = [A_1; …; A_k], the same soup with rank k·r; `svd`, the nearest one of rank r; `factors`, A and B
averaged apart, which is no soup and the cheapest. When it helps: several runs that were paid for already, one model to serve.
Source: Wortsman et al. 2022, "Model soups", arXiv 2203.05482, sections 2 and 4 (seed 44).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.component import Slot, build, named
from luthier.core.errors import UserError
from luthier.core.identity import hash_file
from luthier.core.kinds import Decoder, Metric, Objective, Prediction, WeightRule
from luthier.techniques.weights._rows import Asked, read_rows
from luthier.techniques.weights._souping import fill, learn, unit_of

if TYPE_CHECKING:
    import torch

    from luthier.core.example import Example
    from luthier.core.step import Ctx
    from luthier.engine.models import Model
    from luthier.engine.tensors import Spec

SITE = re.compile(r"(.*)\.lora_(?:embedding_)?([AB])(?:\.weight)?$")
BARRIER = 0.1  # share of its members' mean score that a soup loses where they hardly lie in one basin


class ModelSoup(WeightRule, name="model-soup", seeds=[44]):
    """One model from several tunes of the same start."""

    heads: ClassVar[Literal["merged", "kept", "dropped"]] = "merged"
    kind: Literal["uniform", "greedy", "learned"] = Field("uniform", description="all, those that help, or learned shares")
    val: str = Field("", description="held-out JSON lines: text and label, or question and answer; for greedy and learned")
    metric: Slot[Metric] = Field(named("accuracy"), description="what soups are judged by; exact-match or f1 for answers")
    decoder: Slot[Decoder] = Field(named("greedy"), description="how answers to held-out questions are written")
    lora: Literal["merged", "exact", "svd", "factors"] = Field("merged", description="a full model, or which adapter")
    per_layer: bool = Field(False, description="learned: shares of their own for each numbered layer")
    objective: Slot[Objective] | None = Field(None, description="learned: what is lowered; classify or supervised if left out")
    learning_rate: float = Field(0.1, gt=0, description="learned: of AdamW on the shares")
    epochs: int = Field(3, ge=1, description="learned: passes over the held-out rows")
    decay: float = Field(0.0, ge=0, description="learned: weight decay")
    batch_rows: int = Field(32, ge=1, description="learned: rows of a step")
    max_tokens: int = Field(512, ge=8, description="learned: longest row in tokens")
    force: bool = Field(False, description="merge tunes of different bases or tokenizers, where shapes allow it")

    @property
    def reads(self) -> Literal["weights", "adapter"]:
        return "weights" if self.lora == "merged" else "adapter"

    @property
    def roles(self) -> tuple[str, ...]:
        return ("model",) if self.val else ()

    @property
    def forces(self) -> bool:
        return self.force

    def check(self, models: int) -> None:
        if self.kind != "uniform" and not self.val:
            raise UserError(f"model-soup: kind={self.kind} is chosen on held-out rows: val=FILE, JSON lines with text and "
                            "label or with question and answer. Without any: kind=uniform.")
        if self.metric.roles:
            raise UserError(f"model-soup: metric={self.metric.info.name} asks further models ({', '.join(self.metric.roles)}). "
                            "Take one that compares answers, such as accuracy or f1.")
        if self.per_layer and self.kind != "learned":
            raise UserError("model-soup: per_layer is for kind=learned alone. Leave it out.")
        if self.val:
            read_rows(self.val, "model-soup", "val")

    def content(self) -> dict[str, Any]:
        return {"val": hash_file(Path(self.val).expanduser())} if self.val else {}

    def groups(self, names: Sequence[str]) -> list[list[str]]:
        """A and B of a site together, where adapters are joined.

        Raises:
            UserError: adapters of another form than LoRA.
        """
        if self.reads == "weights" or any(not n.startswith("base_model.") for n in names):
            return super().groups(names)
        sites: dict[str, list[str]] = {}
        for name in names:
            found = SITE.match(name)
            sites.setdefault(found[1] if found else name, []).append(name)
        strange = next((n for n in names if "magnitude" in n), "") or ("" if any(map(_pair, sites.values())) else names[0])
        if strange:
            raise UserError(f"model-soup: lora={self.lora} joins plain LoRA; this adapter holds {strange}. Use lora=merged.")
        return list(sites.values())

    def statistics(self, ctx: Ctx) -> dict[str, Any]:
        """`shares` of the models by unit ("" for all others), and how they were found."""
        count = len(next(iter(ctx.stream("weights")))[1])
        if count == 1:
            ctx.log("model-soup: one model, so the soup is that model")
        if self.lora == "factors":
            ctx.log("model-soup: lora=factors averages A and B apart: not the average of what the adapters do (lora=exact is)")
        equal = [1 / count] * count
        if not self.val:
            return {"shares": {"": equal}}
        model, rows = ctx.roles["model"], read_rows(self.val, "model-soup", "val")
        if hasattr(model.module, "merge_and_unload"):
            model.module = model.module.merge_and_unload()
        if not model.heads and rows[0].label is not None:
            raise UserError(f"model-soup: {self.val} has labels, and these models have no head. Give questions with answers.")

        def score(members: Sequence[int]) -> float:
            shares = [(i in members) / len(members) for i in range(count)]
            return float(ctx.journal.do(f"score {sorted(members)}", lambda: self._score(ctx, model, rows, shares)))

        single = [score([i]) for i in range(count)]
        if self.kind == "learned":
            return {**self._learn(ctx, model, rows, count), "single": single}
        if self.kind == "uniform":
            members, trail = list(range(count)), [_tried(ctx, range(count), single, score(range(count)))]
        else:
            members, trail = self._greedy(ctx, single, score)
        return {"shares": {"": [(i in members) / len(members) for i in range(count)]}, "single": single, "trail": trail}

    def _greedy(self, ctx: Ctx, single: Sequence[float], score: Any) -> tuple[list[int], list[dict[str, Any]]]:
        """Members in the order in which they joined, and every soup that was tried; ties join."""
        way = 1 if type(self.metric).higher_is_better else -1
        order = sorted(range(len(single)), key=lambda i: -way * single[i])
        members, best, trail = order[:1], single[order[0]], [{"members": order[:1], "score": single[order[0]], "kept": True}]
        for i in order[1:]:
            found = score([*members, i])
            kept = way * found >= way * best
            trail.append({**_tried(ctx, [*members, i], single, found, way), "kept": kept})
            if kept:
                members, best = [*members, i], found
        return members, trail

    def _score(self, ctx: Ctx, model: Model, rows: Sequence[Example], shares: Sequence[float]) -> float:
        """The held-out score of a soup."""
        from luthier.core.artifact import Artifact
        from luthier.engine.classification import classify
        from luthier.engine.rendering import renderer

        fill(model, ctx, shares)
        if model.heads:
            asked = Artifact("model", ctx.folder, {"heads": model.head_specs, "template": model.template}, model.identity)
            said = classify(model, asked, rows, ctx)
        else:
            render = renderer(model)
            made = ctx.engine.generate(model, [render.prompt(e) for e in rows], self.decoder, rng=ctx.rng.within("val"),
                                       stop_ids=render.stop_ids)
            said = [Prediction(e.id, text=g.text, stopped=g.stopped, tokens=g.tokens) for e, g in zip(rows, made, strict=True)]
        found = self.metric.reduce(self.metric.score(rows, said, ctx))
        if found != found:
            raise UserError(f"model-soup: metric={self.metric.info.name} says nothing of the rows of {self.val}. "
                            "Take accuracy for labels, exact-match or f1 for answers.")
        return found

    def _learn(self, ctx: Ctx, model: Model, rows: list[Example], count: int) -> dict[str, Any]:
        objective = self.objective or build("objective", "classify" if model.heads else "supervised")
        asked = Asked(model, rows, objective, ctx.rng, self.batch_rows, self.max_tokens)
        found: dict[str, Any] = ctx.journal.do("learned", lambda: learn(
            model, ctx, count, asked, self.per_layer, self.learning_rate, self.epochs, self.decay))
        return found

    def _shares(self, name: str, stats: Any) -> list[float]:
        shares: dict[str, list[float]] = stats["shares"]
        return shares.get(unit_of(name), shares[""])

    def specs(self, group: Sequence[str], given: Mapping[str, Spec], stats: Any) -> dict[str, Spec]:
        """As given; of an exact soup A [members · r, in] and B [out, members · r]."""
        from luthier.engine.tensors import Spec

        pair, made = _pair(group), {n: given[n] for n in group}
        if pair and self.lora == "exact":
            count = sum(s > 0 for s in self._shares(group[0], stats))
            for side, name in pair.items():
                rows, columns = given[name].shape
                made[name] = Spec(given[name].dtype, (rows * count, columns) if side == "A" else (rows, columns * count))
        return made

    def apply(self, group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any
              ) -> dict[str, torch.Tensor]:
        """In float32."""
        import torch

        pairs = [(s, t) for s, t in zip(self._shares(group[0], stats), tensors, strict=True) if s > 0]
        made = {n: sum((t[n].float() * s for s, t in pairs[1:]), pairs[0][1][n].float() * pairs[0][0]) for n in group}
        if (pair := _pair(group)) and self.lora in ("exact", "svd"):
            a = torch.cat([t[pair["A"]].float() for _, t in pairs], 0)
            b = torch.cat([t[pair["B"]].float() * s for s, t in pairs], 1)
            if self.lora == "svd":
                u, sizes, v = torch.linalg.svd(b @ a, full_matrices=False)
                rank = tensors[0][pair["A"]].shape[0]
                # Fewer than r directions where a layer is smaller than r: the rest of the form stays 0.
                b, a = (torch.zeros_like(tensors[0][pair[side]], dtype=torch.float32) for side in "BA")
                roots = sizes[:rank].sqrt()
                b[:, :len(roots)], a[:len(roots)] = u[:, :rank] * roots, roots[:, None] * v[:rank]
            made |= {pair["A"]: a, pair["B"]: b}
        return made

    def form(self, config: dict[str, Any], stats: Any) -> dict[str, Any]:
        """Of an exact soup the rank grows, and alpha so that alpha / r (or its root) stays."""
        if self.lora != "exact":
            return config
        count = sum(s > 0 for s in stats["shares"][""])
        more = count ** 0.5 if config.get("use_rslora") else count
        return {**config, "r": config["r"] * count, "lora_alpha": config["lora_alpha"] * more,
                "rank_pattern": {n: r * count for n, r in (config.get("rank_pattern") or {}).items()},
                "alpha_pattern": {n: a * more for n, a in (config.get("alpha_pattern") or {}).items()}}

    def summary(self, stats: Any) -> dict[str, Any]:
        """`soup`: shares, scores of single models, and soups in the order in which they were tried."""
        return {"soup": stats}


def _pair(group: Sequence[str]) -> dict[str, str]:
    """Names by A and B, where the group is a site of LoRA."""
    found = {m[2]: n for n in group if (m := SITE.match(n))}
    return found if len(found) == 2 else {}


def _tried(ctx: Ctx, members: Sequence[int], single: Sequence[float], found: float, way: int = 1) -> dict[str, Any]:
    """A soup for the record; what it loses against its members' mean is said where that is much."""
    mean = sum(single[i] for i in members) / len(members)
    fell = way * (mean - found)
    if fell > BARRIER * abs(mean):
        ctx.log(f"model-soup: models {[i + 1 for i in members]} score {found:.4g} together and {mean:.4g} on average alone: "
                "not the same start (heads included)? A barrier lies between them; luthier audit --audit basin shows it")
    return {"members": list(members), "score": found, "barrier": fell}
