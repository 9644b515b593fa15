"""LT-SFT against cases by hand, the base bit for bit, and full tuning."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.engine.models import add_tuned, load_base
from luthier.engine.sparse import SparseDelta, largest
from luthier.techniques.methods.lt_sft import moved
from tests.contracts.workbench import encode, examples, make_loop, short_fit, training_data
from tests.recorded import recorded, wave


def trained(base, make_ctx, spec: str, name: str = "fit", steps: int = 4, **plan):
    method, model, objective = build("method", spec), load_base(base), build("objective", "supervised")
    method.prepare(model, None)
    loop = make_loop(model, objective, encode(objective, model, examples(8)), make_ctx(name), steps=steps, batch_rows=8, **plan)
    loop.hooks = [method.start(model, loop.ctx)]
    loop.train()
    return loop


def weights(model) -> dict[str, torch.Tensor]:
    return dict(model.module.named_parameters())


@pytest.mark.oracle(seed=70, clause=1, against="the number that was asked for")
@pytest.mark.oracle(seed=70, clause=2, against="the base itself, bit for bit")
@pytest.mark.parametrize(("params", "count"), [("1000", 1000), ("0.05", None)])
def test_exactly_k_entries_move_and_nothing_else(params, count, pico, make_ctx):
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    fit = short_fit("decoder", method=f"lt-sft:params={params}", length={"steps": 6}, optimizer="adamw:weight_decay=0.1")
    artifact = fit.run(inputs, make_ctx("fit", inputs))
    from safetensors.torch import load_file

    held = SparseDelta.of(load_file(artifact.folder / "delta.safetensors"))
    own, tuned = weights(load_base(pico)), weights(add_tuned(load_base(pico), artifact))
    maskable = sum(p.numel() for n, p in own.items() if "norm" not in n and "lm_head" not in n)
    assert len(held) == (count or round(0.05 * maskable)) < maskable
    moved = {n: (own[n] != tuned[n]).flatten().nonzero()[:, 0] for n in own}
    assert 0.9 * len(held) < sum(map(len, moved.values())) <= len(held)
    for name, at in moved.items():
        assert len(at) == 0 or set(at.tolist()) <= set(held.entries[name][0].tolist())
        assert len(at) == 0 or not ("norm" in name or "lm_head" in name)


@pytest.mark.oracle(seed=70, clause=2, against="the base itself, bit for bit, in memory")
def test_entries_off_the_mask_stay_while_training(pico, make_ctx):
    loop, own = trained(pico, make_ctx, "lt-sft:params=500,l1=1000"), weights(load_base(pico))
    hook = loop.hooks[0]
    assert sum(int(m.sum()) for m in hook.masks.values()) == 500
    for name, parameter in weights(loop.model).items():
        off = ~hook.masks[name] if name in hook.masks else torch.ones_like(parameter, dtype=torch.bool)
        assert torch.equal(parameter[off], own[name][off])


@pytest.mark.oracle(seed=70, clause=4, against="full tuning of the second phase's steps")
def test_a_mask_of_everything_is_full_tuning(pico, make_ctx):
    loop = trained(pico, make_ctx, "lt-sft:params=1.0,full_share=0.5,freeze=[]", steps=6)
    full = trained(pico, make_ctx, "full", "full", steps=6)
    plain = [r["loss"] for r in full.curve[:3]]
    assert [r["loss"] for r in loop.curve[3:]] == pytest.approx(plain, abs=1e-6), "all rows are in each batch"
    assert loop.curve[0]["loss"] == pytest.approx(plain[0], abs=1e-6) and loop.clock.began == 3


def pair() -> tuple[dict[str, torch.Tensor], SparseDelta, SparseDelta]:
    make = torch.Generator().manual_seed(0)
    base = {"one": torch.randn(40, 5, generator=make), "two": torch.randn(30, generator=make)}
    deltas = []
    for share in (0.3, 0.5):
        after = {n: w + torch.randn(w.shape, generator=make) for n, w in base.items()}
        masks = {n: torch.rand(w.shape, generator=make) < share for n, w in base.items()}
        deltas.append(SparseDelta.between(base, after, masks))
    return base, *deltas


def applied(base, *deltas) -> dict[str, torch.Tensor]:
    weights = {n: w.clone() for n, w in base.items()}
    for delta in deltas:
        delta.apply(weights)
    return weights


@pytest.mark.oracle(seed=70, clause=3, against="copies")
@pytest.mark.oracle(seed=70, clause=6, against="subtracting the differences, which is not exact")
def test_apply_then_revert_restores_exactly():
    base, one, _ = pair()
    weights = {n: w.clone() for n, w in base.items()}
    old = one.apply(weights)
    assert not torch.equal(weights["one"], base["one"])
    away = {n: w.clone() for n, w in weights.items()}
    old.put(weights)
    assert all(torch.equal(weights[n], base[n]) for n in base)
    SparseDelta({n: (at, -by) for n, (at, by) in one.entries.items()}).apply(away)
    assert not all(torch.equal(away[n], base[n]) for n in base)
    assert all(torch.allclose(away[n], base[n], atol=1e-6) for n in base)


@pytest.mark.oracle(seed=70, clause=5, against="theta0 + a + b, dense")
def test_composition_is_addition_in_any_order():
    base, one, two = pair()
    dense = {n: w + sum(torch.zeros(w.numel()).scatter_(0, *d.entries[n]).view(w.shape) for d in (one, two))
             for n, w in base.items()}
    for found in (applied(base, one + two), applied(base, two + one), applied(base, one, two)):
        assert all((found[n] - dense[n]).abs().max() <= 1e-6 for n in base)


@pytest.mark.oracle(seed=70, clause=7, against="by hand")
def test_the_largest_move_is_selected():
    moves = torch.tensor([1.0, -3.0, 2.0]).abs()
    assert largest({"w": moves}, 1)["w"].tolist() == [False, True, False]
    both = largest({"v": torch.tensor([[0.5, 4.0]]), "w": moves}, 2)
    assert both["v"].tolist() == [[False, True]] and both["w"].tolist() == [False, True, False]
    assert int(largest({"w": torch.ones(7)}, 3)["w"].sum()) == 3, "ties do not make more"


@pytest.mark.oracle(seed=70, clause=7, against="the code of LT-SFT's authors")
@pytest.mark.parametrize("record", recorded("lt_sft")["records"], ids=lambda r: f"k={r['count']}")
def test_chosen_entries_are_those_of_the_authors_code(record):
    shapes = {n: shape for n, shape in recorded("lt_sft")["shapes"].items() if n in record["places"]}
    begin = {n: wave(*shape, shift=k) for k, (n, shape) in enumerate(shapes.items())}
    after = {n: t + wave(*t.shape, shift=k + 0.5, scale=0.01 * (k + 1)) for k, (n, t) in enumerate(begin.items())}
    found = largest(moved(SimpleNamespace(weights=after, begin=begin)), record["count"])
    assert {n: m.flatten().nonzero()[:, 0].tolist() for n, m in found.items()} == record["places"]


@pytest.mark.oracle(seed=70, clause=7, against="|theta1 - theta0| after one step, by hand")
def test_what_moved_most_in_the_first_phase_is_selected(pico, make_ctx):
    chosen = trained(pico, make_ctx, "lt-sft:params=50,full_share=0.25", optimizer="adamw").hooks[0].masks
    first = trained(pico, make_ctx, "full", "full", steps=1)
    own = weights(load_base(pico))
    moves = torch.cat([(p.detach() - own[n]).abs().flatten() for n, p in weights(first.model).items() if n in chosen])
    picked = torch.cat([m.flatten() for m in chosen.values()])
    assert int(picked.sum()) == 50 and moves[picked].min() >= moves[~picked].max() - 1e-7


def test_entries_by_chance_are_as_many_and_fall_by_size(pico, make_ctx):
    masks = [trained(pico, make_ctx, f"lt-sft:params=0.1,by={by}", f"{by}-{n}/fit").hooks[0].masks
             for by, n in (("random", 0), ("random", 1), ("moved", 0))]
    assert all(torch.equal(m, masks[1][n]) for n, m in masks[0].items()), "one seed, one draw"
    sizes = {n: m.numel() for n, m in masks[0].items()}
    counts = [sum(int(m.sum()) for m in some.values()) for some in masks]
    assert counts == [round(0.1 * sum(sizes.values()))] * 3
    for name, mask in masks[0].items():
        chance = (0.09 / sizes[name]) ** 0.5
        assert abs(float(mask.float().mean()) - 0.1) < 5 * chance, name
    overlap = sum(int((m & masks[2][n]).sum()) for n, m in masks[0].items()) / counts[0]
    assert 0.05 < overlap < 0.15, "of a tenth that is drawn a tenth is in any other tenth"


@pytest.mark.oracle(seed=70, clause=8, against="itself")
def test_stored_and_read_is_the_same(tmp_path):
    from safetensors.torch import load_file, save_file

    _, one, _ = pair()
    save_file({**one.tensors(), "dense": torch.zeros(2)}, tmp_path / "delta.safetensors")
    again = SparseDelta.of(load_file(tmp_path / "delta.safetensors"))
    assert again.entries.keys() == one.entries.keys()
    assert all(torch.equal(a, b) for n in one.entries for a, b in zip(again.entries[n], one.entries[n], strict=True))


@pytest.mark.parametrize("spec, said", [
    ("lt-sft:params=999999999", "means 999,999,999 entries; pico has"),
    ("lt-sft:freeze=[nothing]", "freeze: no weight is called nothing. Legal: layernorm, lm_head, or parts of names"),
    ("lt-sft:terms=[nothing]", "no weight is called nothing"),
])
def test_what_can_not_be_is_refused(spec, said, pico, make_ctx):
    with pytest.raises(UserError, match=said):
        trained(pico, make_ctx, spec)


def test_a_delta_of_other_shapes_changes_nothing():
    base, one, _ = pair()
    small = {"one": base["one"].clone(), "two": torch.zeros(3)}
    with pytest.raises(UserError, match="'two' has no place there"):
        one.apply(small)
    assert torch.equal(small["one"], base["one"])
