"""Evaluation while training: loss, measures and metrics on rows that are not trained on, and what follows from them.

An evaluation is due after each epoch or every so many steps, and after the last step. The best one so far is remembered;
too many in a row that are no better end the training. All of it is state that a checkpoint keeps, so a resumed training
stops where the uninterrupted one would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.core.component import build
from luthier.core.errors import UserError, nearest
from luthier.core.example import Example
from luthier.core.kinds import Objective, Prediction
from luthier.core.step import Ctx
from luthier.engine import distributed
from luthier.engine.batches import collate
from luthier.engine.encoding import Encoded
from luthier.engine.forward import Forward

if TYPE_CHECKING:
    from luthier.engine.loop import Clock
    from luthier.engine.rendering import Render
    from luthier.engine.steps.specs import ValidationSpec


@dataclass
class Metrics:
    """Metrics on the answers that the model in training gives to held-out examples."""

    spec: ValidationSpec
    examples: Sequence[Example]
    render: Render
    ctx: Ctx

    def __call__(self, run: Forward) -> dict[str, float]:
        """The number of each metric."""
        from luthier.engine.generation import generate

        model = run.models["policy"]
        asked = self.examples[:self.spec.metric_rows]
        said = [Prediction(e.id) for e in asked]
        if any(m.needs_answers for m in self.spec.metrics):
            made = generate({"policy": model}, [self.render.prompt(e) for e in asked], build("decoder", self.spec.decoder),
                            self.ctx.rng.within("validation"))
            said = [Prediction(e.id, text=g.text, stopped=g.stopped, tokens=g.tokens)
                    for e, g in zip(asked, made, strict=True)]
        ctx = Ctx(**{name: getattr(self.ctx, name) for name in Ctx.__dataclass_fields__})
        ctx.roles = {**run.models}
        return {m.info.name: m.reduce(m.score(asked, said, ctx)) for m in self.spec.metrics}


@dataclass
class Validation:
    """One task on held-out rows, by the forward that trains; calling it evaluates and judges.

    `best` and `best_step` are those of the best evaluation, `waited` counts the evaluations since then.
    """

    run: Forward
    task: str
    objective: Objective
    data: Encoded
    batch_rows: int
    spec: ValidationSpec
    metrics: Metrics | None = None
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    stopped: bool = False

    def due(self, clock: Clock, round_ended: bool) -> bool:
        """Whether to evaluate after this step."""
        at = round_ended if self.spec.every_steps is None else clock.step % self.spec.every_steps == 0
        return at or (self.spec.acts and clock.step == clock.steps)

    def __call__(self, step: int, judge: bool = True) -> dict[str, float]:
        """`dev_loss` (nats per learned unit over all rows) and whatever else is measured; judges it if asked to.

        Of a training in phases only the last is judged: what comes before is no model to keep.

        Raises:
            UserError: what is to decide is not among them.
        """
        found = {"loss": self._loss(), **self.run.take(), **(self.metrics(self.run) if self.metrics else {})}
        if self.spec.by not in found:
            raise UserError(f"validation.by = '{self.spec.by}' is not measured here. {nearest(self.spec.by, found)}")
        found = distributed.agreed(found)  # what is decided by it must be the same on every rank
        value = found[self.spec.by]
        if not judge:
            pass
        elif self._improves(value):
            self.best, self.best_step, self.waited = value, step, 0
        else:
            self.waited += 1
            self.stopped = self.spec.patience is not None and self.waited >= self.spec.patience
        return {f"dev_{name}": number for name, number in found.items()}

    def _loss(self) -> float:
        self.run.task = self.task
        self.run.take()  # what training measured
        model = self.run.models["policy"]
        total = count = 0.0
        for i in range(0, len(self.data.rows), self.batch_rows):
            batch = collate(self.data.rows[i:i + self.batch_rows], self.data.ids[i:i + self.batch_rows],
                            model.tokenizer.pad_token_id or 0, model.device)
            total += sum(float(p) for p in self.objective.loss(self.run, batch).values())
            count += sum(self.objective.count(batch).values())
        return total / max(count, 1)

    def _improves(self, value: float) -> bool:
        if math.isnan(value):
            return False
        gain = value - self.best if self.best is not None else math.inf
        return (gain if self.best is None or self._higher() else -gain) > self.spec.min_delta

    def _higher(self) -> bool:
        if self.spec.better != "auto":
            return self.spec.better == "higher"
        judging = [m for m in self.spec.metrics if m.info.name == self.spec.by]
        return judging[0].higher_is_better if judging else self.spec.by != "loss"

    def state_dict(self) -> dict[str, Any]:
        """What must be kept for a resume to be exact."""
        return {name: getattr(self, name) for name in ("best", "best_step", "waited", "stopped")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)

    def report(self) -> dict[str, Any]:
        """What the artifact's record says of it."""
        return {"by": self.spec.by, "best": self.best, "best_step": self.best_step, "stopped_early": self.stopped,
                "kept": self.spec.keep}
