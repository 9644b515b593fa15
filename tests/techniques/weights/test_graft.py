"""graft, apply-graft and revert-graft: whole and empty masks, counts, the gradient, a planted skill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.core.errors import UserError
from luthier.core.files import read_json
from luthier.core.rng import Rng
from luthier.engine import pico as pico_models
from luthier.pipelines.merging import merge
from luthier.techniques.weights._grafting import optimised, relaxed, slope
from tests.recorded import far, recorded, wave
from tests.techniques.weights._recorded import merged

WEIGHTS, RECORDED = "model.safetensors", recorded("graft")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base `a`, tunes `b` and `c` of it that moved its layers alone, and rows."""
    folder = tmp_path_factory.mktemp("graft")
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        pico_models.make("pico", folder / name)
        if seed:
            rng, tensors = torch.Generator().manual_seed(seed), load_file(folder / name / WEIGHTS)
            moved = {n: t + 0.02 * torch.randn(t.shape, generator=rng) if ".layers." in n else t for n, t in tensors.items()}
            save_file(moved, folder / name / WEIGHTS, metadata={"format": "pt"})
    (folder / "rows.jsonl").write_text("".join(
        json.dumps({"question": f"What is peg {i}?", "answer": f"a peg of plot {i}"}) + "\n" for i in range(10)))
    return folder


def recorded_tune() -> list[dict[str, torch.Tensor]]:
    """The base and the tune of the recorded masks."""
    base = {n: wave(*shape, shift=k) for k, (n, shape) in enumerate(RECORDED["shapes"].items())}
    return [base, {n: t + wave(*t.shape, shift=k + 0.7, scale=0.05) for k, (n, t) in enumerate(base.items())}]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def grafted(place: Path, tmp_path: Path, spec: str, name: str = "x", tuned: str = "b") -> tuple[Path, Path]:
    """A graft and the model with it."""
    graft, _ = merge([str(place / tuned)], spec, tmp_path / f"{name}.graft", base=str(place / "a"))
    whole, _ = merge([str(graft)], "apply-graft", tmp_path / name, base=str(place / "a"))
    return graft, whole


@pytest.mark.oracle(seed=59, clause=1, against="the tuned model and the base")
def test_a_whole_mask_is_the_tuned_model_and_an_empty_one_the_base(place, tmp_path):
    _, whole = grafted(place, tmp_path, "graft:sparsity=1")
    assert all(torch.equal(t, weights(place / "b")[n]) for n, t in weights(whole).items())
    base, tuned = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.equal(merged("apply-graft", [{"h.0.w": base}, {"h.0.w": base}])["h.0.w"], base)
    empty = {"w": torch.zeros(4, 3)}
    none = optimised({"w": base}, {"w": tuned - base}, empty, lambda w, step: {}, lambda w: 0.0, 0, 1.0, Rng(0))
    assert not none["w"].any()


@pytest.mark.oracle(seed=59, clause=2, against="the base, bit for bit")
def test_what_was_applied_can_be_reverted(place, tmp_path):
    graft, whole = grafted(place, tmp_path, "graft:sparsity=0.01")
    assert any(not torch.equal(t, weights(place / "a")[n]) for n, t in weights(whole).items())
    back, _ = merge([str(whole)], f"revert-graft:graft={graft}", tmp_path / "back")
    assert all(torch.equal(t, weights(place / "a")[n]) for n, t in weights(back).items())
    with pytest.raises(UserError, match="does not hold the values of"):
        merge([str(place / "a")], f"revert-graft:graft={graft}", tmp_path / "never")


@pytest.mark.oracle(seed=59, clause=3, against="autograd")
def test_the_gradient_of_the_mask_is_that_of_autograd():
    start, s = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([9.0, 10.5, 3.0], requires_grad=True)
    before, change, x = torch.tensor([0.3, -0.2, 0.7]), torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 2.0, -1.5])

    def loss(theta: torch.Tensor) -> torch.Tensor:
        return ((theta * x).sum() - 1).square()

    loss(before + relaxed(start, s) * change).backward()
    theta = (before + relaxed(start, s.detach()) * change).requires_grad_(True)
    loss(theta).backward()
    assert torch.allclose(slope(start, s.detach(), theta.grad, change), s.grad, rtol=1e-5)


@pytest.mark.oracle(seed=59, clause=5, against="the code of grafting's authors")
@pytest.mark.parametrize("record", RECORDED["records"], ids=lambda r: f"s={r['sparsity']}")
def test_the_first_mask_is_that_of_the_authors_code(record):
    """It keeps what is above the k-th largest change, and so one entry less than the k that were asked for."""
    base, tuned = recorded_tune()
    found = merged(f"graft:sparsity={record['sparsity']}", [base, tuned])
    ours = {(n, i) for n in base for i in found.get(f"{n}:at", torch.tensor([])).tolist()}
    theirs = {(n, i) for n, mask in zip(base, record["first"], strict=True) for i, kept in enumerate(mask) if kept}
    (more,) = ours - theirs
    change = {n: (tuned[n] - base[n]).abs().flatten() for n in base}
    assert theirs < ours and len(ours) == round(record["sparsity"] * sum(len(c) for c in change.values()))
    assert more == min(ours, key=lambda place: float(change[place[0]][place[1]]))


@pytest.mark.oracle(seed=59, clause=3, against="the code of grafting's authors")
@pytest.mark.parametrize("record", RECORDED["records"], ids=lambda r: f"s={r['sparsity']}")
def test_steps_of_the_mask_are_those_of_the_authors_code(record):
    """Of a model that is one sum of its weights, from the numbers that it began with."""
    base, tuned = recorded_tune()
    change = {n: tuned[n] - base[n] for n in base}
    start, s = ({n: torch.tensor(x).float().view(base[n].shape) for n, x in zip(base, given, strict=True)}
                for given in (record["first"], record["real"][0]))
    for wanted in record["real"][1:]:
        at = {n: (base[n] + relaxed(start[n], s[n]) * change[n]).requires_grad_(True) for n in base}
        said = torch.stack([(at[n] * wave(*at[n].shape, shift=3.0 + k)).sum() for k, n in enumerate(at)]).sum()
        gradients = torch.autograd.grad((said - 1).square(), list(at.values()))
        for (n, own), g, aim in zip(s.items(), gradients, wanted, strict=True):
            own -= RECORDED["rate"] * slope(start[n], own, g, change[n])
            assert far(own, aim) <= 5e-6
    assert max(float((s[n].flatten() - torch.tensor(b)).abs().max()) for n, b in zip(s, record["real"][0], strict=True)) > 0.1


@pytest.mark.oracle(seed=59, clause=4, against="a planted skill")
def test_the_optimiser_finds_what_matters():
    change, x = torch.ones(55), torch.zeros(200, 55)
    x[:, :5] = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    target, seen = x @ change, []

    def loss(w: dict[str, torch.Tensor]) -> torch.Tensor:
        return (x @ w["w"] - target).square().mean()

    def gradients(w: dict[str, torch.Tensor], step: int) -> dict[str, torch.Tensor]:
        theta = w["w"].clone().requires_grad_(True)
        loss({"w": theta}).backward()
        seen.append(theta.grad)
        return {"w": theta.grad}

    nothing = {"w": torch.zeros(55)}
    mask = optimised(nothing, {"w": change}, nothing, gradients, lambda w: float(loss(w)), 30, 2e4, Rng(0))["w"]
    assert mask.nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert all(not g[5:].any() for g in seen)


@pytest.mark.oracle(seed=59, clause=5, against="the entries of the file")
@pytest.mark.parametrize("start", ["magnitude", "random"])
def test_there_are_as_many_entries_as_stated(place, tmp_path, start):
    graft, whole = grafted(place, tmp_path, f"graft:sparsity=0.003,start={start}")
    base, tuned, made = (weights(f) for f in (place / "a", place / "b", whole))
    layered = [n for n in base if ".layers." in n]
    wanted = round(0.003 * sum(base[n].numel() for n in layered))
    stored = load_file(graft / "delta.safetensors")
    assert sum(len(t) for n, t in stored.items() if n.endswith(":at")) == wanted
    assert sum(f["entries"] for f in read_json(graft / "merge.json")["facts"].values()) == wanted
    assert sum(int((made[n] != base[n]).sum()) for n in base) == wanted
    if start == "magnitude":
        every = torch.cat([(tuned[n] - base[n]).abs().reshape(-1) for n in layered]).sort(descending=True).values
        kept = torch.cat([(made[n] - base[n]).abs().reshape(-1) for n in layered])
        assert torch.allclose(kept[kept > 0].sort(descending=True).values, every[:wanted])


def test_the_mask_follows_rows_and_never_loses(place, tmp_path):
    sizes, losses = {}, {}
    for name, spec in (("start", "graft:sparsity=0.01"),
                       ("optimised", f"graft:sparsity=0.01,data={place / 'rows.jsonl'},steps=4,rate=1e7,rows=4")):
        graft, whole = grafted(place, tmp_path, spec, name)
        sizes[name] = sum(f["entries"] for f in read_json(graft / "merge.json")["facts"].values())
        losses[name] = held_out_loss(whole, place / "rows.jsonl")
    assert losses["optimised"] <= losses["start"] + 1e-6
    assert sizes["optimised"] != sizes["start"] and losses["optimised"] < losses["start"]


def held_out_loss(model: Path, rows: Path) -> float:
    """The loss that the optimiser watches, of a folder."""
    from luthier.core.component import build
    from luthier.engine.workshop import Engine
    from luthier.pipelines.mergeable import locate
    from luthier.techniques.weights._rows import Asked, read_pairs

    loaded = locate(str(model)).load(Engine(threads=1, exact=True))
    asked = Asked(loaded, read_pairs(str(rows), "x", "x")[::5], build("objective", "supervised"), Rng(0), 4, 512)
    return sum(float(asked.loss(b)) for b in asked.batches) / len(asked.batches)


def sparse(size: int, **values: float) -> dict[str, torch.Tensor]:
    tensor = torch.zeros(size)
    for at, value in values.items():
        tensor[int(at[1:])] = value
    return {"h.0.w": tensor}


def test_grafts_are_united_and_conflicts_decided():
    base, one, two = sparse(5), sparse(5, _0=1, _1=2), sparse(5, _1=3, _4=4)
    with pytest.raises(UserError, match=r"1 entries of graft 2 .*conflict=last or conflict=sum"):
        merged("apply-graft", [base, one, two])
    assert merged("apply-graft:conflict=last", [base, one, two])["h.0.w"].tolist() == [1, 3, 0, 0, 4]
    assert merged("apply-graft:conflict=sum", [base, one, two])["h.0.w"].tolist() == [1, 5, 0, 0, 4]
    assert merged("apply-graft", [base, one, one])["h.0.w"].tolist() == [1, 2, 0, 0, 0]


@pytest.mark.parametrize(("spec", "said"), [
    ("graft:sparsity=1e-9", "leaves none"), ("graft:data=nowhere.jsonl", "there is no such file"),
    ("revert-graft:graft=nowhere", "holds no delta.safetensors"),
])
def test_what_can_not_be_grafted_is_refused(spec, said, place, tmp_path):
    base: Any = None if spec.startswith("revert") else str(place / "a")
    with pytest.raises(UserError, match=said):
        merge([str(place / "b")], spec, tmp_path / "x", base=base)
    with pytest.raises(UserError, match="nothing to graft"):
        merge([str(place / "a")], "graft", tmp_path / "y", base=str(place / "a"))
    (tmp_path / "bad.jsonl").write_text('{"question": "a"}\n{"question": "a", "answer": "b"}\n')
    with pytest.raises(UserError, match="1 lines can't be used .line 1: has no question and answer"):
        merge([str(place / "b")], f"graft:data={tmp_path / 'bad.jsonl'}", tmp_path / "z", base=str(place / "a"))
