"""The shelf: an engine for a server. Models stay, those of one base share its weights, and requests share steps."""

from __future__ import annotations

import copy
import threading
from collections.abc import Collection, Sequence
from typing import Any

import torch

from luthier.core.artifact import Artifact
from luthier.engine import quick
from luthier.engine.deltas import Delta
from luthier.engine.models import Model
from luthier.engine.workshop import Engine, Weights
from luthier.serving.desk import Desk


class Shelf(Engine):
    """An engine of many threads: `generate` and `embed` are answered by its desk, beside everybody else's."""

    most_models = 1 << 30

    def __init__(self, exact: bool = False) -> None:
        super().__init__(exact=exact)
        self.desk = Desk(super().embed)
        self.answers = self.desk.answers
        self._loading = threading.Lock()
        self._bases: dict[tuple[str, torch.dtype], Model] = {}
        # By the id of a weight, with the weight itself: an id may be given to another object once its own is gone.
        self._reordered: dict[int, tuple[torch.Tensor, quick.QuickLinear]] = {}

    def load(self, base: Artifact, tuned: Artifact | None = None, dtype: torch.dtype | None = None,
             weights: Weights = "own") -> Model:
        """As `Engine.load`; nothing that was loaded is let go."""
        with self._loading:
            return super().load(base, tuned, dtype, weights)

    def speaks(self, tuned: Artifact | None) -> bool:
        """Whether arms of this model (None: the base) can be answered for."""
        return True

    def bare(self, base: Artifact, tuned: Artifact | None, dtype: torch.dtype) -> Model:
        """The base, its weights shared with every other model of it; those that a delta writes over are its own."""
        key = (base.identity, dtype)
        if key not in self._bases:
            self._bases[key] = self.fresh(base, dtype)
        return twin(self._bases[key], _written(tuned))

    def quicken(self, model: Model) -> Model:
        """As `Engine.quicken`, with one reordered copy of a weight for all models that share it."""
        def shared(linear: torch.nn.Linear) -> quick.QuickLinear:
            if id(linear.weight) not in self._reordered:
                self._reordered[id(linear.weight)] = linear.weight, quick.QuickLinear(linear)
            return self._reordered[id(linear.weight)][1]

        return quick.quicken(model, shared)

    def embed(self, model: Model, texts: Sequence[str], max_tokens: int = 256) -> Any:
        """As `Engine.embed`, in one batch with the texts of others."""
        return self.desk.embed(model, list(texts), max_tokens)


def _written(tuned: Artifact | None) -> Collection[str]:
    """Names of the weights that putting a tuned artifact on its base writes over."""
    if tuned is None or tuned.kind != "delta":
        return ()
    return set(Delta(tuned.folder).parts)


def twin(model: Model, own: Collection[str] = ()) -> Model:
    """A second model of modules of its own that computes with the same weights, except those named in `own`.

    Adapters can be put on it, and its modules be replaced, without the first one taking notice.
    """
    tensors = [*model.module.named_parameters(), *model.module.named_buffers()]
    shared = {id(t): t for name, t in tensors if name not in own}
    made = copy.copy(model)
    made.module = copy.deepcopy(model.module, shared)
    made.heads, made.labels, made.packing, made.split = {}, {}, None, None
    return made
