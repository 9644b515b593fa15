"""Further models of a training (reference, teacher), without a second copy where an adapter can be switched off."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from luthier.core.artifact import Artifact
from luthier.core.errors import UserError, nearest
from luthier.core.kinds import Objective
from luthier.engine.batches import TokenBatch

if TYPE_CHECKING:
    from luthier.engine.forward import Forward
    from luthier.engine.models import Model
    from luthier.engine.workshop import Engine


@dataclass
class Roles:
    """Which artifact plays each role of a training. Roles that nobody named are played by the base."""

    sources: dict[str, Artifact]
    base: Artifact
    engine: Engine

    @classmethod
    def named(cls, objectives: Iterable[Objective], given: Mapping[str, str], inputs: Mapping[str, Artifact],
              engine: Engine) -> Roles:
        """The roles that these objectives read, with the inputs that were named for them.

        Raises:
            UserError: a role that nobody reads, or an input that is not there.
        """
        wanted = {role for o in objectives for role in o.roles}
        for role, name in given.items():
            if role not in wanted:
                raise UserError(f"No objective reads the role '{role}'. {nearest(role, wanted)}")
            if name not in inputs:
                raise UserError(f"roles.{role}: there is no input '{name}'. {nearest(name, inputs)}")
        return cls({role: inputs[given.get(role, "base")] for role in sorted(wanted)}, inputs["base"], engine)

    def before(self, model: Model) -> Forward:
        """Every role, as it is before training: `model` is still the base."""
        from luthier.engine.forward import Forward

        return Forward({role: model if source is self.base else self._loaded(source, model)
                        for role, source in self.sources.items()})

    def live(self, objectives: Iterable[Objective], model: Model, adapter: bool
             ) -> tuple[dict[str, Model], frozenset[str]]:
        """The roles that a loss asks at every step, and which of them are `model` itself with its adapter off.

        Where the base can't be had that way (its weights move, or something stays on) it is loaded a second time.
        """
        wanted = sorted({role for o in objectives for role in o.live_roles()})
        own = [role for role in wanted if self.sources[role] is self.base]
        # With its adapter off a model whose base a method has changed is not the base.
        changed = model.low_bits is not None or model.pruned is not None
        bare = frozenset(own if own and adapter and not changed and adapter_comes_off(model) else ())
        self.engine.forget()  # what only the constants needed
        return {r: model if r in bare else self._loaded(self.sources[r], model) for r in wanted}, bare

    def _loaded(self, source: Artifact, model: Model) -> Model:
        tuned = source if "base" in source.meta else None
        return self.engine.load(self.base if tuned else source, tuned, next(model.module.parameters()).dtype)


@contextmanager
def adapter_off(model: Model) -> Iterator[None]:
    """Within this block the model computes as before its method: adapter switched off, evaluation mode."""
    training = model.module.training
    flags = [(p, p.requires_grad) for p in model.module.parameters()]
    model.module.eval()
    try:
        # Before `prepare` there is no adapter to switch off: the model is the base.
        if hasattr(model.module, "disable_adapter"):
            with model.module.disable_adapter():
                yield
        else:
            yield
    finally:
        model.module.train(training)
        # Switching on again marks every weight of an adapter as trained, the frozen ones too.
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def adapter_comes_off(model: Model) -> bool:
    """Whether the model without its adapter is the same wherever the trained weights are.

    Found by moving the trained weights a little and comparing what the switched-off model says before and after, not
    from a list of methods: biases, norms or a vocabulary head trained beside an adapter stay on when it goes off.
    """
    from luthier.engine.forward import Forward

    if not hasattr(model.module, "disable_adapter"):
        return False
    ids = torch.arange(5, 11, device=model.device)[None] % model.vocabulary
    batch = TokenBatch(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))
    if model.architecture == "encoder-decoder":
        batch.decoder_ids, batch.decoder_mask = ids, batch.mask
    run = Forward({"bare": model}, bare=("bare",))
    trained = [p for p in model.module.parameters() if p.requires_grad]
    kept = [p.detach().clone() for p in trained]
    with torch.no_grad():
        before = _said(run, batch, model)
        for p in trained:
            p.add_(0.1)
        moved = _said(run, batch, model)
        for p, was in zip(trained, kept, strict=True):
            p.copy_(was)
    return bool(torch.equal(before, moved))


def _said(run, batch: TokenBatch, model: Model) -> torch.Tensor:  # type: ignore[no-untyped-def]
    output = run("bare", batch)
    said: torch.Tensor = output.pooled() if model.architecture == "encoder" else output.nll()
    return said
