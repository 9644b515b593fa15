"""A run with a mixture of adapters: asked warmer or with a trace, evaluated warmer, and its heat map in the report."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest

from luthier.core.errors import UserError
from luthier.core.files import read_json
from luthier.core.recipe import Recipe
from luthier.core.run import Run
from luthier.engine.executor import execute
from luthier.pipelines import report
from luthier.pipelines.asking import ask, spans
from tests.contracts import loras
from tests.contracts.workbench import WORDS


@pytest.fixture(scope="module")
def run(engine, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("gates")
    rows = [{"question": f"What is a {word}?", "answer": f"a {word} of the {word}"} for word in WORDS]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tuned = {"use": "fit", "tasks": [{"data": "examples.all"}], "method": {"use": "meteora", "adapters": loras.two()},
             "length": {"steps": 1}, "inputs": {"base": "base", "examples": "world"}}
    score = {"use": "evaluate", "arm": "tuned", "sets": ["all"], "metrics": ["lines"],
             "decoder": "greedy:max_new_tokens=4"}
    steps: dict[str, Any] = {
        "base": {"use": "base", "model": "pico"}, "world": {"use": "read", "path": str(folder / "rows.jsonl")}, "tuned": tuned,
        "score": {**score, "inputs": {"base": "base", "tuned": "tuned", "examples": "world"}},
        "warm": {**score, "arm": "warm", "gate_temperature": 50,
                 "inputs": {"base": "base", "tuned": "tuned", "examples": "world"}},
        "bare": {**score, "arm": "base", "inputs": {"base": "base", "examples": "world"}}}
    return execute(Recipe({"name": "gates", "seed": 3, "steps": steps}), folder / "run", engine)


def test_a_trace_says_which_adapter_each_token_took(run):
    said = ask(run, "What is a scope?", arm="tuned", trace=True)
    told = said["routing"]
    assert told["routes"] == ["thing", "word"] and len(told["tokens"]) == len(told["weights"])
    assert all(sum(w) == pytest.approx(1, abs=2e-3) for w in told["weights"])
    prompt, _, answer = "".join(told["tokens"]).rpartition("Answer: ")
    # Bytes that are no letter read in another way one by one.
    assert "What is a scope?" in prompt and answer.startswith(said["answer"].rstrip("\ufffd"))
    parts = spans(told)
    assert "".join(text for *_, text in parts) == "".join(told["tokens"])
    assert all(share >= 0.5 for _, share, _ in parts) and all(a[0] != b[0] for a, b in pairwise(parts))
    assert "routing" not in ask(run, "What is a scope?", arm="tuned")


def test_a_temperature_levels_the_weights_in_asking_and_evaluating(run):
    def spread(weights):
        return max(abs(a - b) for row in weights for a, b in [row])

    warm = ask(run, "What is a scope?", arm="tuned", trace=True, gate_temperature=1e6)["routing"]["weights"]
    own = ask(run, "What is a scope?", arm="tuned", trace=True)["routing"]["weights"]
    assert spread(warm) < 1e-3 < spread(own)
    kept, warmer = (read_json(run.step(name).folder / "routing.json")["all"]["weights"] for name in ("score", "warm"))
    assert spread(warmer) < spread(kept)
    with pytest.raises(UserError, match="gate_temperature = 2: pico has no gates"):
        ask(run, "What is a scope?", arm="base", gate_temperature=2)
    with pytest.raises(UserError, match="nothing to trace"):
        ask(run, "What is a scope?", arm="base", trace=True)


def test_the_report_draws_them(run):
    from bs4 import BeautifulSoup

    page = BeautifulSoup(report.render(run), "html.parser")
    section = page.find(id="routing")
    drawn = section.find_all("svg")
    assert len(drawn) == 2 and {d["aria-label"] for d in drawn} >= {"Adapters by token: tuned, all"}
    told = read_json(run.step("score").folder / "routing.json")["all"]
    first = next(d for d in drawn if d["aria-label"].endswith("tuned, all"))
    assert len(first.find_all("rect")) == 2 * len(told["tokens"])
    assert not (run.step("bare").folder / "routing.json").exists()
