"""What the audits of weights share: pairs of matrices before and after, and which of them can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from luthier.core.errors import UserError
from luthier.engine.subjects import Subject

if TYPE_CHECKING:
    import torch

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "query", "key", "value", "attention.output.dense", "c_attn", "attn.c_proj")


def changed(subject: Subject, modules: Sequence[str]) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(name, before, after), each [out, in] float32, of the chosen linear layers that tuning changed.

    Raises:
        UserError: no layer has one of the names, shapes differ, or a matrix holds numbers that are not finite.
    """
    import torch

    from luthier.engine.spectra import matrices

    if subject.base is None and subject.tuned is None:
        raise UserError("There is no model here, only data. Name a run or a model folder: luthier audit RUN.")
    root = subject.base or subject.tuned
    assert root is not None
    whole = subject.tuned is not None and "base" not in subject.tuned.meta
    before = matrices(subject.engine, subject.reference or root)
    after = matrices(subject.engine, subject.tuned) if whole and subject.tuned else \
        matrices(subject.engine, root, subject.tuned)
    names = [n for n in after if chosen(n, modules)]
    if not names:
        short = sorted({n.rsplit(".", 1)[-1] for n in after})
        raise UserError(f"No linear layer is called {', '.join(modules)}. This model has: {', '.join(short)}.")
    other = [f"{n} {tuple(before[n].shape) if n in before else 'missing'} against {tuple(after[n].shape)}" for n in names
             if n not in before or before[n].shape != after[n].shape]
    if other:
        raise UserError(f"The two models can't be compared: {len(other)} matrices differ in shape, first {other[0]}. "
                        "Name the base that the model was tuned from: --base.")
    for name in names:
        for role, weight in (("before", before[name]), ("after", after[name])):
            if not torch.isfinite(weight).all():
                raise UserError(f"{name} {role} tuning holds numbers that are not finite. Tune again with a lower rate.")
        if not torch.equal(before[name], after[name]):
            yield name, before[name], after[name]


def chosen(name: str, modules: Sequence[str]) -> bool:
    """Whether a layer is meant: by part of its name, `attention`, or nothing said."""
    wanted = [w for m in modules for w in (ATTENTION if m == "attention" else (m,))]
    return not wanted or any(w in name for w in wanted)
