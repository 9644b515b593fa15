"""Learning to modulate: a pool of small modulators with learned keys; each input takes the one whose key it is most like.

    h_i = W x + (alpha / rank) B_j A_j x,   j = argmax_j cos(q_i, k_j),   q_i = mean embedded input of row i

The base stays frozen, and a training on a further task (`begin`: the adapter that the last one left) takes entries that no
earlier one used, so that what these say is not touched; nobody has to name a task afterwards. The objective `l2m` pulls keys to
their rows. With `modulator=ia3` vectors scale keys, values and what is within the MLP. An entry may be given (`entry`, the
oracle), and the first `reserved` ones stand for what the base knows: where their key wins nothing is modulated, to the bit.

When it helps: tasks that come one after another and look different. Two tasks whose inputs look alike are taken for one. It
can't be merged. Source: Schmied et al. 2023, arXiv 2306.14884 (seed 129).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.core.errors import UserError
from luthier.core.kinds import Default, Hook, Method
from luthier.core.step import FitCtx
from luthier.techniques.methods._shared import linear_names, require_rank, targeted, wrap

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.models import Model

QUERIES, KEYS = ("q_proj", "query", "q", "q_lin"), ("k_proj", "key", "k", "k_lin")
VALUES, FUSED = ("v_proj", "value", "v", "v_lin"), ("c_attn",)
UP = ("up_proj", "c_fc", "fc1", "wi", "wi_0", "lin1", "intermediate.dense", "dense_h_to_4h")
DOWN = ("down_proj", "mlp.c_proj", "fc2", "wo", "lin2", "output.dense", "dense_4h_to_h")


class L2M(Method, name="l2m", seeds=[129]):
    """A pool of LoRAs or IA3 vectors, one a row, chosen by its inputs."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "adapter"
    pool_size: int = Field(30, ge=1, description="entries of the pool")
    modulator: Literal["lora", "ia3"] = Field("lora", description="what an entry is")
    rank: int = Field(8, ge=1, description="rank of a LoRA")
    alpha: float = Field(16, gt=0, description="a LoRA is scaled by alpha / rank")
    target: str | tuple[str, ...] = Field("auto", description="auto: queries, values and the MLP's first layer, of ia3 keys, "
                                                              "values and the MLP's last layer; all-linear, or names of layers")
    query: Literal["mean-embedding"] = Field("mean-embedding", description="what keys are compared with")
    count_penalty: bool = Field(True, description="entries that earlier trainings used are avoided while training")
    key_rate: float | None = Field(None, gt=0, description="learning rate of the keys; that of the training if left out")
    reserved: int = Field(0, ge=0, description="the first entries, which stand for what the base knows and modulate nothing")
    entry: int | None = Field(None, ge=0, description="rows of the first task of this training take this entry, those of each "
                                                         "further one the next (the oracle)")

    @model_validator(mode="after")
    def _within(self) -> L2M:
        if self.entry is not None and self.entry >= self.pool_size:
            raise ValueError(f"entry = {self.entry}, and the pool has {self.pool_size}; legal are 0 to {self.pool_size - 1}")
        if self.reserved >= self.pool_size and self.entry is None:
            raise ValueError(f"reserved = {self.reserved} of pool_size = {self.pool_size} leaves no entry that modulates")
        return self

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        from luthier.techniques.methods._pooled import PooledConfig

        targets = self._targets(model)
        if self.modulator == "lora":
            require_rank("l2m", self.rank, targets)
        before = [n for n in targets if _called(n, DOWN)] if self.modulator == "ia3" else []
        fused = [n for n in targets if _called(n, FUSED)] if self.modulator == "ia3" else []
        return wrap(model, PooledConfig(target_modules=list(targets), modulator=self.modulator, entries=self.pool_size,
                                        reserved=self.reserved, rank=self.rank, alpha=self.alpha, before=before, fused=fused))

    def _targets(self, model: Model) -> dict[str, tuple[int, int]]:
        if self.target != "auto":
            return targeted("l2m", model, self.target)
        places = (*QUERIES, *VALUES, *FUSED, *UP) if self.modulator == "lora" else (*KEYS, *VALUES, *FUSED, *DOWN)
        names = linear_names(model)
        found = {n: names[n] for n in sorted(names) if _called(n, places)}
        return found or targeted("l2m", model, tuple(places))

    def parameter_groups(self, model: Model) -> list[dict[str, Any]]:
        """Modulators, and keys, which have a learning rate of their own where `key_rate` says so."""
        from luthier.engine import routing

        [whole] = super().parameter_groups(model)
        if self.key_rate is None:
            return [whole]
        keys = {id(p) for p in routing.chooser(model).parameters()}
        return [{"params": [p for p in whole["params"] if id(p) not in keys]},
                {"params": [p for p in whole["params"] if id(p) in keys], "lr": self.key_rate}]

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        return Pool(self, model, ctx)

    def finish(self, model: Model, hook: Hook) -> None:
        assert isinstance(hook, Pool)
        hook.keys.takes = hook.keys.inverse = None

    def loadable(self) -> None:
        from luthier.techniques.methods import _pooled  # noqa: F401  (importing registers)

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(1e-3, "house default for small adapters; sweep it on dev")}


def _called(name: str, places: tuple[str, ...]) -> bool:
    """Whether a layer's name ends with one of these; BERT's attention has an `output.dense`, too."""
    return any(f".{name}".endswith(f".{place}") for place in places) and not name.endswith("attention.output.dense")


class Pool(Hook):
    """Counts which entries rows take. What earlier trainings took counts against an entry until this one is over."""

    def __init__(self, method: L2M, model: Model, ctx: FitCtx) -> None:
        from luthier.engine import routing

        self.keys: Any = routing.chooser(model)
        if self.keys is None:
            raise UserError("l2m: the model has no pool.")
        self.taken: dict[str, int] = {}
        if method.entry is not None:
            self._give(method, ctx)
        elif method.count_penalty:
            self.keys.penalise()
            free = int((self.keys.counts[method.reserved:] == 0).sum())
            if self.keys.inverse is not None and not free:
                ctx.log(f"WARNING: all {method.pool_size} entries are used: pool_size is below the number of tasks, and this "
                        "one will change what an earlier one has learned. Begin with a larger pool_size.")

    def _give(self, method: L2M, ctx: FitCtx) -> None:
        """Entries by the task whose rows are read."""
        assert ctx.rows is not None and method.entry is not None
        loop, first = ctx.rows.loop, method.entry
        names = [task.name for task in loop.tasks]
        if first + len(names) > method.pool_size:
            raise UserError(f"l2m: entry = {first} and {len(names)} tasks go beyond pool_size = {method.pool_size}.")
        # Whoever looks at the layers before training reads no task.
        self.keys.takes = lambda: first + (names.index(loop.run.task) if loop.run.task in names else 0)

    def on_loss(self, run: Forward, batch: Any, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        from luthier.engine.batches import TokenBatch

        for name, part in batch.items():
            if isinstance(part, TokenBatch):
                likeness, chosen = self.keys.likeness(part)
                run.measure(likeness=likeness)
                # By row: a step that begins again for want of memory counts no row twice.
                self.taken |= {f"{run.task}/{row}/{name}": entry
                               for row, entry in zip(batch["ids"], chosen.tolist(), strict=True)}
        return parts

    def on_step(self) -> None:
        from luthier.engine import distributed

        rows = list(self.taken.values())
        counted = distributed.summed({str(j): rows.count(j) for j in range(len(self.keys.counts))})
        for entry, count in counted.items():
            self.keys.counts[int(entry)] += int(count)
        self.taken = {}

    def state_dict(self) -> dict[str, Any]:
        """The counts; the loop keeps trained weights only."""
        return {"counts": self.keys.counts.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.keys.counts.copy_(state["counts"])
