"""as-many and overlaps: counted by hand on a tensor or two."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.core.artifact import Artifact, seal
from luthier.core.component import build
from luthier.core.files import read_lines
from luthier.studies._worlds.as_many import entries, places


@pytest.fixture
def given(tmp_path):
    """A base, a tune of it that changes everything, and a graft of three entries."""
    base = {"model.layers.0.w": torch.zeros(2, 3), "model.layers.1.w": torch.zeros(4), "model.embed.weight": torch.zeros(5)}
    tuned = {"model.layers.0.w": torch.tensor([[1.0, -9.0, 2.0], [3.0, 0.5, 8.0]]),
             "model.layers.1.w": torch.tensor([0.1, -7.0, 0.2, 0.3]), "model.embed.weight": torch.full((5,), 99.0)}
    for name, tensors in (("base", base), ("tuned", tuned)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    meta = {"base": {"name": "b", "identity": "i"}, "template": {}}
    return {"base": Artifact("model", tmp_path / "base", {"path": "."}, "i"),
            "tuned": Artifact("model", tmp_path / "tuned", dict(meta), "t"),
            "like": graft(tmp_path / "like", {"model.layers.0.w": [0, 1], "model.layers.1.w": [2]}, meta)}


def graft(folder, at, meta):
    (folder / "licenses").mkdir(parents=True)
    (folder / "licenses" / "TERMS.txt").write_text("none")
    save_file({f"{n}:at": torch.tensor(places) for n, places in at.items()}
              | {f"{n}:{part}": torch.ones(len(places)) for n, places in at.items() for part in ("values", "was")},
              folder / "delta.safetensors")
    return seal("delta", folder, **meta)


def test_as_many_of_the_largest_outside_of_embeddings(given, make_ctx):
    step, ctx = build("step", {"use": "as-many", "start": "magnitude"}), make_ctx("largest")
    made = step.run(given, ctx)
    assert places(made) == {"model.layers.0.w": {1, 5}, "model.layers.1.w": {1}}
    held = load_file(made.folder / "delta.safetensors")
    assert held["model.layers.0.w:values"].tolist() == [-9.0, 8.0] and not held["model.layers.0.w:was"].any()
    assert all(f.verdict == "agrees" for f in step.receipts(given, made, ctx))


def test_as_many_at_random_are_others_with_another_seed(given, make_ctx):
    found = []
    for n in range(4):
        ctx = make_ctx(f"random{n}")
        ctx.rng = type(ctx.rng)(n).within("as-many")
        made = build("step", {"use": "as-many"}).run(given, ctx)
        assert entries(made) == 3 and not any("embed" in name for name in places(made))
        found.append(places(made))
    assert any(other != found[0] for other in found[1:])


def test_overlaps_are_shares_of_the_first_grafts_entries(given, tmp_path, make_ctx):
    other = graft(tmp_path / "other", {"model.layers.0.w": [1, 2, 3]}, {})
    step, ctx = build("step", {"use": "overlaps"}), make_ctx("overlaps")
    made = step.run({"base": given["base"], "graft": given["like"], "other": other}, ctx)
    found = {(x["id"], x["metric"]): x["value"] for x in read_lines(made.folder / "scores.jsonl")}
    # one of two entries, where three of six are changed; none of one, where none of four is
    assert found == {("model.layers.0.w", "overlap"): 0.5, ("model.layers.0.w", "above-chance"): 0.0,
                     ("model.layers.1.w", "overlap"): 0.0, ("model.layers.1.w", "above-chance"): 0.0}
