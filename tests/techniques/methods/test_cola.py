"""Chain of LoRA against LoRA, its own knots, merged weights, and Eckart-Young."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.engine.models import Model, add_tuned, load_base
from luthier.techniques.methods._shared import lora_layers
from luthier.techniques.methods.cola import effective_rank
from tests.contracts.workbench import encode, examples, make_loop, short_fit, training_data, tuned_logits
from tests.techniques.methods.planted import Planted


def fitted(make_ctx, base, name: str, **changed):
    inputs = {"base": base, "examples": training_data(make_ctx(f"{name}/examples"))}
    artifact = short_fit("decoder", **{"length": {"steps": 6}, **changed}).run(inputs, make_ctx(f"{name}/fit", inputs))
    return artifact, [r["loss"] for r in read_lines(artifact.folder / "curve.jsonl")]


def chained(base, make_ctx, spec: str, steps: int = 6):
    method, model, objective = build("method", spec), load_base(base), build("objective", "supervised")
    torch.manual_seed(0)
    method.prepare(model, None)
    loop = make_loop(model, objective, encode(objective, model, examples(8)), make_ctx("fit"), steps=steps, batch_rows=8)
    loop.hooks = [method.start(model, loop.ctx)]
    return loop


@pytest.mark.oracle(seed=26, clause=1, against="LoRA")
def test_one_link_is_lora_bit_for_bit(pico, make_ctx):
    one, curve = fitted(make_ctx, pico, "cola", method="cola:links=1,rank=4,dropout=0.1,target=all-linear")
    other, wanted = fitted(make_ctx, pico, "lora", method="lora:rank=4,dropout=0.1")
    assert curve == wanted
    assert torch.equal(*(tuned_logits(add_tuned(load_base(pico), a)) for a in (one, other)))


@pytest.mark.oracle(seed=26, clause=2, against="the model before the knot")
@pytest.mark.parametrize("spec", ["cola:rank=2,links=3", "cola:rank=3,links=3,ranks=[3, 2, 1]"])
def test_a_knot_changes_nothing(spec, pico, make_ctx):
    loop, seen, said = chained(pico, make_ctx, spec), [], []
    hook, turn = loop.hooks[0], loop.hooks[0].turn
    loop.ctx.log = said.append

    def watched(phase):
        before = tuned_logits(loop.model)
        turn(phase)
        loop.clock.until = hook.ends[phase + 1]  # what the loop does next
        seen.append((before, tuned_logits(loop.model)))
        loop.clock.until = hook.ends[phase]
        loop.model.module.train()

    hook.turn = watched
    loop.train()
    assert len(seen) == 2 and all((a - b).abs().max() <= 1e-5 for a, b in seen)
    assert (seen[0][0] - seen[1][0]).abs().max() > 1e-3, "and the next link learns"
    assert "link 1 of 3: update of norm" in said[0] and "effective rank of the sum" in said[1]
    trained = tuned_logits(loop.model)
    hook.export()
    assert (tuned_logits(loop.model) - trained).abs().max() <= 1e-5
    assert {layer.r["default"] for layer in lora_layers(loop.model.module).values()} == {6}


@pytest.mark.oracle(seed=26, clause=3, against="peft: the adapter merged")
@pytest.mark.oracle(seed=26, clause=4, against="numerical rank of the update")
def test_the_chain_merges_and_has_more_rank_than_a_link(pico, make_ctx):
    artifact, _ = fitted(make_ctx, pico, "cola", method="cola:rank=1,links=3", length={"steps": 9})
    model = add_tuned(load_base(pico), artifact)
    apart, plain = tuned_logits(model), dict(load_base(pico).module.named_modules())
    names = list(lora_layers(model.module))
    model.module = model.module.merge_and_unload()
    assert (tuned_logits(model) - apart).abs().max() <= 1e-5
    assert (apart - tuned_logits(load_base(pico))).abs().max() > 1e-3
    ranks = []
    for name in names:
        values = torch.linalg.svdvals((dict(model.module.named_modules())[name].weight - plain[name].weight).double())
        ranks.append(int((values > 1e-4 * values[0]).sum()))
    assert all(r <= 3 for r in ranks) and max(ranks) > 1


# --- regression ----------------------------------------------------------------------------------------------------

class OneLayer(nn.Module):
    """x [rows, 8] to W x."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 8, bias=False)
        self.config = SimpleNamespace(hidden_size=8, vocab_size=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x)


X = 8 ** 0.5 * torch.eye(8)
VALUES = torch.tensor([4.0, 3.0, 2.0, 1.5])


@pytest.mark.oracle(seed=26, clause=5, against="closed form: Eckart-Young")
def test_a_chain_of_rank_one_reaches_what_one_link_can_not(pico_encoder, make_ctx):
    make = torch.Generator().manual_seed(0)
    sides = [torch.linalg.qr(torch.randn(8, 8, generator=make))[0][:, :4] for _ in range(2)]
    left = {}
    for links in (1, 4):
        torch.manual_seed(0)
        module, encoder = OneLayer().requires_grad_(False), load_base(pico_encoder)
        Planted.inputs = X
        Planted.answers = X @ (module.one.weight + sides[0] @ VALUES.diag() @ sides[1].T).T
        model = Model(module, encoder.tokenizer, "encoder", "one", "one", 8, pico_encoder)
        method = build("method", f"cola:rank=1,alpha=1,links={links},target=[one]")
        method.prepare(model, None)
        loop = make_loop(model, Planted(), [{"row": float(i)} for i in range(8)], make_ctx(f"{links}/fit"), steps=320,
                         batch_rows=8, rate=0.1, clip=0)
        loop.hooks = [method.start(model, loop.ctx)]
        loop.train()
        left[links] = loop.curve[-1]["loss"]
    tail = float(VALUES[1:].square().sum())
    assert left[1] == pytest.approx(tail, rel=1e-3)
    assert left[4] < 0.01 * tail


def test_the_effective_rank_of_factors_is_that_of_their_product():
    make = torch.Generator().manual_seed(0)
    down, up = torch.randn(3, 9, generator=make), torch.randn(7, 3, generator=make)
    share = torch.linalg.svdvals((up @ down).double())
    share = share / share.sum()
    assert effective_rank(down, up) == pytest.approx(float(torch.exp(-(share[:3] * share[:3].log()).sum())), abs=1e-6)


@pytest.mark.parametrize("spec, said", [
    ("cola:links=7", "6 steps are too few for 7 phases"),
    ("cola:ranks=[8, 2]", "ranks has 2 numbers for 3 links"),
    ("cola:ranks=[8, 2, 9]", r"ranks = \[8, 2, 9\]: each must be from 1 to rank = 8"),
    ("cola:rank=65", "rank = 65 is above 32"),
    ("cola:target=[nothing]", "no linear layer is called nothing"),
])
def test_what_can_not_be_is_refused(spec, said, pico, make_ctx):
    with pytest.raises(UserError, match=said):
        chained(pico, make_ctx, spec)
