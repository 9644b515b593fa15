"""AutoLoRA against autograd through the unrolled step, plain LoRA, plain training, and planted ranks."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_json
from luthier.engine.models import Model, add_tuned, load_base
from luthier.techniques.methods._shared import lora_layers
from luthier.techniques.methods.autolora import hypergradient
from tests.contracts.workbench import encode, examples, make_loop, short_fit, training_data, tuned_logits
from tests.techniques.methods.planted import Planted

# --- the hypergradient ---------------------------------------------------------------------------------------------


class Quadratic:
    """L(W, a) = 1/2 u' M u + c' u with u = (W, a): two of them are a bilevel problem whose differences are exact."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        make = torch.Generator().manual_seed(seed)
        root = torch.randn(9, 9, generator=make, dtype=torch.float64)
        self.matrix, self.linear = (root @ root.T).to(dtype), torch.randn(9, generator=make, dtype=torch.float64).to(dtype)

    def __call__(self, w: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        u = torch.cat([w, a])
        return 0.5 * u @ self.matrix @ u + self.linear @ u


@pytest.fixture(params=[(torch.float64, 1e-6), (torch.float32, 1e-3)], ids=["float64", "float32"])
def toy(request):
    dtype, tolerance = request.param
    make = torch.Generator().manual_seed(3)
    w, a = (torch.randn(n, generator=make, dtype=torch.float64).to(dtype) for n in (6, 3))
    return SimpleNamespace(train=Quadratic(1, dtype), held_out=Quadratic(2, dtype), w=w, a=a, tolerance=tolerance)


def ours(toy, eta: float) -> torch.Tensor:
    at = [toy.w]

    def gradients(loss):
        w, a = at[0].clone().requires_grad_(), toy.a.clone().requires_grad_()
        found = torch.autograd.grad(loss(w, a), [w, a])
        return [found[0]], found[1]

    @contextmanager
    def moved(delta):
        at[0] = toy.w + delta[0]
        yield
        at[0] = toy.w

    return hypergradient(lambda: gradients(toy.train), lambda: gradients(toy.held_out), moved, eta)


@pytest.mark.oracle(seed=94, clause=1, against="autograd through the unrolled step")
def test_the_hypergradient_is_that_of_the_unrolled_step(toy):
    a, eta = toy.a.clone().requires_grad_(), 0.03
    w = toy.w.clone().requires_grad_()
    step = torch.autograd.grad(toy.train(w, a), w, create_graph=True)[0]
    wanted = torch.autograd.grad(toy.held_out(w - eta * step, a), a)[0]
    assert (ours(toy, eta) - wanted).abs().max() <= toy.tolerance * wanted.abs().max()
    assert (ours(toy, 0.0) - wanted).abs().max() > 0.05 * wanted.abs().max(), "the second order matters here"


@pytest.mark.oracle(seed=94, clause=2, against="autograd")
def test_the_first_order_is_the_gradient_of_the_held_out_loss_alone(toy):
    a = toy.a.clone().requires_grad_()
    assert torch.equal(ours(toy, 0.0), torch.autograd.grad(toy.held_out(toy.w, a), a)[0])


# --- in the loop ---------------------------------------------------------------------------------------------------

def searching(base, make_ctx, spec: str, name: str = "fit", steps: int = 6):
    """A loop with the method's hook, before its first step."""
    method, model, objective = build("method", spec), load_base(base), build("objective", "supervised")
    torch.manual_seed(0)
    model = method.prepare(model, None)
    loop = make_loop(model, objective, encode(objective, model, examples(8)), make_ctx(name), steps=steps, batch_rows=3)
    loop.hooks = [method.start(model, loop.ctx)]
    return loop


@pytest.mark.oracle(seed=94, clause=3, against="a plain loop over the rows that are not held out")
@pytest.mark.parametrize("order", ["first", "second"])
def test_a_selection_that_stands_still_leaves_plain_training(order, pico, make_ctx):
    loop = searching(pico, make_ctx, f"autolora:selection_rate=0,order={order},search_share=0.67")
    hook = loop.hooks[0]
    twin = searching(pico, make_ctx, "autolora", "twin")
    weights = [p for p in twin.model.module.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(weights, 1e-2, weight_decay=0.0)
    losses = []
    for step in range(4):
        loop.clock.step = step
        batch = hook._drawn("train", hook.learned)
        assert not {f"row{i}" for i in hook.held} & set(batch["ids"])
        parts = sum(twin.tasks[0].objective.loss(twin.run, batch).values())
        loss = parts / sum(twin.tasks[0].objective.count(batch).values())
        losses.append(float(loss.detach()))
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        adam.step()
        adam.zero_grad()
    loop.clock.step = 0
    loop.train()
    assert len(hook.held) == 2 and hook.ends == [4, 6]
    assert [r["loss"] for r in loop.curve[:4]] == pytest.approx(losses, abs=1e-5)


def test_the_selection_moves_and_what_was_not_kept_stays_zero(pico, make_ctx):
    loop = searching(pico, make_ctx, "autolora:selection_rate=0.1,k0=4,alpha=64")
    hook = loop.hooks[0]
    loop.train()
    assert hook.phase == 1 and (hook.selection() - 0.25).abs().max() > 0.01
    assert int((~hook.kept).sum()) > 0 and bool(hook.kept.any(1).all())
    for layer, kept in zip(hook.layers.values(), hook.kept, strict=True):
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert not down[~kept].any() and not up[:, ~kept].any()
        assert down[kept].any() and up[:, kept].any()


def test_of_the_control_the_selection_learns_from_the_rows_of_the_weights(pico, make_ctx):
    drawn = {}
    for control in (False, True):
        loop = searching(pico, make_ctx, f"autolora:control={control},selection_rate=0.1", f"fit-{control}")
        hook, names = loop.hooks[0], []
        own = hook._drawn
        hook._drawn = lambda name, places, own=own, names=names: names.append(name) or own(name, places)
        loop.train()
        drawn[control] = set(names)
    assert drawn == {False: {"train", "validation"}, True: {"train"}}
    loop = searching(pico, make_ctx, "autolora:control=true,selection_rate=0.1,search_share=0.17", "one")
    hook = loop.hooks[0]
    objective, batch = loop.tasks[0].objective, hook._drawn("train", hook.learned)
    for layer in hook.layers.values():
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    loss = sum(objective.loss(loop.run, batch).values()) / sum(objective.count(batch).values())
    gradient = torch.autograd.grad(loss, hook.logits)[0]
    loop.train()
    steep = gradient.abs() > 1e-5
    assert hook.ends[0] == 1 and int(steep.sum()) > 4
    assert torch.allclose(hook.logits[steep], -0.1 * gradient[steep].sign(), atol=1e-3), "Adam's first step, by hand"


@pytest.mark.oracle(seed=94, clause=4, against="LoRA")
@pytest.mark.parametrize("normalise", ["softmax", "sum"])
def test_equal_selection_is_lora(normalise, pico, make_ctx):
    ids = torch.arange(5, 25).view(2, 10)
    method = build("method", f"autolora:k0=4,alpha=64,normalise={normalise}")
    scores = []
    for part in (method, build("method", "lora:rank=4,alpha=16,target=attention-qv")):
        model = load_base(pico)
        torch.manual_seed(0)
        part.prepare(model, None)
        for layer in lora_layers(model.module).values():
            nn.init.normal_(layer.lora_B["default"].weight)
        if part is method:
            objective = build("objective", "supervised")
            loop = make_loop(model, objective, encode(objective, model, examples(8)), make_ctx("fit"))
            part.start(model, loop.ctx)
        model.module.eval()
        with torch.no_grad():
            scores.append(model.module(input_ids=ids).logits)
    assert (scores[0] - scores[1]).abs().max() <= 1e-6 * scores[1].abs().max()


# --- planted ranks -------------------------------------------------------------------------------------------------

class TwoLayers(nn.Module):
    """x [rows, 12] to two answers [rows, 12] by two layers beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.three = nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False)
        self.config = SimpleNamespace(hidden_size=12, vocab_size=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.one(x), self.three(x)], -1)


MAKE = torch.Generator().manual_seed(5)
X = torch.randn(400, 12, generator=MAKE)
SIDES = [torch.linalg.qr(torch.randn(12, 12, generator=MAKE))[0] for _ in range(4)]
PLANTED = [2 * SIDES[0][:, :1] @ SIDES[1][:, :1].T, 2 * SIDES[2][:, :3] @ SIDES[3][:, :3].T]


@pytest.mark.oracle(seed=94, clause=5, against="the planted ranks 1 and 3")
def test_planted_ranks_are_found_in_order(pico_encoder, make_ctx):
    torch.manual_seed(0)
    module = TwoLayers().requires_grad_(False)
    with torch.no_grad():
        Planted.inputs = X
        Planted.answers = torch.cat([X @ (layer.weight + planted).T for layer, planted in
                                    zip((module.one, module.three), PLANTED, strict=True)], -1)
    encoder = load_base(pico_encoder)
    model = Model(module, encoder.tokenizer, "encoder", "two", "two", 8, pico_encoder)
    method = build("method", "autolora:k0=4,target=[one, three],selection_rate=0.05,search_share=0.99")
    method.prepare(model, None)
    loop = make_loop(model, Planted(), [{"row": float(i)} for i in range(len(X))], make_ctx("fit"), steps=202, batch_rows=280,
                     rate=3e-3, clip=0)
    hook = method.start(model, loop.ctx)
    loop.hooks = [hook]
    loop.train()
    found = dict(zip(hook.layers, hook.kept.sum(1).tolist(), strict=True))
    assert found["one"] < found["three"] == 3, (found, hook.selection())


# --- what is left --------------------------------------------------------------------------------------------------

@pytest.mark.oracle(seed=94, clause=6, against="peft")
def test_the_saved_adapter_has_its_ranks_and_loads_in_plain_peft(make_ctx, pico):
    from peft import PeftModel

    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    fit = short_fit("decoder", method="autolora:k0=4,selection_rate=0.1", length={"steps": 8})
    artifact = fit.run(inputs, make_ctx("fit", inputs))
    ranks = {n: found["rank"] for n, found in read_json(artifact.folder / "ranks.json").items()}
    assert len(ranks) == 4 and len(set(ranks.values())) > 1
    plain = load_base(pico)
    wanted = tuned_logits(add_tuned(load_base(pico), artifact))
    plain.module = PeftModel.from_pretrained(plain.module, str(artifact.folder)).eval()
    assert (tuned_logits(plain) - wanted).abs().max() <= 1e-6
    assert {n: layer.r["default"] for n, layer in lora_layers(plain.module).items()} == ranks
    assert all(layer.scaling["default"] == 16 / ranks[n] for n, layer in lora_layers(plain.module).items())


@pytest.mark.oracle(seed=94, clause=6, against="the model as it was trained")
def test_what_is_left_is_what_was_trained(pico, make_ctx):
    loop = searching(pico, make_ctx, "autolora:k0=4,selection_rate=0.1", steps=8)
    loop.train()
    trained = tuned_logits(loop.model)
    assert (trained - tuned_logits(load_base(pico))).abs().max() > 1e-3
    assert bool((loop.hooks[0].kept.sum(1) < 4).any())
    loop.hooks[0].export()
    assert (tuned_logits(loop.model) - trained).abs().max() <= 1e-6


def test_a_layer_may_vanish_and_a_selection_that_stood_still_is_said(pico, make_ctx):
    said = []
    loop = searching(pico, make_ctx, "autolora:k0=4,min_rank=0,threshold=0.4,selection_rate=0")
    with torch.no_grad():
        loop.hooks[0].logits[1, :2] = 3.0
    loop.train()
    loop.hooks[0].export()
    left = lora_layers(loop.model.module)
    assert [layer.r["default"] for layer in left.values()] == [2] and list(left) == [list(loop.hooks[0].layers)[1]]
    loop = searching(pico, make_ctx, "autolora:selection_rate=0", "still")
    loop.ctx.log = said.append
    loop.train()
    assert "the ranks are undetermined" in said[-1] and bool(loop.hooks[0].kept.all())


@pytest.mark.parametrize("spec, said", [
    ("autolora:k0=1", "k0"),
    ("autolora:k0=65", "k0 = 65 is above 32"),
    ("autolora:target=[nothing]", "no linear layer is called nothing. This model has: .*q_proj"),
    ("autolora:val_share=0.01", "val_share = 0.01 of 8 rows leaves 0 to choose ranks by"),
    ("autolora:search_share=0.01", "6 steps are too few for 2 phases"),
])
def test_what_can_not_be_is_refused(spec, said, pico, make_ctx):
    with pytest.raises(UserError, match=said):
        searching(pico, make_ctx, spec)


def test_a_threshold_that_nothing_reaches_is_refused(pico, make_ctx):
    loop = searching(pico, make_ctx, "autolora:threshold=0.9,min_rank=0")
    with pytest.raises(UserError, match="no selection value reaches threshold = 0.9"):
        loop.train()
