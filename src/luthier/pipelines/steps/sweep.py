"""sweep: the learning rate of a training, chosen on dev.

Trials stand on a grid of the logarithm: the method's own rate d, d / F, d * F; then, one by one, a further F beyond the best
where it is the lowest or highest so far (the range is widened), else halfway, in the logarithm, between the best and the
better of its neighbours. The number of trials is fixed, so that every arm of a comparison is searched equally long.

A trial is the training itself at another rate, with the draws of the training that it chooses for, judged by the loss on
dev of the weights it leaves. A trial that diverges counts as infinite. No test row is read here. What the trials took
stands in the record as `fit`, to be charged apart from the training's own.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, seal
from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.files import read_lines, write_lines
from luthier.core.identity import digest
from luthier.core.step import Ctx, Step
from luthier.engine.encoding import subset
from luthier.engine.steps.fit import Fit

FEWEST = 3
LAST_ONLY = 2**31  # optimizer steps between evaluations: one, at the end


class Sweep(Step, name="sweep"):
    """Try learning rates of a training and judge them by the loss on dev."""

    inputs: ClassVar[dict[str, str]] = Fit.inputs
    output: ClassVar[str] = "records"
    fit: Slot[Step] = Field(named("fit"), description="the training whose learning rate is wanted")
    trials: int = Field(5, ge=FEWEST, description="trainings, whatever they find")
    factor: float = Field(10**0.5, gt=1, description="step of the grid")

    def check(self) -> None:
        """Refuse what is no training, has a rate already, or has no dev rows."""
        if not isinstance(self.fit, Fit):
            raise UserError(f"sweep: '{self.fit.info.name}' is no training; give fit: {{use: fit, …}}.")
        self.fit.check()
        if self.fit.learning_rate is not None:
            raise UserError(f"The training has a learning rate ({self.fit.learning_rate:g}), and a sweep is to choose one. "
                            "Leave it out, or leave out the sweep (compare: --learning-rate default).")
        if "validation" not in self.fit.streams:
            raise UserError("A sweep judges learning rates on dev: the training needs streams: {validation: INPUT.SUBSET}, "
                            "such as examples.dev. Without dev rows: compare --learning-rate default.")

    def content(self) -> dict[str, Any]:
        """What the training reads from outside."""
        return self.fit.content()

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Run the trials one after the other; a finished one is not run again. Raises UserError when all diverge."""
        tried: dict[float, float] = {}
        records: list[dict[str, Any]] = []
        for number in range(self.trials):
            rate = next_rate(tried, self.factor) if number else None
            record = ctx.journal.do(f"trial {number}", partial(self._trial, rate, inputs, ctx))
            records.append(record)
            tried[record["learning_rate"]] = math.inf if record["loss"] is None else record["loss"]
            told = "diverged" if record["loss"] is None else f"dev loss {record['loss']:.4f}"
            ctx.log(f"trial {number + 1} of {self.trials}: learning rate {record['learning_rate']:g}, {told}")
        best = min(tried, key=lambda r: (tried[r], r))
        if math.isinf(tried[best]):
            raise UserError(f"Every learning rate tried diverges ({', '.join(f'{r:g}' for r in sorted(tried))}). Look at the "
                            "rows (luthier data inspect), or give a rate of your own (compare --learning-rate VALUE).")
        write_lines(ctx.folder / "trials.jsonl", ({k: r[k] for k in ("learning_rate", "loss")} for r in records))
        spent = {name: sum(r[name] for r in records) for name in ("steps", "tokens", "seconds")}
        # Identified by what it chose alone: another search that ends at the same rate calls for no new training.
        return seal("records", ctx.folder, identity=digest({"learning_rate": best}), learning_rate=best,
                    default=records[0]["learning_rate"], at_end=best in (min(tried), max(tried)), trials=records,
                    fit={**spent, "trained_parameters": records[0]["trained_parameters"], "trainings": len(records),
                         "peak_mb": max(r["peak_mb"] for r in records)})

    def _trial(self, rate: float | None, inputs: Mapping[str, Artifact], ctx: Ctx) -> dict[str, Any]:
        """One training at a rate; its own when there is none yet. Its weights are not kept."""
        from luthier.engine.guards import NotFinite

        assert isinstance(self.fit, Fit)
        fit = self.fit.model_copy(update={"learning_rate": rate})
        if not fit.validation.acts:
            fit = fit.model_copy(update={"validation": fit.validation.model_copy(update={"every_steps": LAST_ONLY})})
        folder = ctx.folder / f"fit-{fit.identity[:8]}"
        try:
            artifact = ctx.engine.fit(fit, inputs, ctx)
        except NotFinite as error:
            ctx.log(str(error))
            shutil.rmtree(folder)
            return {"learning_rate": rate or self._default(inputs, ctx), "loss": None, "steps": 0, "tokens": 0, "seconds": 0.0,
                    "trained_parameters": 0, "peak_mb": 0}
        made, kept = artifact.meta["fit"], read_lines(folder / "curve.jsonl")
        shutil.rmtree(folder)
        return {"learning_rate": made["learning_rate"]["value"], "loss": _judged(kept, made),
                **{n: made[n] for n in ("steps", "tokens", "seconds", "trained_parameters", "peak_mb")}}


    def _default(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> float:
        """The method's own rate, where training at it says nothing because it diverges."""
        assert isinstance(self.fit, Fit)
        rows = sum(1 for _ in subset(inputs, next(iter(self.fit.tasks[0].sources))))
        return float(self.fit._learning_rate(ctx.engine.fresh(inputs["base"]), rows, None).value)


def next_rate(tried: Mapping[float, float], factor: float) -> float:
    """Where the next trial stands, from losses by rate (at least one); three significant digits."""
    rates = sorted(tried)
    best = min(rates, key=lambda r: (tried[r], r))
    place = rates.index(best)
    if len(rates) == 1:
        found = best / factor
    elif len(rates) == 2:
        found = rates[1] * factor
    elif place == 0:
        found = best / factor
    elif place == len(rates) - 1:
        found = best * factor
    else:
        found = math.sqrt(best * min(rates[place - 1], rates[place + 1], key=lambda r: tried[r]))
    return float(f"{found:.3g}")


def _judged(curve: list[dict[str, Any]], fit: Mapping[str, Any]) -> float | None:
    """The dev loss of the weights that are left; None where it is no number."""
    losses = {row["step"]: row["dev_loss"] for row in curve if "dev_loss" in row}
    report = fit["validation"]
    step = report["best_step"] if report["kept"] == "best" else max(losses)
    return float(losses[step]) if math.isfinite(losses[step]) else None
