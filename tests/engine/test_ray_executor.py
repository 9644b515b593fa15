"""Ray: the steps of a run as tasks of a local cluster, with the numbers that one process gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.errors import LuthierError, UserError
from luthier.core.recipe import Recipe
from luthier.core.run import Run
from luthier.engine import ray_executor
from luthier.engine.executor import Watcher, check_executor, execute

pytest.importorskip("ray")


def steps(path: Path, **fit: Any) -> Recipe:
    path.write_text("".join(json.dumps({"text": f"{'birch' if i % 2 else 'heron'} {i}", "label": "ab"[i % 2]}) + "\n"
                            for i in range(12)))
    return Recipe({"name": "ray", "steps": {
        "base": {"use": "base", "model": "pico-encoder"}, "rows": {"use": "read", "path": str(path)},
        "split": {"use": "split", "unseen_share": 0.2, "inputs": {"questions": "rows"}},
        **{f"tuned@s{seed}": {
            "use": "fit", "seed": seed, "tasks": [{"data": "examples.train", "objective": "classify", "head": "linear"}],
            "over_long": "truncate", "length": {"steps": 2}, "inputs": {"base": "base", "examples": "split"}, **fit}
           for seed in (0, 1)}}})


def test_an_address_is_needed():
    with pytest.raises(UserError, match="ray:local for a cluster of this machine"):
        check_executor("ray")
    with pytest.raises(UserError, match="ray:local"):
        check_executor("ray:")


def test_without_ray_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setattr(ray_executor.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'luthier\[ray\]'"):
        check_executor("ray:local")


def test_a_cluster_gives_what_one_process_gives(tmp_path, engine):
    recipe = steps(tmp_path / "rows.jsonl")
    said: list[str] = []
    there = execute(recipe, tmp_path / "ray", engine, Watcher(log=said.append), executor="ray:local")
    here = execute(recipe, tmp_path / "here", engine)
    assert {n: s["identity"] for n, s in there.steps().items()} == {n: s["identity"] for n, s in here.steps().items()}
    assert there.record["executor"]["name"] == "ray:local" and any("weights" in text for text in said)


@pytest.mark.slow
def test_what_a_step_refuses_comes_back_in_its_own_words_and_what_had_finished_stays(tmp_path, engine):
    refused = steps(tmp_path / "rows.jsonl", max_tokens_per_example=8, over_long="drop")
    with pytest.raises(LuthierError, match="nothing to train on|longer"):
        execute(refused, tmp_path / "refused", engine, executor="ray:local")
    kept = Run(tmp_path / "refused")
    assert kept.has("split") and list(kept.folder.glob("steps/.tuned@s*.work/failure.json"))
