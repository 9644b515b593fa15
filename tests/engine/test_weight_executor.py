"""The weight executor: shards, types, resuming, and what it sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_json
from luthier.engine.tensors import Spec
from luthier.engine.weight_executor import WeightExecutor, differences
from luthier.engine.weight_sources import INDEX_FILE, Stored

NAMES = [f"layers.{i}.w" for i in range(6)]


def folder_of(place: Path, seed: int, dtype: torch.dtype = torch.float32, **more: torch.Tensor) -> Path:
    """A model in two shards without an index, and an integer buffer."""
    place.mkdir(parents=True)
    rng = torch.Generator().manual_seed(seed)
    tensors = {n: torch.randn(8, 4, generator=rng).to(dtype) for n in NAMES} | {"ids": torch.arange(3)} | more
    save_file({n: tensors[n] for n in NAMES[:3]}, place / "model-00001-of-00002.safetensors")
    save_file({n: t for n, t in tensors.items() if n not in NAMES[:3]}, place / "model-00002-of-00002.safetensors")
    return place


@pytest.fixture
def models(tmp_path) -> list[Stored]:
    return [Stored(folder_of(tmp_path / name, seed)) for name, seed in (("a", 1), ("b", 2))]


def work(tmp_path: Path, name: str = "out") -> Path:
    (tmp_path / name).mkdir(exist_ok=True)
    return tmp_path / name


def test_shards_hold_every_tensor_once_and_the_index_says_where(models, tmp_path):
    out = work(tmp_path)
    executor = WeightExecutor(build("weight_rule", "linear"), models, out, shard_bytes=300)
    executor.run(None)
    weight_map = read_json(out / INDEX_FILE)["weight_map"]
    assert sorted(weight_map) == sorted([*NAMES, "ids"]) and len(set(weight_map.values())) == 3
    for name, file in weight_map.items():
        found = load_file(out / file)[name]
        wanted = torch.arange(3) if name == "ids" else (models[0].read(name) + models[1].read(name)) / 2
        assert torch.allclose(found.float(), wanted.float()) and found.dtype == wanted.dtype
    assert [f.verdict for f in executor.receipts(None)] == ["agrees", "agrees"]


def test_the_size_of_shards_changes_no_number(models, tmp_path):
    rule = build("weight_rule", "linear:weights=[0.3,0.7]")
    for name, size in (("one", 10**9), ("many", 100)):
        WeightExecutor(rule, models, work(tmp_path, name), shard_bytes=size).run(None)
    one, many = Stored(tmp_path / "one"), Stored(tmp_path / "many")
    assert one.specs == many.specs and not (tmp_path / "one" / INDEX_FILE).exists()
    assert all(torch.equal(one.read(n), many.read(n)) for n in one.specs)


def test_what_is_written_keeps_the_type_of_the_first_model(tmp_path):
    given = [Stored(folder_of(tmp_path / "a", 1, torch.bfloat16)), Stored(folder_of(tmp_path / "b", 2))]
    WeightExecutor(build("weight_rule", "linear"), given, work(tmp_path)).run(None)
    made = Stored(tmp_path / "out")
    assert made.specs == given[0].specs and made.specs[NAMES[0]] == Spec(torch.bfloat16, (8, 4))
    wanted = (given[0].read(NAMES[0]).float() + given[1].read(NAMES[0])) / 2
    assert torch.equal(made.read(NAMES[0]), wanted.bfloat16())


def test_a_stopped_merge_goes_on_with_the_shard_it_was_writing(models, tmp_path, monkeypatch):
    out, rule, asked = work(tmp_path), build("weight_rule", "linear"), []

    def counting(group: Sequence[str], tensors: Sequence[Mapping[str, torch.Tensor]], stats: Any) -> dict[str, torch.Tensor]:
        asked.extend(group)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return {n: (tensors[0][n] + tensors[1][n]) / 2 for n in group}

    monkeypatch.setattr(type(rule), "apply", lambda self, *a: counting(*a))
    with pytest.raises(KeyboardInterrupt):
        WeightExecutor(rule, models, out, shard_bytes=300).run(None)
    assert sorted(p.name for p in out.glob("*")) == [
        "journal.jsonl", "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors.part"]
    WeightExecutor(rule, models, out, shard_bytes=300).run(None)
    assert asked == [*NAMES[:4], *NAMES[2:]]
    assert not list(out.glob("*.part")) and len(Stored(out).specs) == len(NAMES) + 1


def test_in_memory_is_one_group_of_every_model(tmp_path, monkeypatch):
    given = [Stored(folder_of(tmp_path / "a", 1)), Stored(folder_of(tmp_path / "b", 2))]
    alive, most = [0], [0]

    class Counted(Stored):
        def read(self, name: str) -> torch.Tensor:
            import weakref

            tensor = super().read(name)
            alive[0] += 1
            most[0] = max(most[0], alive[0])
            weakref.finalize(tensor, lambda: alive.__setitem__(0, alive[0] - 1))
            return tensor

    given = [Counted(tmp_path / name) for name in "ab"]
    WeightExecutor(build("weight_rule", "linear"), given, work(tmp_path)).run(None)
    assert most[0] <= 4  # two of the group at work, two of the one before until its names are bound anew


def test_a_damaged_result_is_seen(models, tmp_path):
    executor = WeightExecutor(build("weight_rule", "linear"), models, work(tmp_path))
    executor.run(None)
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    tensors[NAMES[0]] = tensors[NAMES[0]] * 1.05
    save_file(tensors, tmp_path / "out" / "model.safetensors")
    assert [f.verdict for f in executor.receipts(None)] == ["agrees", "differs"]
    del tensors[NAMES[1]]
    save_file(tensors, tmp_path / "out" / "model.safetensors")
    assert executor.receipts(None)[0].verdict == "differs"


def test_numbers_that_are_not_finite_name_their_input(models, tmp_path):
    bad = Stored(folder_of(tmp_path / "c", 3, more=torch.full((2, 2), float("nan"))))
    good = Stored(folder_of(tmp_path / "d", 3, more=torch.ones(2, 2)))
    with pytest.raises(UserError, match="more would hold numbers that are not finite; those of input 2 are not"):
        WeightExecutor(build("weight_rule", "linear"), [good, bad], work(tmp_path)).run(None)
    large = [Stored(folder_of(tmp_path / n, 3, torch.float16, more=torch.full((2, 2), 60_000.0).half())) for n in "ef"]
    with pytest.raises(UserError, match="they overflow"):
        WeightExecutor(build("weight_rule", "linear:normalize=false"), large, work(tmp_path, "out2")).run(None)


def test_integers_that_differ_are_refused(models, tmp_path):
    other = folder_of(tmp_path / "c", 3)
    save_file({**load_file(other / "model-00002-of-00002.safetensors"), "ids": torch.arange(3) + 1},
              other / "model-00002-of-00002.safetensors")
    with pytest.raises(UserError, match="ids holds integers that differ"):
        WeightExecutor(build("weight_rule", "linear"), [models[0], Stored(other)], work(tmp_path)).run(None)


def test_differences_are_named(models, tmp_path):
    other = Stored(folder_of(tmp_path / "c", 3, extra=torch.ones(1)))
    assert differences([models[0], other], ["a", "c"]) == ["1 tensors are in c alone (extra)"]
    other.specs[NAMES[0]] = Spec(torch.float32, (4, 8))
    assert differences([models[0], other], ["a", "c"])[1] == f"{NAMES[0]} is [8, 4] in a and [4, 8] in c"


def test_a_lost_shard_and_a_torn_file_are_named(tmp_path):
    place = folder_of(tmp_path / "a", 1)
    (place / INDEX_FILE).write_text('{"weight_map": {"x": "model-00001-of-00002.safetensors", "y": "gone.safetensors"}}')
    with pytest.raises(UserError, match=r"lacks 1 of 2 shards.*first: gone\.safetensors"):
        Stored(place)
    (place / INDEX_FILE).unlink()
    whole = (place / "model-00001-of-00002.safetensors").read_bytes()
    (place / "model-00001-of-00002.safetensors").write_bytes(whole[:-3])
    with pytest.raises(UserError, match="is damaged"):
        Stored(place)
