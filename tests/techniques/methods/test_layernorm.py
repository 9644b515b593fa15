"""Norm tuning against closed forms, PEFT's, and the base bit for bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import nn

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.core.kinds import Objective, Regularizer
from luthier.engine.models import Model, add_tuned, load_base
from luthier.techniques.methods._selective import norms
from luthier.techniques.methods.layernorm import fisher
from tests.contracts.workbench import make_loop, short_fit, training_data


def prepared(base, spec: str = "layernorm"):
    return build("method", spec).prepare(load_base(base), None)


def fitted(make_ctx, base, architecture: str, name: str, **changed):
    inputs = {"base": base, "examples": training_data(make_ctx(f"{name}/examples"))}
    artifact = short_fit(architecture, **{"length": {"steps": 6}, **changed}).run(inputs, make_ctx(f"{name}/fit", inputs))
    return artifact, [r["loss"] for r in read_lines(artifact.folder / "curve.jsonl")]


@pytest.mark.oracle(seed=39, clause=1, against="closed form: (2 L + 1) 2 d")
def test_the_number_of_trained_weights_is_the_closed_form(pico_encoder):
    model = prepared(pico_encoder)
    layers, width = model.module.config.num_hidden_layers, model.width
    assert sum(p.numel() for p in model.module.parameters() if p.requires_grad) == (2 * layers + 1) * 2 * width


@pytest.mark.oracle(seed=39, clause=2, against="the base itself, bit for bit")
@pytest.mark.parametrize("spec", ["layernorm", "layernorm:subset=0.1"])
def test_only_norms_move(spec, pico_encoder, make_ctx):
    artifact, _ = fitted(make_ctx, pico_encoder, "encoder", "one", method=spec)
    own, tuned = (dict(m.module.named_parameters()) for m in (
        load_base(pico_encoder), add_tuned(load_base(pico_encoder), artifact)))
    moved = {n for n in own if not torch.equal(own[n], tuned[n])}
    assert moved and all("LayerNorm" in n for n in moved)
    entries = sum(int((own[n] != tuned[n]).sum()) for n in moved)
    total = sum(p.numel() for m in norms(load_base(pico_encoder)).values() for p in m.parameters())
    assert entries <= round(0.1 * total) if "subset" in spec else entries > total / 2


@pytest.mark.oracle(seed=39, clause=3, against="peft: LN_TUNING")
def test_the_whole_subset_is_norm_tuning(pico_encoder, make_ctx):
    names = sorted(norms(load_base(pico_encoder)))
    method = {"use": "peft", "type": "LN_TUNING", "target_modules": names}
    _, ours = fitted(make_ctx, pico_encoder, "encoder", "ours", method="layernorm")
    _, theirs = fitted(make_ctx, pico_encoder, "encoder", "theirs", method=build("method", method))
    assert ours == pytest.approx(theirs, abs=1e-6)


# --- Fisher information --------------------------------------------------------------------------------------------

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
Y = (torch.arange(12) % 2).float()


class Scaled(nn.Module):
    """logit = sum_i w_i (gamma_i x^_i + beta_i) with x^ the normalised input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.w = nn.Linear(6, 1, bias=False)
        self.config = SimpleNamespace(hidden_size=6, vocab_size=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w(self.norm(x))[:, 0]


class Logistic(Objective, name="logistic-of-a-scaled-norm"):
    """log p of labels by a logit."""

    parts: ClassVar[dict[str, Literal["additive", "coupled"]]] = {"nll": "coupled"}
    architectures: ClassVar[tuple[Any, ...]] = ("encoder",)

    def encode(self, example, render, rng):
        raise NotImplementedError

    def count(self, batch):
        return {"nll": 2.0 * len(batch["row"])}  # two units a row: what the loop divides by must not matter

    def loss(self, run, batch):
        rows = batch["row"].long()
        logits = run.models["policy"].module(X[rows])
        return {"nll": nn.functional.binary_cross_entropy_with_logits(logits, Y[rows], reduction="sum")}


@pytest.mark.oracle(seed=39, clause=4, against="closed form: E[(p - y)^2 w_i^2 x^_i^2]")
@pytest.mark.parametrize("rank", ["fisher", "bottom"])
def test_the_fisher_information_of_a_scale_is_the_closed_form(rank, pico_encoder, make_ctx):
    torch.manual_seed(0)
    module, encoder = Scaled().requires_grad_(False), load_base(pico_encoder)
    model = Model(module, encoder.tokenizer, "encoder", "scaled", "scaled", 8, pico_encoder)
    method = build("method", f"layernorm:subset=0.25,rank={rank}")
    method.prepare(model, None)
    loop = make_loop(model, Logistic(), [{"row": float(i)} for i in range(12)], make_ctx("fit"))
    hook = method.start(model, loop.ctx)
    found = fisher(hook, 100)
    x = (X - X.mean(1, keepdim=True)) / (X.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
    w = module.w.weight[0]
    off = (torch.sigmoid(x @ w) - Y).square()[:, None]
    assert torch.allclose(found["norm.weight"], (off * w.square() * x.square()).mean(0), rtol=1e-4)
    assert torch.allclose(found["norm.bias"], (off * w.square()).mean(0), rtol=1e-4)
    hook.turn(0)
    every = torch.cat([found["norm.weight"], found["norm.bias"]])
    masks = torch.cat([hook.masks["norm.weight"], hook.masks["norm.bias"]])
    assert int(masks.sum()) == 3
    apart = every[masks].min() - every[~masks].max() if rank == "fisher" else every[~masks].min() - every[masks].max()
    assert apart > 0


class Left(Regularizer, name="dummy-left"):
    """Keeps what the trained model holds, before it is stored."""

    seen: ClassVar[dict[str, torch.Tensor]] = {}
    entries: ClassVar[dict[str, torch.Tensor]] = {}

    def finish(self, model, hook):
        Left.seen = {n: p.detach().clone() for n, p in model.module.named_parameters()}
        Left.entries = {n: at for n, (at, _) in model.sparse.entries.items()}


@pytest.mark.oracle(seed=39, clause=5, against="the base itself, bit for bit, under decay 0.1")
def test_decay_does_not_move_what_is_not_chosen(pico_encoder, make_ctx):
    fitted(make_ctx, pico_encoder, "encoder", "one", method="layernorm:subset=0.2,rank=random",
           optimizer="adamw:weight_decay=0.1", regularizers=("dummy-left",))
    own, seen, chosen = load_base(pico_encoder), Left.seen, Left.entries
    for name, module in norms(own).items():
        for part, before in module.named_parameters():
            at = chosen.get(f"{name}.{part}", torch.zeros(0, dtype=torch.long))
            mask = torch.zeros(before.numel(), dtype=torch.bool)
            mask[at] = True
            assert torch.equal(seen[f"{name}.{part}"].flatten()[~mask], before.detach().flatten()[~mask])
            if len(at):
                assert not torch.equal(seen[f"{name}.{part}"].flatten()[mask], before.detach().flatten()[mask])


@pytest.mark.oracle(seed=39, clause=6, against="transformers, on the whole model saved with its norms in place")
@pytest.mark.parametrize("spec", ["layernorm", "layernorm:subset=0.3"])
def test_norms_written_into_the_model_give_the_same_states(spec, pico_encoder, make_ctx, tmp_path):
    from transformers import AutoModel

    artifact, _ = fitted(make_ctx, pico_encoder, "encoder", "one", method=spec)
    model, ids = add_tuned(load_base(pico_encoder), artifact), torch.arange(5, 15)[None]
    model.module.save_pretrained(tmp_path / "whole")
    merged = AutoModel.from_pretrained(tmp_path / "whole").eval()
    with torch.no_grad():
        apart, whole, base = (m(input_ids=ids).last_hidden_state
                              for m in (model.module.eval(), merged, load_base(pico_encoder).module))
    assert (apart - whole).abs().max() <= 1e-6 < (base - whole).abs().max()


def test_what_can_not_be_is_refused(pico, pico_encoder, make_ctx):
    with pytest.raises(UserError, match="no norm is called nothing. This model has: .*input_layernorm"):
        prepared(pico, "layernorm:terms=[nothing]")
    with pytest.raises(UserError, match="subset = 1e-05 of 640 entries keeps none"):
        fitted(make_ctx, pico_encoder, "encoder", "one", method="layernorm:subset=0.00001")
    bare = SimpleNamespace(module=nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2, elementwise_affine=False)), name="bare")
    with pytest.raises(UserError, match=r"bare has no normalisation layers with weights \(LayerNorm, RMSNorm"):
        build("method", "layernorm").prepare(bare, None)
