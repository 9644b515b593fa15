"""What others rely on: the description of the interface, and one way of answering for all commands."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2] / "src" / "luthier"


def calls(*names: str) -> dict[str, set[str]]:
    """For each name the files of the package in which something of that name is called."""
    found: dict[str, set[str]] = {name: set() for name in names}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if called in found:
                    found[called].add(str(path.relative_to(SOURCE)))
    return found


def test_one_scheduler_and_one_reader_of_runs_answer_for_all_commands():
    found = calls("Scheduler", "Padded", "LlamaScheduler", "scheduler_of", "Asker", "take")
    assert found["Scheduler"] == found["Padded"] == found["LlamaScheduler"] == {"engine/generation.py"}, "made in one place"
    assert found["scheduler_of"] == {"engine/generation.py", "serving/desk.py"}
    assert found["Asker"] == {"pipelines/asking.py", "cli/chat.py", "serving/served.py"}
    assert not any("serving" in path for path in found["take"]), "where an answer ends, the engine says"
    stepping = {str(p.relative_to(SOURCE)) for p in SOURCE.rglob("*.py") if "scheduler.step()" in p.read_text("utf-8")}
    assert stepping == {"engine/generation.py", "serving/desk.py"}


def test_serving_makes_no_token_itself():
    """The next token is chosen in the engine's scheduler alone: no forward, no argmax, no draw in `serving`."""
    found = calls("argmax", "softmax", "log_softmax", "multinomial", "scores", "trunk_of", "hidden_states", "no_grad")
    assert not {p for paths in found.values() for p in paths if p.startswith("serving/")}


def test_no_page_is_served_that_loads_scripts_from_elsewhere(client):
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
