"""Givens rotations against explicit matrices, the base, and each other."""

from __future__ import annotations

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.engine.models import load_base
from luthier.techniques.methods._givens import Givens, GivensConfig, Turned, rotations, sweeps, transposed
from luthier.techniques.methods._shared import linear_names
from tests.contracts.workbench import encode, examples, make_loop, tuned_logits

WIDTHS = (2, 5, 6, 7, 8, 12, 384)


def angles(width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(width - 1, generator=torch.Generator().manual_seed(width), dtype=dtype)


def explicit(width: int, blocks: torch.Tensor) -> torch.Tensor:
    """R as the product of one matrix for each pair, by the card's indices: survivors are paired with their neighbours."""
    whole, alive, at = torch.eye(width, dtype=blocks.dtype), list(range(width)), 0
    while len(alive) > 1:
        survivors = []
        for place in range(0, len(alive), 2):
            survivors.append(alive[place])
            if place + 1 == len(alive):
                continue
            i, j = alive[place], alive[place + 1]
            one = torch.eye(width, dtype=blocks.dtype)
            one[i, i], one[i, j], one[j, i], one[j, j] = blocks[at].flatten()
            whole, at = whole @ one, at + 1
        alive = survivors
    assert at == width - 1
    return whole


def fresh(base, spec: str):
    torch.manual_seed(0)
    return build("method", spec).prepare(load_base(base), None)


def turned(model):
    """The same model with turns of ordinary size."""
    make = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.module.modules():
            if isinstance(layer, Givens):
                layer.turns.add_(0.3 * torch.randn(layer.turns.shape, generator=make))
    return model


@pytest.mark.oracle(seed=103, clause=1, against="closed form: orthogonal with determinant 1")
@pytest.mark.parametrize("width", WIDTHS)
def test_the_product_is_a_rotation(width):
    whole = transposed(torch.eye(width), rotations(angles(width)))
    assert (whole @ whole.T - torch.eye(width)).abs().max() <= 1e-6
    assert float(torch.linalg.det(whole.double())) == pytest.approx(1, abs=1e-4)


def test_a_power_of_two_pairs_by_strides():
    for r, (left, right) in enumerate(sweeps(16), 1):
        assert left == tuple(range(0, 16, 2 ** r)) and right == tuple(i + 2 ** (r - 1) for i in left)


@pytest.mark.oracle(seed=103, clause=2, against="closed form: d - 1, or 4 (d - 1), and d factors")
@pytest.mark.parametrize(("spec", "each", "factors"), [("goft", 1, 0), ("qgoft", 4, 0), ("goft:scaling=true", 1, 1)])
def test_the_number_of_trained_weights_is_the_closed_form(spec, each, factors, pico):
    widths = [inputs for inputs, _ in linear_names(load_base(pico)).values()]
    trained = sum(p.numel() for p in fresh(pico, spec).module.parameters() if p.requires_grad)
    assert trained == sum(each * (d - 1) + factors * d for d in widths)


@pytest.mark.oracle(seed=103, clause=3, against="the base itself, bit for bit")
@pytest.mark.parametrize("architecture", ["decoder", "encoder", "encoder-decoder"])
@pytest.mark.parametrize("spec", ["goft:scaling=true", "qgoft"])
def test_it_begins_as_the_base(spec, architecture, bases):
    ids = torch.arange(5, 15)[None]
    given = {"input_ids": ids, **({"decoder_input_ids": ids} if architecture == "encoder-decoder" else {})}
    with torch.no_grad():
        ours, base = (m.module.eval()(**given)[0] for m in (fresh(bases[architecture], spec), load_base(bases[architecture])))
    assert torch.equal(ours, base)


@pytest.mark.oracle(seed=103, clause=4, against="the 2 x 2 rotation by theta")
def test_two_inputs_are_turned_by_the_angle():
    theta = torch.tensor([0.7])
    rows = transposed(torch.eye(2), rotations(theta))  # row j is (R' e_j)', so this is R
    cos, sin = float(theta.cos()), float(theta.sin())
    assert torch.allclose(rows, torch.tensor([[cos, -sin], [sin, cos]]), atol=1e-6)


@pytest.mark.oracle(seed=103, clause=5, against="the explicit matrix, one factor for each pair")
@pytest.mark.parametrize("width", WIDTHS[:-1])
def test_sweeps_give_what_the_explicit_matrix_gives(width):
    make = torch.Generator().manual_seed(0)
    x, maps = torch.randn(3, width, generator=make), torch.randn(width - 1, 2, 2, generator=make)
    for blocks in (rotations(angles(width)), maps):
        whole = explicit(width, blocks)
        assert torch.allclose(transposed(x, blocks), x @ whole, atol=1e-5), "R' x as a row is x' R"


@pytest.mark.oracle(seed=103, clause=6, against="the adapter itself, merged")
@pytest.mark.parametrize("spec", ["goft", "goft:scaling=true", "qgoft"])
def test_merged_and_unmerged_agree(spec, pico):
    model = turned(fresh(pico, spec))
    apart = tuned_logits(model)
    model.module = model.module.merge_and_unload()
    assert not any(isinstance(m, Turned) for m in model.module.modules())
    assert (tuned_logits(model) - apart).abs().max() <= 1e-5
    assert (tuned_logits(load_base(pico)) - apart).abs().max() > 1e-2


@pytest.mark.oracle(seed=103, clause=7, against="GOFT")
def test_free_maps_set_to_rotations_are_rotations(pico):
    strict, quasi = turned(fresh(pico, "goft")), fresh(pico, "qgoft")
    pairs = zip(*([m for m in x.module.modules() if isinstance(m, Givens)] for x in (strict, quasi)), strict=True)
    with torch.no_grad():
        for one, other in pairs:
            other.turns.copy_(rotations(one.turns))
            assert float(other.penalty()) <= 1e-9
    assert torch.equal(tuned_logits(strict), tuned_logits(quasi))


@pytest.mark.oracle(seed=103, clause=8, against="closed form: (R W)'(R W) = W' W")
@pytest.mark.parametrize("width", WIDTHS)
def test_the_gram_matrix_of_the_weight_is_kept(width):
    weight = torch.randn(4, width, generator=torch.Generator().manual_seed(0))
    layer = torch.nn.Linear(width, 4, bias=False)
    layer.weight.data = weight.clone()
    turned_layer = Turned(layer, "default", GivensConfig(), weight)
    turned_layer.givens_layers["default"].turns.data = angles(width)
    turned_layer.merge()
    assert (layer.weight - weight).abs().max() > 0.1
    assert (layer.weight @ layer.weight.T - weight @ weight.T).abs().max() <= 1e-5 * width ** 0.5 * weight.square().sum(1).max()


@pytest.mark.oracle(seed=103, clause=9, against="closed form: |x| e_0")
@pytest.mark.parametrize("width", WIDTHS[:-1])
def test_fitted_angles_send_any_vector_to_the_first_axis(width):
    x = torch.randn(width, generator=torch.Generator().manual_seed(width), dtype=torch.float64)
    fitted, left = [], x.clone()
    for lefts, rights in sweeps(width):
        for i, j in zip(lefts, rights, strict=True):
            fitted.append(torch.atan2(left[j], left[i]))
            left[i], left[j] = torch.hypot(left[i], left[j]), 0.0
    found = transposed(x, rotations(torch.stack(fitted)))
    wanted = torch.zeros(width, dtype=torch.float64)
    wanted[0] = x.norm()
    assert torch.allclose(found, wanted, atol=1e-10)


@pytest.mark.oracle(clause="the penalty of qgoft is lambda sum (a1 b1 + a2 b2)^2, once a step", against="closed form")
def test_the_penalty_of_the_maps_is_in_the_loss(pico, make_ctx):
    method, objective = build("method", "qgoft:penalty=0.5"), build("objective", "supervised")
    model = turned(method.prepare(load_base(pico), None))
    rows = encode(objective, model, examples(8))
    loop = make_loop(model, objective, rows, make_ctx("fit"), steps=1, batch_rows=8, micro_rows=2)
    loop.hooks = [method.start(model, loop.ctx)]
    wanted = 0.0
    for layer in model.module.modules():
        if isinstance(layer, Givens):
            for (a1, b1), (a2, b2) in layer.turns.tolist():
                wanted += 0.5 * (a1 * b1 + a2 * b2) ** 2
    loop.train()
    assert loop.curve[0]["parts"]["orthogonality"] == pytest.approx(wanted, rel=1e-4) and wanted > 0.1


def test_what_can_not_be_is_refused(pico):
    with pytest.raises(UserError, match="goft: no linear layer is called nothing"):
        fresh(pico, "goft:target=[nothing]")
    with pytest.raises(UserError, match="penalty = -1"):
        fresh(pico, "qgoft:penalty=-1")
    model = load_base(pico)
    model.module.add_module("narrow", torch.nn.Linear(1, 3))
    with pytest.raises(UserError, match="narrow has one input, and there is nothing to turn"):
        build("method", "goft:target=[narrow]").prepare(model, None)
