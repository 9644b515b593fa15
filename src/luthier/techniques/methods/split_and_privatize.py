"""Split-and-privatize: the vendor tunes most of a model on texts that it never sees.

The customer holds the embedding and `layer` layers, frozen, replaces each token by x' = argmin_v ||phi(x) + z - phi(v)|| with
p(z) ~ exp(-eta ||z||), z in R^d, and sends what the bottom makes of x' (`engine/splitting.py`). The vendor's part is tuned by
`method` on that. For any two tokens, P[x1 -> y] <= exp(eta ||phi(x1) - phi(x2)||) P[x2 -> y]. A useful eta depends on d and on
the table: `change` finds the one at which that share of the training tokens, averaged over all, is replaced.

Contributing tokens (`cti`): of the token types of the training rows the best `cti_top` share, by their score for the task, are
left as they are (`protect`) or get less noise (`scale`: eta_high = eta x `cti_scale`). That takes the guarantee from them:
whoever reads the message can tell them. Scores are the mean of |gradient . embedding|, chi-square, or, with n_tc of the N_c
tokens of class c being t, of V,

    max over c of (log (n_tc + 1)/(N_c + V) - log (n_t,other + 1)/(N_other + V)) x sqrt(documents with t)

When it helps: fine-tuning as a service. The list of protected tokens is made of private labels: it lies in the customer's file
beside the adapter, and use of the tuned model draws the very noise of training. Noise is drawn from the seed and the text: who
knows the seed can try texts out, so that in earnest it is drawn from a secret (`key_variable`).

Both sides sit in this process, or the vendor's in another one (`luthier vendor`) whose address is `vendor`: then nothing of
its part is here, it is tuned there by the vendor's own method, and what is left here is an empty delta with head and customer's
file.
Source: Shen, Liu et al. 2023, arXiv 2312.15603 (seed 2).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.files import read_json, write_json
from luthier.core.identity import digest
from luthier.core.kinds import Default, Hook, Method
from luthier.core.rng import Rng
from luthier.core.step import FitCtx
from luthier.techniques.methods._contributing import by_gradient, by_labels, texts_of
from luthier.techniques.methods._customer import Customer

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model
    from luthier.engine.splitting import Split

FILE = "customer.json"
SAMPLE = 2000  # token occurrences by which `change` finds eta


class SplitAndPrivatize(Method, name="split-and-privatize", seeds=[2]):
    """Tune the upper part of a model on privatised tokens."""

    method: Slot[Method] = Field(named("lora:rank=8"), description="how the vendor tunes its part; one that leaves an adapter")
    layer: int = Field(0, ge=0, description="layers that the customer holds beside the embedding")
    eta: float | None = Field(None, gt=0, description="privacy parameter; smaller is more private")
    change: float | None = Field(0.3, gt=0, lt=1, description="share of the tokens to be replaced, which says eta; null where "
                                                              "eta is given, or without noise")
    cti: Literal["off", "protect", "scale", "random"] = Field("off", description="less noise for tokens that the task needs: "
                                                              "none (protect), less (scale), or as many drawn ones (random)")
    cti_top: float = Field(0.05, ge=0, le=1, description="share of the token types of the rows that are protected")
    cti_score: Literal["log-odds", "chi-square", "gradient"] = Field("log-odds",
                                                                     description="what says that the task needs one")
    cti_scale: float = Field(10.0, gt=1, description="eta of protected tokens is this many times as high, with cti: scale")
    key_variable: str = Field("", description="environment variable with the customer's secret that noise is drawn from; the "
                                              "run's seed if empty, which a vendor may know")
    each_epoch: bool = Field(False, description="draw anew in each epoch, which spends the privacy budget as often")
    labels: Literal["customer", "vendor"] = Field("customer", description="who holds them, and with them head and loss")
    vendor: str = Field("", description="address of a vendor in another process, http:// or https://; in this process if empty")
    token_variable: str = Field("", description="environment variable with the token that the vendor asks for; none if empty")

    @property
    def artifact(self) -> Literal["adapter", "delta", "model"]:  # type: ignore[override]
        """An adapter; where the vendor keeps it nothing of the model moves here, and an empty delta says so."""
        return "delta" if self.vendor else "adapter"

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        """Raises UserError for a layer that there is not, eta and change together, or a method that leaves no adapter."""
        from luthier.engine.splitting import upper

        if self.eta is not None and self.change is not None:
            raise UserError("split-and-privatize: eta and change are both given; change finds an eta. Set one to null.")
        if self.method.artifact != "adapter":
            name, kind = self.method.info.name, self.method.artifact
            raise UserError(f"split-and-privatize: method '{name}' leaves a {kind}; the vendor's "
                            "part is an adapter, such as lora.")
        try:
            if not self.vendor:
                model = upper(model, self.layer, self.method, ctx)
            else:
                if self.cti != "off" and self.cti_score == "gradient":
                    raise UserError("cti_score: gradient needs gradients at the embedding, and over HTTP none comes down to "
                                    "the border. Use log-odds or chi-square.")
                model.module.requires_grad_(False)
                model.border = self._border(model)
                model.packing = (model.module, False)  # noise is of a text: rows of one pack can't be told apart
        except UserError as error:
            raise UserError(f"split-and-privatize: {error}") from None
        head = model.module.get_output_embeddings() if hasattr(model.module, "get_output_embeddings") else None
        if ctx is not None and head is not None and head.weight is model.module.get_input_embeddings().weight:
            ctx.log("split-and-privatize: the vocabulary head shares the embedding table: the vendor holds it too, and anybody "
                    "who reads a message can look for the nearest token")
        return model

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        """Raises UserError for a change that can't be reached."""
        from luthier.engine.splitting import eta_for, neighbour_distance

        table, special, legal = _table(model)
        texts = [ids for ids, _ in texts_of(ctx)]
        protected = self._protected(model, ctx, table, special)
        eta = self.eta
        if self.change is not None:
            drawn = [i for ids in texts for i in ids if i not in special]
            drawn = [drawn[i] for i in ctx.rng("sample").permutation(len(drawn))[:SAMPLE]]
            fixed = protected[drawn] if protected is not None and self.cti != "scale" else None
            eta = eta_for(self.change, drawn, table, legal, ctx.rng("eta"), fixed)
        count = 0 if protected is None else int(protected.sum())
        if eta is not None:
            apart = neighbour_distance(table, legal, {i for ids in texts for i in ids if i not in special})
            ctx.log(f"split-and-privatize: eta {eta:.4g}, noise of about {table.shape[1] / eta:.3g} against {apart:.3g} to the "
                    f"nearest other token (median); {count} token types protected")
        state = {"eta": eta, "seed": ctx.rng.seed, "scope": ctx.rng.within(f"privatize{self._secret(ctx)}").scope,
                 "protected": [] if protected is None else protected.nonzero()[:, 0].tolist()}
        self._draw(model, state)
        assert model.border is not None
        hook = Hook() if self.vendor else self.method.start(model, ctx)
        return Customer(hook, model.border, state, ctx, self.each_epoch)

    def finish(self, model: Model, hook: Hook) -> None:
        assert isinstance(hook, Customer)
        hook.split.round = 0  # use draws what the first epoch drew
        wire = hook.split.wire
        kinds = sorted({f"{m['direction']}: {n} ({t[0]})" for m in wire.messages for n, t in m["tensors"].items()})
        hook.ctx.log(f"split-and-privatize: {wire.count} messages, {wire.bytes / 1e6:.1f} MB: {', '.join(kinds)}")
        if hook.split.far:
            hook.split.far.line.end()
            hook.split.far.requires_grad_(False)
        else:
            self.method.finish(model, hook.inner)

    def keep(self, model: Model, folder: Path) -> None:
        """The customer's file: eta, the generator's name, protected tokens."""
        split = model.border
        assert split is not None
        known = split.privatizer
        write_json(folder / FILE, {
            "eta": known.eta if known else None, "seed": known.rng.seed if known else 0,
            "scope": known.rng.scope if known else "",
            "protected": known.protected.nonzero()[:, 0].tolist() if known and known.protected is not None else []})

    def attach(self, model: Model, folder: Path) -> None:
        self._draw(model, read_json(folder / FILE))

    def loadable(self) -> None:
        if not self.vendor:
            self.method.loadable()

    def parameter_groups(self, model: Model) -> list[dict[str, Any]]:
        return super().parameter_groups(model) if self.vendor else self.method.parameter_groups(model)

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return self.method.defaults(model, rows)

    def _secret(self, ctx: FitCtx) -> str:
        """A digest of the customer's secret. Raises UserError where the variable that should hold it does not."""
        if not self.key_variable:
            ctx.log("split-and-privatize: noise is drawn from the run's seed; for real texts name a secret (key_variable)")
            return ""
        secret = os.environ.get(self.key_variable)
        if not secret:
            raise UserError(f"split-and-privatize: key_variable: {self.key_variable} is not set; it holds the secret.")
        return f"/{digest(secret)}"

    def _border(self, model: Model) -> Split:
        from luthier.engine.far import Far, Line
        from luthier.engine.splitting import Split

        far = Far(Line(self.vendor, self.token_variable)) if self.vendor else None
        return Split(model, self.layer, None, self.labels, far=far)

    def _draw(self, model: Model, state: dict[str, Any]) -> None:
        """Put the customer's noise, where there is any, at the border; from then on a far vendor is sent to."""
        import torch

        from luthier.engine.splitting import Privatizer

        model.packing = (model.module, False)
        model.border = model.border or self._border(model)
        if state["eta"] is not None:
            table, special, _ = _table(model)
            protected = None
            if self.cti != "off":
                protected = torch.zeros(len(table), dtype=torch.bool)
                protected[torch.tensor(state["protected"], dtype=torch.long)] = True
            high = state["eta"] * self.cti_scale if self.cti == "scale" else float("inf")
            model.border.privatizer = Privatizer(table, special, state["eta"], Rng(state["seed"], state["scope"]),
                                                   protected, high)
        if model.border.far:
            model.border.far.open()

    def _protected(self, model: Model, ctx: FitCtx, table: torch.Tensor, special: frozenset[int]) -> torch.Tensor | None:
        """[vocabulary] the token types that the task needs most; as many drawn ones for cti: random."""
        import torch

        if self.cti == "off":
            return None
        texts = texts_of(ctx)
        if self.cti_score == "gradient":
            scores = by_gradient(model, ctx)
        elif all(label is None for _, label in texts):
            raise UserError(f"split-and-privatize: cti_score: {self.cti_score} counts labels, and the rows have none. Use "
                            "cti_score: gradient.")
        else:
            scores = by_labels(texts, len(table), self.cti_score)
        scores = {t: s for t, s in scores.items() if t not in special}
        order = sorted(scores, key=lambda t: (-scores[t], t))
        count = round(self.cti_top * len(order))
        if self.cti == "random":
            order = [order[i] for i in ctx.rng("random tokens").permutation(len(order))]
        chosen = torch.zeros(len(table), dtype=torch.bool)
        chosen[torch.tensor(order[:count], dtype=torch.long)] = True
        return chosen


def _table(model: Model) -> tuple[torch.Tensor, frozenset[int], torch.Tensor]:
    """phi [vocabulary, d] in float32, ids that are never touched, and [vocabulary] which may be produced."""
    import torch

    table = model.module.get_input_embeddings().weight.detach().float()
    special = frozenset(int(i) for i in model.tokenizer.all_special_ids)
    # Rows beyond the tokenizer stand for no token; producing one would tell that it was replaced.
    size = len(model.tokenizer)
    special |= frozenset(range(size, len(table)))
    return table, special, torch.tensor([i not in special for i in range(len(table))])
