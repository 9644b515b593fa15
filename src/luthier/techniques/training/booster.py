"""Booster: align a model so that one step on rows against its policy would gain little.

With f the loss of the alignment rows, h that of a batch of violating pairs and g = ∇h(w),

    minimise  f(w) + lam · [ h(w) - h(w - alpha g / |g|) ]
    gradient  ∇f(w) + lam · [ ∇h(w) - ∇h(w - alpha g / |g|) ]            the Jacobian of the normalised step is left out

|g| is taken over all trained weights. Violating batches are drawn apart from the alignment's; both passes over one have the
same dropout. The weights are put back by their own bits. A step costs two more forwards and backwards.

The bracket bounds what a step gains, not h: it is small, too, where h is already low, and then nothing is defended. So the
curve shows h, what a step leaves of it and the bracket, and the end of a training says when the bracket fell with h alone;
refusals must be looked at in any case (`luthier audit --audit refusals`, `refusal-erosion`). Violating pairs are meant to
be harmless placeholders of one's own policy (docs/policies.md). lam = 0 is plain alignment.

When it helps: an aligned model that others will tune. Source: Huang et al. 2024, arXiv 2409.01586 (seed 162).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Hook, Regularizer
from luthier.core.step import FitCtx

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.models import Model

VIOLATIONS = "violations"
GUARD = 1e-7  # added to |g|
FELL = 0.5  # a bracket below this share of its first is said to have fallen
NAMED_ROWS = 5


class Booster(Regularizer, name="booster", seeds=[162]):
    """Make the first step against a policy gain little."""

    data: str = Field("examples.violations", description="INPUT.SUBSET or INPUT.SUBSET:FILE with the violating pairs")
    held_out: tuple[str, ...] = Field((), description="INPUT.SUBSET of requests that the policy is tested with; no pair may "
                                                      "ask what one of them asks")
    lam: float = Field(5.0, ge=0, description="weight of the bracket; 0 leaves it out")
    alpha: float = Field(0.1, gt=0, description="length of the step that is looked ahead")
    batch: int = Field(10, ge=1, description="violating pairs in an optimizer step")

    def streams(self) -> dict[str, str]:
        return {VIOLATIONS: self.data} if self.lam else {}

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        """Raises UserError where a violating pair asks what the policy is tested with."""
        if not self.lam:
            return Hook()
        tested = {said for name in self.held_out for said in _asked(ctx, name)}
        seen = _asked(ctx, self.data) if tested else {}
        shared = [seen[said] for said in seen if said in tested]
        if shared:
            rows = ", ".join(shared[:NAMED_ROWS]) + (" …" if shared[NAMED_ROWS:] else "")
            raise UserError(f"booster: {len(shared)} rows of {self.data} ask what a request of {', '.join(self.held_out)} "
                            f"asks: {rows}. A test that was trained on is none; take them out of one of the two.")
        return Ahead(self, ctx)

    def finish(self, model: Model, hook: Hook) -> None:
        if isinstance(hook, Ahead):
            hook.tell()


def _asked(ctx: FitCtx, name: str) -> dict[str, str]:
    """Request of a row of INPUT.SUBSET or INPUT.SUBSET:FILE, in plain form -> its id."""
    from luthier.engine.encoding import of_file

    rows = of_file(ctx.stream(name.partition(":")[0]), name)
    return {" ".join(" ".join(t.text for t in row.turns if not t.target).casefold().split()): row.id for row in rows}


class Ahead(Hook):
    """Adds the bracket's gradient once an optimizer step."""

    def __init__(self, spec: Booster, ctx: FitCtx) -> None:
        assert ctx.rows is not None and ctx.clock is not None
        self.spec, self.ctx, self.clock = spec, ctx, ctx.clock
        self.rows, self.rng = ctx.rows.of(VIOLATIONS), ctx.rng.within("booster")
        self.run: Forward | None = None
        self.first: list[float] = []  # h and the bracket of the first step, and of the last one
        self.last: list[float] = []
        self.skipped = 0

    def on_loss(self, run: Forward, batch: Any, parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.run = run
        return parts

    def on_gradients(self) -> None:
        """∇f is there; leave ∇f + lam (∇h - ∇h ahead)."""
        from luthier.engine.loop import rows_at

        closure, perturbed = self.ctx.closure, self.ctx.perturbed
        assert closure is not None and perturbed is not None
        batch = self.rows.batch(rows_at(self.rng, self.clock.step, len(self.rows), self.spec.batch))
        aligning: list[torch.Tensor] = []
        here: list[torch.Tensor] = []
        ahead: list[torch.Tensor] = []
        closure([], into=aligning)
        h = sum(closure([batch], rng="/booster", into=here).values())
        norm = sum(float(g.square().sum()) for g in here) ** 0.5
        if not norm:
            self.skipped += 1
            closure([], plus=aligning)
            self._note(h, h)
            return
        with perturbed([-self.spec.alpha / (norm + GUARD) * g for g in here]):
            after = sum(closure([batch], rng="/booster", into=ahead).values())
        closure([], plus=[f + self.spec.lam * (g - other) for f, g, other in zip(aligning, here, ahead, strict=True)])
        self._note(h, after)

    def _note(self, h: float, after: float) -> None:
        import torch

        self.last = [h, h - after]
        self.first = self.first or self.last
        if self.run is not None:
            self.run.measure(h=torch.tensor([h]), h_ahead=torch.tensor([after]), bracket=torch.tensor([h - after]))

    def tell(self) -> None:
        """What the end of the training says."""
        if self.skipped:
            self.ctx.log(f"booster: in {self.skipped} steps the violating pairs had no gradient; nothing was added there")
        if not self.first:
            return
        (h, drop), (h_now, drop_now) = self.first, self.last
        if drop > 0 and drop_now < FELL * drop and drop_now * h >= FELL * drop * h_now:
            self.ctx.log(f"booster: the bracket fell from {drop:.3g} to {drop_now:.3g}, but so did h, from {h:.3g} to "
                         f"{h_now:.3g}: the violating answers have become likely, which is no defence. Look at refusals; raise "
                         "learning_rate or epochs of the alignment, or lower lam")

    def state_dict(self) -> dict[str, Any]:
        return {"first": self.first, "last": self.last, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first, self.last, self.skipped = state["first"], state["last"], state["skipped"]
