"""What an audit left, read as scores: numbers of findings once a training, items of their evidence one by one."""

from __future__ import annotations

from luthier.core.artifact import seal
from luthier.core.files import read_lines, write_lines
from luthier.core.finding import audited, not_applicable
from luthier.core.recipe import Recipe
from luthier.engine.executor import execute
from luthier.pipelines import findings
from luthier.pipelines.grid import Grid, results, scores_of


def test_numbers_of_findings_and_of_the_items_of_their_evidence(tmp_path):
    folder = tmp_path / "look@s1"
    folder.mkdir()
    write_lines(folder / "layers.jsonl", [{"name": "a", "count": 2, "shape": [3, 3], "large": True}, {"name": "b", "count": 0}])
    write_lines(folder / "texts.jsonl", [{"score": 0.5}])
    made = [audited("audit/look", 1.0, 3.0, 1.0, (1.5, 2.5), evidence="steps/look@s1/layers.jsonl", area=0.75,
                    cases={"classic": 4}, sure=True, title="a look"),
            audited("audit/look/texts", None, 0.5, 1.0, None, evidence="steps/look@s1/texts.jsonl"),
            not_applicable("audit/look/none", "nothing to look at")]
    write_lines(folder / findings.FILE, (f.to_dict() for f in made))
    found = scores_of(seal("records", folder))
    whole = {key: values[findings.WHOLE] for key, values in found.items() if key[0].startswith("audit/")}
    assert whole == {("audit/look", name): ("look@s1", value) for name, value in (
        ("left", 1.0), ("right", 3.0), ("difference", 2.0), ("area", 0.75), ("cases.classic", 4.0))} | {
        ("audit/look/texts", name): ("look@s1", 0.5) for name in ("right", "difference")}
    assert {k: v for k, v in found.items() if not k[0].startswith("audit/")} == \
        {("layers", "count"): {"a": ("a", 2.0), "b": ("b", 0.0)}}, "a line without a name is no item"


def test_an_audit_of_a_grid_is_read_where_an_arm_has_one(tmp_path, engine, bases):
    (tmp_path / "rows.jsonl").write_text('{"text": "a plain text of some words"}\n' * 4)
    text = {"name": "looked", "seed": 0, "steps": {
        "rows": {"use": "read", "path": str(tmp_path / "rows.jsonl")},
        "base": {"use": "base", "model": "pico"},
        "tuned": {"use": "fit", "tasks": [{"data": "examples.all", "objective": "pretrain"}], "method": "lora:rank=2",
                  "length": {"steps": 1}, "inputs": {"base": "base", "examples": "rows"}},
        "look": {"use": "audit", "audit": "intruder-dimensions:k=2", "inputs": {"base": "base", "tuned": "tuned"}}}}
    bare = {**text, "steps": {n: s for n, s in text["steps"].items() if n != "look"}}
    grid = Grid(Recipe(text), {"looked-at": {}, "bare": Recipe(bare)}, [0, 1])
    run = execute(grid.recipe(), tmp_path / "run", engine)
    found = results(run, grid, "look")
    assert [(c.arm, c.seed, c.cost.trainings) for c in found.cells] == [("looked-at", 0, 1), ("looked-at", 1, 1)]
    for cell in found.cells:
        step = f"look@looked-at@s{cell.seed}"
        lines = read_lines(run.folder / "steps" / step / "matrices.jsonl")
        items = {r["name"]: (r["name"], float(r["intruders"])) for r in lines}
        assert cell.scores["matrices", "intruders"] == items and len(items) == len(lines) > 4
        mean = sum(v for _, v in items.values()) / len(items)
        assert cell.scores["audit/intruder-dimensions", "right"] == {findings.WHOLE: (step, mean)}


def test_an_audit_that_trains_stands_once_a_seed():
    def names(audit: str) -> list[str]:
        text = {"name": "data", "seed": 0, "steps": {
            "facts": {"use": "facts-world"}, "look": {"use": "audit", "audit": audit, "inputs": {"examples": "facts"}}}}
        return [n.name for n in Grid(Recipe(text), {"all": {}}, [0, 1, 2]).recipe().nodes]

    assert names("domain-shift") == ["facts", "look@s0", "look@s1", "look@s2"]
    assert names("personal-data") == ["facts", "look"]
