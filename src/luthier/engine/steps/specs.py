"""Fields of the training step that are small models of their own."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from luthier.core.component import Slot, named
from luthier.core.kinds import Decoder, Metric


class ValidationSpec(BaseModel):
    """When a training is looked at from outside, and what follows. The rows are those of `streams.validation`."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    every_steps: int | None = Field(None, ge=1, description="optimizer steps between evaluations; each epoch if left out")
    by: str = Field("loss", description="what decides: loss, a measure of the objective (margin, accuracy), or a metric")
    better: Literal["auto", "lower", "higher"] = Field(
        "auto", description="which way is better; auto: lower for loss, as the metric says, higher for measures")
    patience: int | None = Field(None, ge=1, description="stop after so many evaluations in a row without improvement")
    min_delta: float = Field(0.0, ge=0, description="a change up to this is no improvement")
    keep: Literal["last", "best"] = Field("last", description="whose weights are left at the end")
    metrics: tuple[Slot[Metric], ...] = Field((), description="further metrics, on answers that are generated for them")
    decoder: Slot[Decoder] = Field(named("greedy"), description="how those answers are written")
    metric_rows: int = Field(32, ge=1, description="most rows that metrics are computed on; the loss uses all")

    @property
    def acts(self) -> bool:
        """Whether more is wanted than the loss each epoch."""
        return self.patience is not None or self.keep == "best" or self.every_steps is not None or bool(self.metrics)
