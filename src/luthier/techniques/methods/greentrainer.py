"""GreenTrainer: the tensors that lower the loss most for what their gradients cost, chosen anew every few epochs.

    max over m in {0,1}^N of sum_k m_k I_k   with   forward + backward(m) <= rho (FLOPs of full tuning)
    I_k = - sum(g1_k dw_k) / max |I|:   dw the move of one step of the optimizer from w0, g1 the gradient at w0 + dw

A tensor near the input is dear: the gradient must travel through all that lies above it (`_budget.py`). The choice is made by
dynamic programming from the output side. Weights and the optimizer's states are put back, bit for bit, after a round's
importance is known, and moments of a tensor that rests are kept. `cost=plan` charges the deepest trained tensor for a gradient
that it does not send on, and so spends less than rho; `cost=exact` does not.

When it helps: full tuning is wanted and its FLOPs are not there; LoRA still sends gradients down to the first layer. What was
moved is left as a delta. Source: Huang et al. 2023, arXiv 2309.13192 (seed 15).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.files import write_json
from luthier.core.kinds import Default, Hook, Method
from luthier.core.step import FitCtx

if TYPE_CHECKING:
    import torch

    from luthier.engine.batches import Batch
    from luthier.engine.models import Model
    from luthier.techniques.methods._budget import Costs

JOULES_IN_KWH = 3.6e6


class GreenTrainer(Method, name="greentrainer", seeds=[15]):
    """Full tuning of the tensors that are worth it."""

    artifact: ClassVar[Literal["adapter", "delta", "model"]] = "delta"
    rho: float = Field(0.5, gt=0, le=1, description="share of the FLOPs of full tuning that a step may take")
    interval: int = Field(2, ge=1, description="epochs between two choices")
    cost: Literal["plan", "exact"] = Field("plan", description="exact: the deepest trained tensor sends no gradient on")
    joules_per_gflop: float = Field(0.02, gt=0, description="for the estimate of energy: joules of 1e9 FLOPs")
    grams_per_kwh: float = Field(400, ge=0, description="for the estimate of CO2: grams of a kWh")
    control: bool = Field(False, description="a random importance instead: equal FLOPs, no choice")

    def prepare(self, model: Model, ctx: FitCtx) -> Model:
        from luthier.techniques.methods._budget import costs

        known = {c.name for c in costs("greentrainer", model, [8], 8).tensors}
        for name, parameter in model.module.named_parameters():
            parameter.requires_grad_(name in known)
        return model

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        return Green(self, model, ctx)

    def finish(self, model: Model, hook: Hook) -> None:
        """All tensors that ever moved are left, and `greentrainer.json` beside them."""
        assert isinstance(hook, Green)
        hook.tell()
        for name, parameter in hook.weights.items():
            parameter.requires_grad_(name in hook.ever)

    def parameter_groups(self, model: Model) -> list[dict[str, Any]]:
        """All tensors: those that rest have no gradient, and keep their moments."""
        from luthier.techniques.methods._budget import costs

        own = dict(model.module.named_parameters())
        return [{"params": [own[c.name] for c in costs("greentrainer", model, [8], 8).tensors]}]

    def planned(self, model: Model, rows: int, tokens: int, learned: int) -> dict[str, Any]:
        from luthier.techniques.methods._budget import costs

        found = costs("greentrainer", model, [max(1, tokens // rows)] * rows, learned)
        return {"rho": self.rho, "smallest rho": round(found.least, 3)}

    def defaults(self, model: Model, rows: int) -> dict[str, Default]:
        return {"learning_rate": Default(2e-5, "Huang et al. 2023: 2e-5")}


class Green(Hook):
    """Chooses at the first step and between rounds; `rounds` says what was chosen, `ever` what was moved."""

    def __init__(self, method: GreenTrainer, model: Model, ctx: FitCtx) -> None:
        from luthier.engine import distributed

        self.method, self.model, self.ctx, self.rows = method, model, ctx, ctx.rows
        assert self.rows is not None and ctx.clock is not None
        self.loop, self.clock = self.rows.loop, ctx.clock
        if distributed.ranks() > 1 or len(self.loop.tasks) > 1:
            raise UserError("greentrainer chooses in one process and for one task. Start it without a launcher, or use lora.")
        self.weights = dict(model.module.named_parameters())
        self.names = [name for name, p in self.weights.items() if p.requires_grad]
        self.ever: set[str] = set()
        self.rounds: list[dict[str, Any]] = []

    # --- when ------------------------------------------------------------------------------------------------------

    def on_gradients(self) -> None:
        """The first choice; the gradients at hand are kept for what was chosen."""
        if self.clock.step:
            return
        masters = self.loop.masters
        gradients = masters.taken()
        self._choose(0)
        masters.add([g if p.requires_grad else None for g, (p, _) in zip(gradients, masters.pairs, strict=True)])

    def on_step(self) -> None:
        """The next choice, after a round's last step."""
        done = self.clock.step + 1
        if done % (self.method.interval * self.loop.per_epoch) == 0 and done < self.clock.steps:
            self._choose(done)

    def on_batch(self, batch: Any) -> list[Any]:
        """As it comes. Whoever may change batches has no states of frozen layers kept: what rests may be trained again."""
        return [batch]

    def _batch(self) -> Batch:
        """The rows that a round's importance is asked of: a draw of its own."""
        from luthier.engine.loop import rows_at

        assert self.rows is not None
        rng = self.ctx.rng.within("greentrainer")
        return self.rows.batch(rows_at(rng, len(self.rounds), len(self.rows), self.rows.per_batch))

    # --- what ------------------------------------------------------------------------------------------------------

    def _choose(self, step: int) -> None:
        """What is trained from this step on."""
        from luthier.techniques.methods._budget import LEAST_SHARE, within

        batch, before = self._batch(), self.clock.tokens
        found = self._costs(batch)
        share, exact = found.share(self.method.rho), self.method.cost == "exact"
        if share < LEAST_SHARE:
            if not self.rounds:
                self.ctx.log(f"greentrainer: rho = {self.method.rho:g} is below {found.least:.2f}, the least that the forward "
                             "leaves anything of; it is raised to that")
            share = LEAST_SHARE
        importance = self._importance(batch, self._reachable(found, share, exact))
        gains = [importance.get(c.name, 0.0) for c in found.tensors]
        chosen = within(found, gains, share, exact)
        if not any(chosen):
            # Nothing lowers the loss to first order: the best of what can be paid moves all the same.
            rank = sorted(range(len(gains)), key=lambda k: (found.of([i == k for i in range(len(gains))], exact)
                                                            > share * found.backward, -gains[k]))
            chosen = [k == rank[0] for k in range(len(gains))]
        names = [c.name for c, m in zip(found.tensors, chosen, strict=True) if m]
        for name in self.names:
            self.weights[name].requires_grad_(name in set(names))
        self.ever |= set(names)
        full = found.forward + found.backward
        planned, measured = found.forward + found.of(chosen, exact), self._measured(batch)
        self.rounds.append({"step": step, "trained": names, "planned": planned, "measured": measured, "full": full,
                            "tokens of the choice": self.clock.tokens - before})
        self.ctx.log(f"greentrainer: {len(names)} of {len(self.names)} tensors; planned {planned / full:.2f} of full tuning's "
                     f"{full / 1e9:.2f} GFLOP a batch, measured {measured / 1e9:.2f} GFLOP")

    def _costs(self, batch: Batch) -> Costs:
        from luthier.engine.batches import TokenBatch, lengths_of
        from luthier.techniques.methods._budget import costs

        learned = sum(int(part.targets.sum()) for part in batch.values() if isinstance(part, TokenBatch))
        again = bool(self.ctx.journal.values.get("activation_checkpointing"))
        return costs("greentrainer", self.model, lengths_of(batch), learned, 1 + again)

    def _reachable(self, found: Costs, share: float, exact: bool) -> set[str]:
        """The tensors whose gradient could be paid for if they alone were trained."""
        sums, names = found.always, set()
        for cost in reversed(found.tensors):
            sums += 0.0 if exact else cost.dy
            if sums <= share * found.backward:
                names.add(cost.name)
            sums += cost.dy if exact else 0.0
        return names

    def _importance(self, batch: Batch, names: set[str]) -> dict[str, float]:
        """-sum(g1 dw), divided by the largest; weights and optimizer are afterwards as they were."""
        closure, optimizer, masters = self.ctx.closure, self.loop.torch_optimizer, self.loop.masters
        assert closure is not None
        if self.method.control:
            return {n: float(self.ctx.rng("greentrainer/control", f"{len(self.rounds)}/{n}").uniform(0.0, 1.0)) for n in names}
        for name in self.names:
            self.weights[name].requires_grad_(name in names)
        kept = Kept(optimizer, masters.tensors(), self.loop.rates)
        masters.drop()
        closure([batch], rng="/importance")
        optimizer.step()
        masters.spread()
        moves = [m.detach() - w for m, w in zip(masters.tensors(), kept.weights, strict=True)]
        masters.drop()
        gradients: list[torch.Tensor] = []
        closure([batch], rng="/importance", into=gradients)
        kept.restore()
        masters.spread()
        of = {id(p): n for n, p in self.weights.items()}
        found = {of[id(p)]: -float((g * d).sum()) for (p, _), g, d in zip(masters.pairs, gradients, moves, strict=True)
                 if id(p) in of and of[id(p)] in names}
        largest = max((abs(v) for v in found.values()), default=0.0) or 1.0
        return {n: v / largest for n, v in found.items()}

    def _measured(self, batch: Batch) -> float:
        """FLOPs of a forward and backward of what is chosen now, as torch counts them."""
        from torch.utils.flop_counter import FlopCounterMode

        assert self.ctx.closure is not None
        with FlopCounterMode(display=False) as counter:
            self.ctx.closure([batch], rng="/measured", into=[])
        return float(counter.get_total_flops())

    def tell(self) -> None:
        """What was chosen, what it took, and about how much energy."""
        if not self.rounds:
            return
        ends = [*(r["step"] for r in self.rounds[1:]), self.clock.step]
        steps = [end - r["step"] for r, end in zip(self.rounds, ends, strict=True)]
        flop = sum(r["measured"] * s for r, s in zip(self.rounds, steps, strict=True))
        full = sum(r["full"] * s for r, s in zip(self.rounds, steps, strict=True))
        extra = sum(2 * r["full"] + r["measured"] for r in self.rounds)  # importance, and the measuring itself
        joules = (flop + extra) / 1e9 * self.method.joules_per_gflop
        write_json(self.ctx.folder / "greentrainer.json", {
            "rounds": self.rounds, "flop": flop, "choosing_flop_at_most": extra, "full_flop": full,
            "estimated": {"joules": joules, "grams_co2": joules / JOULES_IN_KWH * self.method.grams_per_kwh}})
        self.ctx.log(f"greentrainer: about {flop / 1e12:.3g} TFLOP, full tuning {full / 1e12:.3g}; choosing took at most "
                     f"{extra / 1e12:.3g} more; estimated {joules:.3g} J")

    def state_dict(self) -> dict[str, Any]:
        return {"ever": sorted(self.ever), "rounds": self.rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ever, self.rounds = set(state["ever"]), list(state["rounds"])


class Kept:
    """Weights and optimizer as they are now, with peak learning rates until they are put back."""

    def __init__(self, optimizer: torch.optim.Optimizer, weights: Sequence[torch.Tensor], rates: Sequence[float]) -> None:
        self.optimizer, self.tensors = optimizer, weights
        self.weights = [w.detach().clone() for w in weights]
        self.states = {p: {k: v.clone() if hasattr(v, "clone") else v for k, v in state.items()}
                       for p, state in optimizer.state.items()}
        self.rates = [group["lr"] for group in optimizer.param_groups]
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def restore(self) -> None:
        """Bit for bit."""
        import torch

        with torch.no_grad():
            for tensor, was in zip(self.tensors, self.weights, strict=True):
                tensor.copy_(was)
        self.optimizer.state.clear()
        self.optimizer.state.update(self.states)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate
