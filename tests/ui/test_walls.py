"""The page computes nothing: what it imports, what it calls, and who else calls it."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.serving.test_contract import calls

UI = Path(__file__).resolve().parents[2] / "src" / "luthier" / "ui"
# Of the floors below: the nouns, what reads and judges runs, the server of arms, and two tables of names.
ALLOWED = ("luthier.core", "luthier.pipelines", "luthier.serving", "luthier.ui", "luthier.engine.packages",
           "luthier.__version__")
NEVER = ("torch", "numpy", "scipy", "transformers", "peft", "pandas", "statistics", "random")


def imported() -> set[str]:
    found = set()
    for path in UI.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_no_loop_no_statistics_and_no_second_reader_of_runs():
    names = imported()
    assert not {n for n in names if n.split(".")[0] in NEVER}
    assert not {n for n in names if n.startswith("luthier.") and not n.startswith(ALLOWED)}
    read = {n for n in names if n.startswith("luthier.core.files")}
    assert read == {"luthier.core.files.read_json", "luthier.core.files.write_json"}, "of its own processes' records alone"


def test_each_page_calls_the_functions_that_the_commands_call():
    found = calls("inspect_data", "plans", "recipe_for", "Catalogue", "Asker", "parts", "execute", "run_step", "Popen",
                  "generate")
    assert found["inspect_data"] == {"cli/data.py", "ui/studio.py"}
    assert {"cli/plan.py", "ui/pages/adapt.py"} <= found["plans"] and {"cli/plan.py", "ui/studio.py"} <= found["recipe_for"]
    assert found["Catalogue"] == {"cli/serve.py", "ui/studio.py"}
    assert "ui" not in {p.split("/")[0] for n in ("Asker", "execute", "run_step", "generate") for p in found[n]}
    assert {p for p in found["Popen"] if p.startswith("ui/")} == {"ui/processes.py"}, "a run is the command line's own process"
    assert {p for p in found["parts"] if p.startswith("ui/")} == {
        "ui/shown.py", "ui/pages/runs.py", "ui/pages/compare.py", "ui/pages/audit.py"}


def test_no_arithmetic_on_scores_stands_in_the_pages():
    """Means, intervals and verdicts come from the report: the pages only join, count and sum seconds."""
    for path in (UI / "pages").glob("*.py"):
        found = [n.op for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.BinOp)]
        assert not [op for op in found if isinstance(op, (ast.Div, ast.Sub, ast.Pow))], path
