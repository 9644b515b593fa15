"""Fields of the training step that are small models of their own."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from luthier.core.component import Slot, build, named
from luthier.core.kinds import Decoder, Head, Metric, Objective


class TaskSpec(BaseModel):
    """One task of a training."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)
    data: str | dict[str, float] = Field("examples.train", description="INPUT.SUBSET that is trained on, or several with "
                                         "their weights: {a.train: 3, b.train: 1}; INPUT.SUBSET:FILE takes one file's rows")
    temperature: float = Field(1.0, gt=0, description="weights of several data sets are raised to 1 / temperature")
    objective: Slot[Objective] = Field(named("supervised"), description="what is minimised")
    head: Slot[Head] | None = Field(None, description="the head of this task, for objectives on labels")
    weight: float = Field(1.0, gt=0, description="weight of this task's loss")

    @property
    def name(self) -> str:
        """The data's name stands for the task."""
        return "+".join(self.sources)

    @property
    def sources(self) -> dict[str, float]:
        """Each data set with its weight."""
        return {self.data: 1.0} if isinstance(self.data, str) else self.data

    @model_validator(mode="after")
    def _headed(self) -> TaskSpec:
        if self.head is None and self.objective.brings_head:
            object.__setattr__(self, "head", build("head", self.objective.brings_head))
        return self

    @model_validator(mode="after")
    def _drawable(self) -> TaskSpec:
        if not self.sources:
            raise ValueError("data names nothing; give at least one INPUT.SUBSET")
        for name, weight in self.sources.items():
            if not (weight > 0 and math.isfinite(weight)):
                raise ValueError(f"the weight of {name} is {weight:g}; it must be greater than 0")
        return self


class Length(BaseModel):
    """How long to train: epochs of the first task, or optimizer steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: float | None = Field(None, gt=0, description="passes over the rows of the first task")
    steps: int | None = Field(None, ge=0, description="optimizer steps; 0 leaves what the method begins with")

    @model_validator(mode="after")
    def _one(self) -> Length:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self

    def in_steps(self, per_epoch: int) -> int:
        """Optimizer steps where an epoch has so many."""
        return max(1, round((self.epochs or 1) * per_epoch)) if self.steps is None else self.steps


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
