"""SMART: predictions that hold when embeddings move a little, and steps that stay near the model before them.

    L + weight · 1/n sum_i max_{|x' - x_i| <= eps} l(f(x'), f(x_i))  +  mu · 1/n sum_i l(f(x_i; θ), f(x_i; θ~))

x [tokens, width] are embedded words, l is KL(P||Q) + KL(Q||P) (of one number the squared difference), n counts rows, or the
learned tokens of a language model. Inner steps go uphill from x' = x + sigma·noise: x' <- the ball around x of
x' + eta g / |g|, g the gradient of l; x' is then a constant, and gradients reach both f(x') and f(x). θ~ are the weights an
outer iteration began with or, with one step to it, their mean: θ~ <- beta θ~ + (1 - beta) θ, beta_late after a tenth.

    scheme     eps                  sigma   eta     x'
    ball       radius · rms of x    eps/10  eps     projected
    paper      1e-5                 1e-5    1e-3    projected: of most models too little to be seen
    released   -                    1e-5    1e-3    (sigma·noise + eta g), divided by its largest entry in each token

`released` is what the authors' code does (there on what the embedding layer makes of the words): a random move of length 1.
Norm 2 bounds the root mean square of a row's move by eps. `direction: random` draws g. Further passes have no dropout unless
`dropout: train`, and draw nothing that another part of the training draws.

When it helps: few rows, and a model that overfits. Source: Jiang et al. 2019, arXiv 1911.03437 (seed 68).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from luthier.core.kinds import Hook, Regularizer
from luthier.core.step import FitCtx
from luthier.techniques.training._passes import (
    apart,
    divergence,
    embedded,
    embedding_rms,
    noise,
    normal,
    predicted,
    require_embeds,
    sequence_of,
    units,
)

if TYPE_CHECKING:
    import torch

    from luthier.engine.batches import TokenBatch
    from luthier.engine.forward import Forward
    from luthier.engine.models import Model

TINY = 1e-30
EARLY = 0.1  # share of the steps with `beta`


class Smart(Regularizer, name="smart", seeds=[68]):
    """Smooth predictions around each text, and small steps between models."""

    weight: float = Field(5.0, ge=0, description="of the smoothness; 0 leaves it out")
    mu: float = Field(1.0, ge=0, description="of the nearness to the model before; 0 leaves it out")
    scheme: Literal["ball", "paper", "released"] = Field("ball", description="how far embeddings move: see the file")
    radius: float = Field(0.05, gt=0, description="eps of scheme ball, in root mean squares of the embeddings")
    norm: Literal["inf", 2] = Field("inf", description="of the ball: inf for each number, 2 for a row's root mean square")
    steps: int = Field(1, ge=1, description="steps uphill")
    direction: Literal["gradient", "random"] = Field("gradient", description="where they go")
    dropout: Literal["none", "train"] = Field("none", description="in the further passes")
    beta: float = Field(0.99, ge=0, lt=1, description="share of the model before that stays, in the first tenth of the steps")
    beta_late: float = Field(0.999, ge=0, lt=1, description="the same afterwards")
    outer: int = Field(1, ge=1, description="optimizer steps to an outer iteration, which end in a new model before")

    def start(self, model: Model, ctx: FitCtx) -> Hook:
        """Raises UserError for a model that does not take embeddings."""
        if not (self.weight or self.mu):
            return Hook()
        require_embeds("smart", model)
        rms = embedding_rms(model)
        ball = Ball.of(self, rms)
        if self.scheme == "paper":
            ctx.log(f"smart: 1e-5 is {1e-5 / rms:.1e} root mean squares of the embeddings: the term is numerically nil. Use "
                    "scheme=ball")
        forwards = 1 + (self.steps + 1) * bool(self.weight) + bool(self.mu)
        ctx.log(f"smart: a step costs {forwards} forwards and {1 + self.steps * bool(self.weight)} backwards more; rms of the "
                f"embeddings {rms:.3g}")
        return Smooth(self, ball, rms, model, ctx)


@dataclass(frozen=True)
class Ball:
    """How embeddings move: within `eps` (None: they are brought to length 1 instead), from `sigma` noise, by `eta`."""

    eps: float | None
    sigma: float
    eta: float
    norm: Literal["inf", 2]

    @classmethod
    def of(cls, spec: Smart, rms: float) -> Ball:
        """The numbers of a scheme."""
        if spec.scheme == "ball":
            eps = spec.radius * rms
            return cls(eps, eps / 10, eps, spec.norm)
        return cls(1e-5 if spec.scheme == "paper" else None, 1e-5, 1e-3, spec.norm)

    def moved(self, delta: torch.Tensor, g: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The move [rows, tokens, width] after a step along g; `mask` [rows, tokens] has no padding."""
        if self.eps is None:
            delta = delta + self.eta * g
            return delta / (delta.abs().amax(-1, keepdim=True) + 1e-6)
        if self.norm == "inf":
            g = g / g.abs().amax((1, 2), keepdim=True).clamp(min=TINY)
            return (delta + self.eta * g).clamp(-self.eps, self.eps)
        numbers = (mask.sum(1) * g.shape[-1])[:, None, None]
        delta = delta + self.eta * g / _rms(g, numbers).clamp(min=TINY)
        return delta * (self.eps / _rms(delta, numbers).clamp(min=TINY)).clamp(max=1)


def _rms(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    return (x.square().sum((1, 2), keepdim=True) / numbers).sqrt()


class Smooth(Hook):
    """Adds the parts `smooth` and `proximal`; keeps θ~."""

    def __init__(self, spec: Smart, ball: Ball, rms: float, model: Model, ctx: FitCtx) -> None:
        assert ctx.clock is not None and ctx.perturbed is not None
        self.spec, self.ball, self.rms, self.ctx, self.clock = spec, ball, rms, ctx, ctx.clock
        self.rng, self.warned = ctx.rng.within("smart"), False
        parts = {"": model.module, **{f"{task}:": head for task, head in model.heads.items()}}
        self.weights = {f"{prefix}{n}": p for prefix, part in parts.items() for n, p in part.named_parameters()
                        if p.requires_grad} if spec.mu else {}
        self.before = {n: p.detach().float().clone() for n, p in self.weights.items()}

    def units(self, batch: Mapping[str, Any]) -> dict[str, float]:
        """Both parts are means over the units."""
        return dict.fromkeys(("smooth", "proximal"), float(units(sequence_of("smart", batch))))

    def on_loss(self, run: Forward, batch: Mapping[str, Any], parts: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        inputs, model = sequence_of("smart", batch), run.models["policy"]
        seed = self.rng.key("dropout", f"{self.clock.step}/{batch['ids'][0]}") if self.spec.dropout == "train" else None
        found = dict(parts)
        with apart(run, seed):
            x = embedded(model, inputs)
            clean = predicted(run, inputs, x)
            if self.spec.weight:
                moved = self.worst(run, batch, inputs, x.detach(), clean.detach())
                far = divergence(predicted(run, inputs, moved), clean)
                run.measure(smoothness=far)
                found["smooth"] = self.spec.weight * far.sum()
            if self.spec.mu:
                far = divergence(clean, self._before(run, inputs))
                run.measure(nearness=far)
                found["proximal"] = self.spec.mu * far.sum()
        return found

    def worst(self, run: Forward, batch: Mapping[str, Any], inputs: TokenBatch, x: torch.Tensor, clean: torch.Tensor
              ) -> torch.Tensor:
        """x' [rows, tokens, width]; rows without a finite gradient stay where they are."""
        import torch

        def drawn(name: str) -> torch.Tensor:
            return noise(normal, self.rng, name, self.clock.step, batch["ids"], x, inputs.mask)

        real = inputs.mask[:, :, None].to(torch.float32)
        delta = self.ball.sigma * drawn("noise")
        for step in range(self.spec.steps):
            g = drawn(f"direction/{step}") if self.spec.direction == "random" else \
                self.gradient(run, inputs, x, delta, clean) * real
            fine = torch.isfinite(g).all(-1).all(-1)[:, None, None]
            self._warn(bool(fine.all()), bool((g.abs().amax((1, 2)) > 0).all()))
            g = torch.where(fine, g, 0.0)
            delta = torch.where(fine, self.ball.moved(delta, g, inputs.mask), 0.0) * real
        run.measure(radius=delta.abs().amax((1, 2)) / self.rms)
        return (x.float() + delta).to(x.dtype)

    def gradient(self, run: Forward, inputs: TokenBatch, x: torch.Tensor, delta: torch.Tensor, clean: torch.Tensor
                 ) -> torch.Tensor:
        """d l(f(x + delta), f(x)) / d x' in float32, of every row by itself."""
        import torch

        with torch.enable_grad():
            at = (x.float() + delta).to(x.dtype).requires_grad_()
            found, = torch.autograd.grad(divergence(predicted(run, inputs, at), clean).sum(), at)
        return found.float()

    def _before(self, run: Forward, inputs: TokenBatch) -> torch.Tensor:
        """What the model with θ~ says. It is asked as the model itself is: without gradients some kernels round otherwise."""
        assert self.ctx.perturbed is not None
        moves = {p: self.before[n] - p.detach().float() for n, p in self.weights.items()}
        with self.ctx.perturbed(moves):
            return predicted(run, inputs, embedded(run.models["policy"], inputs)).detach()

    def on_step(self) -> None:
        """θ~ follows at the end of an outer iteration."""
        done = self.clock.step + 1
        if done % self.spec.outer == 0:
            beta = self.spec.beta if done <= EARLY * self.clock.steps else self.spec.beta_late
            for name, parameter in self.weights.items():
                self.before[name].lerp_(parameter.detach().float(), 1 - beta)

    def _warn(self, finite: bool, there: bool) -> None:
        if not (finite and there) and not self.warned:
            self.warned = True
            why = "is not finite: such rows are not moved" if not finite else "is 0: such rows are moved by noise alone"
            self.ctx.log(f"smart: step {self.clock.step + 1}: the gradient of some rows' embeddings {why}. Train in float32 "
                         "(--set tuned.dtype=float32), or use a larger radius")

    def state_dict(self) -> dict[str, Any]:
        return {"before": dict(self.before)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before = {n: t.to(self.weights[n].device).clone() for n, t in state["before"].items()}
