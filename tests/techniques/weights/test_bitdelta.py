"""bitdelta: lossless packing, the best scale, exact cases, and the file that it leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_json
from luthier.engine import pico as pico_models
from luthier.engine.deltas import pack_bits, product, restored, signs, unpack_bits
from luthier.pipelines.merging import merge
from luthier.techniques.weights.bitdelta import planes
from tests.recorded import far, recorded, wave

WORDS = "glue spruce ebony varnish bridge peg scroll bow hair rosin plane scraper clamp joint purfling string".split()


def change(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.01 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.oracle(seed=136, clause=1, against="the bits themselves")
@pytest.mark.parametrize("shape", [(1,), (8,), (3, 3), (5, 16), (7, 9), (2, 3, 5)])
def test_what_is_packed_is_unpacked(shape):
    truth = change(*shape) >= 0
    packed = pack_bits(truth)
    assert packed.dtype == torch.uint8 and len(packed) == -(-truth.numel() // 8)
    assert torch.equal(unpack_bits(packed, shape), truth)
    by_hand = [sum(int(b) << i for i, b in enumerate(truth.reshape(-1)[n:n + 8].tolist())) for n in range(0, truth.numel(), 8)]
    assert packed.tolist() == by_hand


@pytest.mark.oracle(seed=136, clause=2, against="every other scalar of a grid")
def test_the_scale_is_the_mean_and_the_best():
    d = change(6, 11)
    _, found, left = planes(d, 1)
    assert float(found[0]) == pytest.approx(float(d.abs().mean()), rel=1e-6)
    errors = [float((d - a * torch.where(d >= 0, 1.0, -1.0)).norm()) for a in np.linspace(0, 3, 301) * float(found[0])]
    assert float(left.norm()) <= min(errors) + 1e-7


@pytest.mark.oracle(seed=136, clause=3, against="the tuned weights")
def test_a_change_of_one_size_is_exact():
    base, sign = torch.zeros(5, 7), torch.where(change(5, 7) >= 0, 1.0, -1.0)
    bits, scales, left = planes(0.25 * sign, 1)
    assert torch.equal(restored("w", base, {"bits": bits, "scales": scales}), 0.25 * sign) and not left.any()


@pytest.mark.oracle(seed=136, clause=4, against="the error of fewer planes")
def test_more_planes_are_never_worse():
    base, d = change(9, 13, seed=1), change(9, 13, seed=2)
    errors = []
    for count in range(1, 7):
        bits, scales, _ = planes(d, count)
        errors.append(float((restored("w", base, {"bits": bits, "scales": scales}) - base - d).norm()))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2 * errors[0]


@pytest.mark.oracle(seed=136, clause=5, against="the dense product")
@pytest.mark.parametrize("bits", [1, 3])
def test_the_product_on_the_fly_is_the_dense_one(bits):
    base, d, x = change(6, 10, seed=3) * 50, change(6, 10, seed=4), torch.randn(2, 3, 10)
    packed, scales, _ = planes(d, bits)
    dense = x @ restored("w", base, {"bits": packed, "scales": scales}).T
    assert torch.allclose(product(x, base, packed, scales), dense, atol=1e-5)


@pytest.mark.oracle(seed=136, clause=7, against="the code of BitDelta's authors")
@pytest.mark.parametrize("record", recorded("bitdelta")["records"], ids=lambda r: f"{r['shape']}")
def test_signs_scales_and_changes_are_those_of_the_authors_code(record):
    """It packs 32 inputs of an output in a number, and stands for a change of 0 by the scale as we do."""
    rows, columns = record["shape"]
    base, d = wave(rows, columns), wave(rows, columns, shift=record["shift"], scale=0.01)
    d.view(-1)[::7] = 0.0
    bits, scales, _ = planes(base + d - base, 1)
    words = torch.tensor(record["packed"], dtype=torch.int64)
    theirs = torch.stack([(words >> n) & 1 for n in range(32)], 1).reshape(columns, rows).T
    assert torch.equal(unpack_bits(bits[0], (rows, columns)), theirs.bool())
    assert float(scales[0]) == pytest.approx(record["scale"], rel=1e-6)
    made = restored("w", torch.zeros(rows, columns), {"bits": bits, "scales": scales})
    assert far(made, record["change"]) <= 1e-6


@pytest.mark.oracle(seed=136, clause=7, against="the published meaning of a bit")
def test_a_bit_of_one_is_a_change_of_at_least_zero():
    d = torch.tensor([[0.0, -1.0, 2.0], [-0.5, 0.0, -3.0]])
    bits, _, _ = planes(d, 1)
    assert bits.tolist() == [[0b010101]]
    assert signs(bits[0], (2, 3)).tolist() == [[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base `a`, a tune `b` of it whose norms and embeddings stood still, and text."""
    folder = tmp_path_factory.mktemp("bitdelta")
    for name in "ab":
        pico_models.make("pico", folder / name)
        tensors = load_file(folder / name / "model.safetensors")
        if name == "b":
            tensors = {n: t + change(*t.shape, seed=i) if "norm" not in n and "embed" not in n else t
                       for i, (n, t) in enumerate(tensors.items())}
        save_file(tensors, folder / name / "model.safetensors", metadata={"format": "pt"})
    rng = np.random.default_rng(0)
    (folder / "text.txt").write_text(" ".join(rng.choice(WORDS, 400)))
    return folder


def test_a_delta_is_small_and_becomes_plain_weights_again(place, tmp_path):
    delta, found = merge([str(place / "b")], "bitdelta:bits=2", tmp_path / "t.delta", base=str(place / "a"))
    assert all(f.verdict == "agrees" for f in found)
    stored, tuned = load_file(delta / "delta.safetensors"), load_file(place / "b" / "model.safetensors")
    base = load_file(place / "a" / "model.safetensors")
    packed = [n.removesuffix(":bits") for n in stored if n.endswith(":bits")]
    assert len(packed) == 14 and "lm_head.weight" in stored and "model.norm.weight" not in stored
    full = sum(2 * tuned[n].numel() for n in packed)  # bytes in bfloat16
    assert full >= 7.5 * sum(t.numel() * t.element_size() for n, t in stored.items() if ":" in n)
    plain, _ = merge([str(delta)], "linear", tmp_path / "plain", base=str(place / "a"))
    for name, tensor in load_file(plain / "model.safetensors").items():
        if name in packed:
            *_, left = planes(tuned[name] - base[name], 2)
            assert torch.allclose(tensor, tuned[name] - left, atol=1e-6)
        else:
            assert torch.equal(tensor, tuned[name])
    facts = read_json(delta / "merge.json")["facts"]
    assert facts.keys() == set(packed) and all(0 < f["relative error"] < 0.5 for f in facts.values())


def test_one_bit_is_a_sixteenth_of_bfloat16(place, tmp_path):
    delta, _ = merge([str(place / "b")], "bitdelta", tmp_path / "t.delta", base=str(place / "a"))
    stored, tuned = load_file(delta / "delta.safetensors"), load_file(place / "b" / "model.safetensors")
    full = sum(2 * tuned[n.removesuffix(":bits")].numel() for n in stored if n.endswith(":bits"))
    assert full >= 10 * sum(t.numel() * t.element_size() for n, t in stored.items() if ":" in n)


@pytest.mark.oracle(seed=136, clause=6, against="the held-out distance before distillation")
@pytest.mark.parametrize(("learning_rate", "steps"), [(0.05, 40), (2.0, 10)])
def test_distillation_never_worsens_held_out_text(place, tmp_path, learning_rate, steps):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given = [str(place / "b")]
    spec = f"bitdelta:distill={place / 'text.txt'},steps={steps},tokens=16,learning_rate={learning_rate}"
    ids = AutoTokenizer.from_pretrained(place / "a")((place / "text.txt").read_text())["input_ids"]
    held = torch.tensor([ids[i:i + 16] for i in range(0, len(ids) - 15, 16)][::5])
    distance = {}
    for name, rule in (("before", "bitdelta"), ("after", spec)):
        delta, _ = merge(given, rule, tmp_path / f"{name}.delta", base=str(place / "a"))
        plain, _ = merge([str(delta)], "linear", tmp_path / name, base=str(place / "a"))
        with torch.no_grad():
            said = [AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32)(held).logits for f in (plain, place / "b")]
        distance[name] = float((said[0] - said[1]).square().mean())
    assert distance["after"] <= distance["before"] * (1 + 1e-5)
    if learning_rate < 1:
        assert distance["after"] < distance["before"]
    else:  # far too high: the start is what is kept
        assert distance["after"] == pytest.approx(distance["before"], rel=1e-5)


@pytest.mark.oracle(seed=136, clause=2, against="the variance of a sum of random signs")
def test_random_signs_have_the_right_scale_and_lose_the_change(place, tmp_path):
    """||D - a S||² = ||D||² + n a² on average, where S knows nothing of D: more than is lost by leaving D out."""
    delta, _ = merge([str(place / "b")], "bitdelta:signs=random", tmp_path / "any.delta", base=str(place / "a"))
    real, _ = merge([str(place / "b")], "bitdelta", tmp_path / "own.delta", base=str(place / "a"))
    found, own = (load_file(folder / "delta.safetensors") for folder in (delta, real))
    base, tuned = (load_file(place / name / "model.safetensors") for name in "ab")
    lost, expected = 0.0, 0.0
    for name in (n.removesuffix(":bits") for n in found if n.endswith(":bits")):
        assert torch.equal(found[f"{name}:scales"], own[f"{name}:scales"])
        d, scale = tuned[name] - base[name], float(found[f"{name}:scales"])
        s = signs(found[f"{name}:bits"][0], tuple(d.shape))
        lost += float((d - scale * s).square().sum())
        expected += float(d.square().sum()) + d.numel() * scale**2
    assert lost == pytest.approx(expected, rel=0.05)
    with_text = f"bitdelta:signs=random,distill={place / 'text.txt'},steps=2,tokens=16"
    trained, _ = merge([str(place / "b")], with_text, tmp_path / "trained.delta", base=str(place / "a"))
    again = load_file(trained / "delta.safetensors")
    assert all(torch.equal(again[n], t) for n, t in found.items() if n.endswith(":bits"))


def test_a_delta_of_another_base_is_refused(place, tmp_path):
    delta, _ = merge([str(place / "b")], "bitdelta", tmp_path / "t.delta", base=str(place / "a"))
    with pytest.raises(UserError, match="was trained on .*not on .*Name its own base"):
        merge([str(delta)], "linear", tmp_path / "plain", base=str(place / "b"))


def test_what_can_not_be_packed_is_said(place, tmp_path, make_ctx):
    with pytest.raises(UserError, match="no matrix of a numbered layer differs"):
        merge([str(place / "a")], "bitdelta", tmp_path / "x", base=str(place / "a"))
    with pytest.raises(UserError, match="there is no such file"):
        merge([str(place / "b")], "bitdelta:distill=nowhere.txt", tmp_path / "x", base=str(place / "a"))
    said: list[str] = []
    half = torch.cat([torch.ones(4, 8), torch.zeros(4, 8)])
    for tuned, wanted in ((half, "more than 5% weights that did not change"), (torch.full((8, 8), torch.inf), "not finite")):
        ctx = make_ctx("x", log=said.append)
        ctx.stream = lambda name, t=tuned: iter([(["h.0.w"], [{"h.0.w": torch.zeros(8, 8)}, {"h.0.w": t}])])
        try:
            build("weight_rule", "bitdelta").statistics(ctx)
        except UserError as error:
            said.append(str(error))
        assert wanted in said[-1]
