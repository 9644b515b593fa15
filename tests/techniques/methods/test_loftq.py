"""LoftQ against QLoRA, Eckart-Young, an alternation of its own, known tables, and what it must refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_json
from luthier.engine import low_bits
from luthier.engine.low_bits import layers_of
from luthier.engine.models import add_tuned, load_base
from luthier.engine.weights import LOADERS
from luthier.techniques.methods._quantizers import affine, gptq, normal_float, normal_levels, uniform
from luthier.techniques.methods._shared import linear_names, lora_layers
from luthier.techniques.methods.loftq import begin, decomposed
from tests.contracts.workbench import short_fit, training_data, tuned_logits
from tests.recorded import far, recorded, wave

RECORDED = recorded("loftq")

# The codes of bitsandbytes' NF4, as its documentation lists them.
NF4 = (-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0, 0.0795803, 0.1609302, 0.2461123,
       0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0)
NF3 = (-1.0, -0.4786, -0.2171, 0.0, 0.1609, 0.3379, 0.5626, 1.0)
NF2 = (-1.0, 0.0, 0.3379, 1.0)
TABLES = {2: NF2, 3: NF3, 4: NF4}


def weights(rows: int = 24, columns: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def by_hand(weight: torch.Tensor, bits: int, block: int = 64) -> torch.Tensor:
    """NormalFloat one number after another, with the table as `normal_levels` gives it."""
    flat, table = weight.flatten().numpy(), np.array(normal_levels(bits), dtype=np.float32)
    out = np.empty_like(flat)
    for at in range(0, len(flat), block):
        piece = flat[at:at + block]
        scale = np.abs(piece).max()
        out[at:at + block] = [scale * table[np.abs(value / scale - table).argmin()] for value in piece]
    return torch.from_numpy(out).view(weight.shape)


def a_draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def prepared(base, spec: str, ctx=None):
    torch.manual_seed(0)
    return build("method", spec).prepare(load_base(base), ctx)


@pytest.mark.oracle(seed=180, clause=1, against="LoRA on a base that was rounded number by number")
@pytest.mark.parametrize("architecture", ["decoder", "encoder"])
def test_without_iterations_it_is_qlora(architecture, bases):
    ours = prepared(bases[architecture], "loftq:iterations=0,rank=4")
    other = load_base(bases[architecture])
    with torch.no_grad():
        for name in linear_names(other):
            layer = other.module.get_submodule(name)
            layer.weight.copy_(by_hand(layer.weight, 4))
    torch.manual_seed(0)
    theirs = build("method", "lora:rank=4,alpha=4").prepare(other, None)
    for (name, one), two in zip(lora_layers(ours.module).items(), lora_layers(theirs.module).values(), strict=True):
        assert torch.equal(one.lora_A["default"].weight, two.lora_A["default"].weight), name
        assert not one.lora_B["default"].weight.any() and not two.lora_B["default"].weight.any()
        assert torch.allclose(one.base_layer.dense(), two.base_layer.weight, atol=1e-6), name
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        one, two = (m.module.eval()(input_ids=ids)[0] for m in (ours, theirs))
    assert (one - two).abs().max() <= 1e-5


@pytest.mark.oracle(seed=180, clause=2, against="closed form: Eckart-Young")
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_one_iteration_is_nearer_than_qlora_by_the_leading_singular_values(bits):
    for seed in range(4):
        weight = weights(seed=seed)
        found, (up, down), (qlora, loftq) = begin(weight, lambda w: normal_float(w, bits, 64), 5, 1, False, a_draw())
        values = torch.linalg.svdvals((weight - by_hand(weight, bits)).double())
        left = float((weight - found.dense() - up @ down.T).double().norm())
        assert left == pytest.approx(float(values[5:].norm()), rel=1e-4)
        assert qlora == pytest.approx(float(values.norm() / weight.double().norm()), rel=1e-4)
        assert loftq <= qlora and loftq == pytest.approx(left / float(weight.norm()), rel=1e-3)


def alternation(weight: torch.Tensor, quantised, rank: int, turns: int) -> list[float]:
    """||W - Q_t - A_t B_t'|| and ||W - Q_t|| of each turn, with NumPy's singular vectors."""
    whole, low, found = weight.double().numpy(), 0.0, []
    for _ in range(turns):
        q = quantised(torch.from_numpy(whole - low).float()).double().numpy()
        u, s, vt = np.linalg.svd(whole - q, full_matrices=False)
        low = (u[:, :rank] * s[:rank]) @ vt[:rank]
        found.append((float(np.linalg.norm(whole - q - low)), float(np.linalg.norm(whole - q))))
    return found


@pytest.mark.oracle(seed=180, clause=3, against="an alternation in NumPy")
@pytest.mark.parametrize("way", ["nf2", "nf4", "uniform2"])
def test_the_best_turn_is_kept(way):
    bits = int(way[-1])
    quantiser = (lambda w: normal_float(w, bits, 64)) if way.startswith("nf") else (lambda w: uniform(w, bits))
    for seed in range(3):
        weight = weights(seed=seed)
        turns = alternation(weight, lambda w: quantiser(w).dense(), 6, 5)
        assert all(after <= before + 1e-9 for after, before in turns)
        found, (up, down), (qlora, kept) = begin(weight, quantiser, 6, 5, False, a_draw())
        error = float((weight - found.dense() - up @ down.T).double().norm())
        assert error == pytest.approx(min(after for after, _ in turns), rel=2e-3)
        assert kept <= qlora


@pytest.mark.oracle(seed=180, clause=3, against="the code of LoftQ's authors")
@pytest.mark.parametrize("record", RECORDED["records"], ids=lambda r: f"{r['quant']}-{r['bits']}")
def test_every_turn_is_that_of_the_authors_code(record):
    """It goes on from the last turn; we keep the best, so each turn is asked for by what it goes on from."""
    rows, columns = RECORDED["shape"]
    at = torch.arange(rows * columns, dtype=torch.float64).view(rows, columns)
    weight = (wave(rows, columns).double() + 0.3 * torch.sin(0.013 * at * at)).float()
    quantize = {"nf": lambda w: normal_float(w, record["bits"], 64), "uniform": lambda w: uniform(w, record["bits"])}
    low_rank = torch.zeros_like(weight)
    for turn in record["turns"]:
        found = quantize[record["quant"]](weight - low_rank).dense()
        up, down = decomposed(weight - found, RECORDED["rank"], False, a_draw())
        low_rank = up @ down.T
        assert far(found, turn["dense"]) <= 2e-6 and far(low_rank, turn["product"]) <= 1e-5
    errors = [turn["left"] for turn in record["turns"]]
    _, _, (_, least) = begin(weight, quantize[record["quant"]], RECORDED["rank"], len(errors), False, a_draw())
    assert least == pytest.approx(min(errors) / float(weight.norm()), abs=2e-6)


@pytest.mark.oracle(seed=180, clause=4, against="the weights themselves")
@pytest.mark.parametrize("iterations", [1, 5])
def test_full_rank_gives_the_weights_back(iterations):
    weight = weights()
    found, (up, down), _ = begin(weight, lambda w: normal_float(w, 2, 64), 24, iterations, False, a_draw())
    assert (found.dense() + up @ down.T - weight).abs().max() <= 1e-5


@pytest.mark.oracle(seed=180, clause=6, against="bitsandbytes' table, and the paper's construction by hand")
@pytest.mark.parametrize("bits", TABLES)
def test_the_tables_are_the_known_ones(bits):
    assert len(normal_levels(bits)) == 2 ** bits
    assert normal_levels(bits) == pytest.approx(TABLES[bits], abs=1e-4)


@pytest.mark.oracle(seed=180, clause=7, against="weights on the grid")
def test_weights_on_the_grid_are_their_own_rounding():
    codes = torch.randint(0, 16, (6, 64), generator=torch.Generator().manual_seed(2))
    codes[:, 0] = 15  # each block holds its largest weight
    scales = torch.rand(6, 1, generator=torch.Generator().manual_seed(3)) + 0.5
    weight = torch.tensor(normal_levels(4))[codes] * scales
    found, (up, down), errors = begin(weight, lambda w: normal_float(w, 4, 64), 3, 3, False, a_draw())
    assert torch.equal(found.dense(), weight) and (up @ down.T).abs().max() <= 1e-6 and errors == (0.0, 0.0)
    assert (uniform(weight, 4).dense() - weight).abs().max() > 0.05, "the clipped quantiser has no such grid"


@pytest.mark.oracle(seed=180, clause=8, against="loftq with alpha = rank")
@pytest.mark.parametrize("alpha", [1, 32])
def test_the_scaling_does_not_move_the_start(alpha, pico):
    one, other = (tuned_logits(prepared(pico, f"loftq:bits=2,iterations=2,rank=8{a}")) for a in ("", f",alpha={alpha}"))
    assert (one - other).abs().max() <= 1e-4
    assert (one - tuned_logits(load_base(pico))).abs().max() > 1e-2


@pytest.mark.parametrize(("rows", "columns"), [(24, 40), (40, 24)])
def test_uniform_levels_are_equal_steps_within_two_deviations(rows, columns):
    weight = weights(rows, columns)
    dense = uniform(weight, 3).dense()
    low, high = float(weight.mean() - 2 * weight.std()), float(weight.mean() + 2 * weight.std())
    steps = torch.linspace(low, high, 8)
    wanted = steps[(weight[..., None] - steps).abs().argmin(-1)]
    assert torch.allclose(dense, wanted, atol=1e-5)


def test_groups_have_scales_and_zeros_of_their_own():
    weight = weights(4, 10)
    dense = affine(weight, 4, 4).dense()
    for row in range(4):
        for at in (0, 4, 8):
            piece = weight[row, at:at + 4]
            low, high = min(0.0, float(piece.min())), max(0.0, float(piece.max()))
            step = (high - low) / 15
            wanted = [(min(15, max(0, round(float(w) / step + round(-low / step)))) - round(-low / step)) * step for w in piece]
            assert dense[row, at:at + 4].tolist() == pytest.approx(wanted, abs=1e-5)
    assert (affine(weight, 2, 10, "mse").dense() - weight).norm() <= (affine(weight, 2, 10).dense() - weight).norm()


def test_randomised_singular_vectors_are_near_the_exact_ones():
    left = weights(60, 5) @ weights(5, 50, seed=1) + 1e-3 * weights(60, 50, seed=2)
    exact, near = (decomposed(left, 5, way, a_draw()) for way in (False, True))
    assert (exact[0] @ exact[1].T - near[0] @ near[1].T).norm() <= 1e-3 * left.norm()


@pytest.fixture
def tuned(pico, make_ctx):
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    ctx = make_ctx("fit", inputs)
    said: list[str] = []
    ctx.log = said.append
    artifact = short_fit("decoder", method="loftq:bits=2/4,rank=4", length={"steps": 2}).run(inputs, ctx)
    return artifact, said


def test_what_is_left_says_what_it_is_and_stands_on_its_own_base_only(tuned, pico):
    artifact, said = tuned
    facts = read_json(artifact.folder / "loftq.json")
    assert {f["bits"] for n, f in facts.items() if "layers.0." in n} == {4}
    assert {f["bits"] for n, f in facts.items() if "layers.1." in n} == {2}
    assert all(f["loftq"] <= f["qlora"] for f in facts.values())
    assert any("relative error of 14 layers" in line and "MB in 16 bits" in line for line in said)
    assert 2.5 < artifact.meta["low_bits"]["average_bits"] < 3.7
    assert artifact.meta["fit"]["total_parameters"] == load_base(pico).parameters() + artifact.meta["fit"]["trained_parameters"]
    with pytest.raises(UserError, match="trained on a base in few bits .* would be a wrong model"):
        LOADERS["adapter"](load_base(pico), artifact.folder)


def test_plain_peft_loads_it_on_the_unpacked_base(tuned, pico, tmp_path):
    from peft import PeftModel

    artifact, _ = tuned
    model = add_tuned(load_base(pico), artifact)
    wanted = tuned_logits(model)
    plain = load_base(pico)
    with torch.no_grad():
        for name, layer in layers_of(model.module).items():
            own = name.removeprefix("base_model.model.").removesuffix(".base_layer")
            plain.module.get_submodule(own).weight.copy_(layer.dense())
    plain.module = PeftModel.from_pretrained(plain.module, artifact.folder)
    assert (tuned_logits(plain) - wanted).abs().max() <= 1e-5
    low_bits.whole(model)
    assert not layers_of(model.module)
    model.module = model.module.merge_and_unload()
    assert (tuned_logits(model) - wanted).abs().max() <= 1e-4, "exported as ordinary weights"


def test_layers_that_share_weights_stay_and_are_named(pico, make_ctx):
    model, said = load_base(pico), []
    layers = model.module.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    ctx = make_ctx("fit")
    ctx.log = said.append
    build("method", "loftq:iterations=0").prepare(model, ctx)
    assert "layers.0.mlp.up_proj, model.layers.1.mlp.up_proj share weights" in said[0]
    assert len(layers_of(model.module)) == 12


@pytest.mark.parametrize(("spec", "said"), [
    ("loftq:bits=5", "bits = 5"),
    ("loftq:rank=65", "rank = 65 is above 32, the smallest side"),
    ("loftq:target=[nothing]", "loftq: no linear layer is called nothing"),
])
def test_what_can_not_be_is_refused(spec, said, pico):
    with pytest.raises(UserError, match=said):
        prepared(pico, spec)


def test_weights_that_are_no_numbers_and_bases_in_few_bits_are_refused(pico):
    model = load_base(pico)
    with torch.no_grad():
        model.module.model.layers[0].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"loftq: the weights of model.layers.0.mlp.up_proj are not all finite"):
        build("method", "loftq").prepare(model, None)
    twice = prepared(pico, "loftq:iterations=0,rank=2")
    with pytest.raises(UserError, match="loftq quantises pico itself, and it is in few bits already"):
        build("method", "loftq").prepare(twice, None)


def test_a_block_that_does_not_divide_is_cut_short():
    weight = weights(3, 7)
    assert torch.allclose(normal_float(weight, 4, 64).dense(), by_hand(weight, 4), atol=1e-6)
    assert torch.allclose(normal_float(weight, 3, 4).dense(), by_hand(weight, 3, 4), atol=1e-6)


def test_gpt2_layers_keep_their_places():
    from transformers.pytorch_utils import Conv1D

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = Conv1D(6, 4)

    module = Tiny()
    x, weight = torch.randn(2, 4), module.one.weight.detach().clone()
    model = type("M", (), {"module": module, "low_bits": None})()
    low_bits.put(model, "one", normal_float(weight.T.contiguous(), 8, 64))
    assert (module.one(x) - (x @ weight + module.one.bias)).abs().max() <= 1e-2
    model.low_bits = low_bits.LowBitBase({"one": module.one.low_bits})
    low_bits.whole(model)
    assert isinstance(module.one, Conv1D) and module.one.weight.shape == (4, 6)


def test_a_channel_that_never_speaks_is_no_obstacle():
    weight, x = weights(6, 10), torch.randn(50, 10, generator=a_draw())
    x[:, 3] = 0
    matrix, left = gptq(weight, 2 * x.T @ x, 4, 4)
    assert torch.isfinite(matrix.dense()).all() and left.shape == (6, 0)
    assert torch.isfinite(gptq(weight, torch.zeros(10, 10), 4, 4)[0].dense()).all()
