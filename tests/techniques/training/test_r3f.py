"""R3F against a closed form on a linear model, and noise that is none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.rng import Rng
from luthier.engine.batches import TokenBatch
from luthier.techniques.training._passes import divergence, embedding_rms, predicted
from luthier.techniques.training.r3f import Noised, uniform
from tests.recorded import far, recorded, wave
from tests.techniques.training.test_smart import fitted, linear_batch, linear_run


def hook_of(spec: str, size: float) -> Noised:
    return Noised(build("regularizer", spec), size, SimpleNamespace(clock=SimpleNamespace(step=0), rng=Rng(0)))


@pytest.mark.oracle(clause="r3f: no noise and the same masks add nothing", against="zero")
def test_no_noise_and_the_same_masks_add_nothing(pico_encoder, make_ctx):
    """The encoder trains with dropout: masks that differ would show."""
    _, curve = fitted(make_ctx, pico_encoder, "shared", length={"steps": 2}, regularizers=("r3f:lam=1,s=0",))
    assert all(r["parts"]["r3f"] == 0 and r["noised"] == 0 for r in curve)


@pytest.mark.oracle(clause="r3f: the divergence of noised embeddings", against="closed form of a linear softmax model")
@pytest.mark.parametrize("noise", ["uniform", "normal"])
def test_the_part_is_the_divergence_of_noised_embeddings(noise):
    run, model = linear_run()
    batch = linear_batch()
    hook = hook_of(f"r3f:lam=0.5,noise={noise},dropout=none", 0.3)
    found = hook.on_loss(run, batch, {})["r3f"]
    x, wanted = model.module.words(batch["input"].ids), 0.0
    for row, (name, length) in enumerate((("a", 3), ("b", 2))):
        generator = torch.Generator().manual_seed(Rng(0).within("r3f").key("noise", f"0/{name}"))
        z = uniform(generator, length, 6) if noise == "uniform" else torch.randn(length, 6, generator=generator)
        means = [x[row, :length].mean(0), (x[row, :length] + 0.3 * z).mean(0)]
        p, q = (model.heads["task"](m).softmax(-1) for m in means)
        wanted += 0.5 * float((p * (p / q).log()).sum() + (q * (q / p).log()).sum())
    assert float(found.detach()) == pytest.approx(wanted, rel=1e-4) and hook.units(batch) == {"r3f": 2.0}
    assert float(divergence(predicted(run, batch["input"], x), predicted(run, batch["input"], x)).sum()) == 0


@pytest.mark.oracle(clause="r3f: the divergence of noised embeddings", against="fairseq")
@pytest.mark.parametrize("record", recorded("r3f_fairseq")["records"], ids=lambda r: f"lam={r['lam']}")
def test_loss_and_gradients_are_those_of_fairseq(record, monkeypatch):
    """With the noise that it drew, and with words that are a constant in the noised pass, as it has them; ours are not."""
    run, model = linear_run()
    ids = torch.tensor(recorded("r3f_fairseq")["ids"])
    words, head = (wave(*shape, shift=shift, scale=scale).requires_grad_(True)
                   for shape, shift, scale in (((12, 6), 0, 0.4), ((3, 6), 1, 2.0)))
    batch = {"ids": ["a", "b", "c"], "input": TokenBatch(ids, torch.ones_like(ids), torch.zeros_like(ids, dtype=torch.bool))}
    passes = iter((words, words.detach()))
    model.module.get_input_embeddings = lambda: lambda ids, table=next(passes): table[ids]
    run.head = lambda pooled: pooled @ head.T
    monkeypatch.setattr("luthier.techniques.training.r3f.noise",
                        lambda *given: torch.tensor(record["noise"]).view(*ids.shape, 6))
    found = hook_of(f"r3f:lam={record['lam']},dropout=none", 1.0).on_loss(run, batch, {})["r3f"]
    assert float(found.detach()) == pytest.approx(record["lam"] * record["divergence"], rel=1e-6)
    scores = words[ids].mean(1) @ head.T
    whole = torch.nn.functional.cross_entropy(scores, torch.arange(3), reduction="sum") + found
    assert float(whole.detach()) == pytest.approx(record["loss"], rel=1e-6)
    for gradient, wanted in zip(torch.autograd.grad(whole, [words, head]), record["gradients"], strict=True):
        assert far(gradient, wanted) <= 2e-6


def test_noise_is_measured_in_units_of_the_embeddings_where_asked(pico, make_ctx):
    from luthier.engine.models import load_base

    model, ctx = load_base(pico), make_ctx("x")
    ctx.clock = SimpleNamespace(step=0)
    sizes = [build("regularizer", f"r3f:s=0.5,unit={unit}").start(model, ctx).size for unit in ("absolute", "rms")]
    assert sizes == [0.5, pytest.approx(0.5 * embedding_rms(model))]
    with pytest.raises(UserError, match="s = -1: Input should be greater than or equal to 0"):
        build("regularizer", "r3f:s=-1")
