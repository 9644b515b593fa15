"""The script that writes status files: what a clause and a seed are said to be, and which seeds a change can reach."""

from __future__ import annotations

import importlib.util
import json
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from luthier.core import catalog, index, recorded
from tests.contracts import mutation

ROOT = Path(__file__).resolve().parents[2]
SEED = {"id": 7, "slug": "x", "oracles": [{"n": 1, "text": "one"}, {"n": 2, "text": "two"}]}


@pytest.fixture(scope="module")
def verify() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify", ROOT / "scripts" / "verify.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test(id: str, outcome: str, clause: Any = None, contract: str = "", seed: int = 7) -> dict[str, Any]:
    """The journal's line of one test."""
    marks = [] if clause is None else [{"seed": seed, "clause": clause, "against": "hand case"}]
    return {"id": id, "file": "tests/x.py", "oracles": marks, "contract": contract, "outcome": outcome}


test.__test__ = False


def outcomes(verify, *tests) -> list[str]:
    return [c["outcome"] for c in verify.clause_rows(SEED, tests)]


def test_a_clause_is_what_its_tests_say(verify):
    assert outcomes(verify) == ["missing", "missing"]
    assert outcomes(verify, test("a", "passed", 1), test("b", "skipped", 2)) == ["passed", "skipped"]
    assert outcomes(verify, test("a", "passed", 1), test("b", "failed", 1), test("c", "passed", "two")) == ["failed", "missing"]
    assert outcomes(verify, test("a", "passed", 1), test("b", "skipped", 1), test("c", "passed", 2, seed=8))[0] == "passed"


def test_a_seed_is_verified_when_every_clause_passed_and_its_contract_is_green(verify):
    green, red = {"passed": 3, "skipped": 1, "failed": []}, {"passed": 3, "skipped": 0, "failed": ["t"]}
    whole = verify.clause_rows(SEED, [test("a", "passed", 1), test("b", "passed", 2)])
    part = verify.clause_rows(SEED, [test("a", "passed", 1), test("b", "skipped", 2)])
    assert [verify.derive(whole, green), verify.derive(part, green)] == ["verified", "runs"]
    assert verify.derive(whole, red) == verify.derive(whole, {"passed": 0, "skipped": 2, "failed": []}) == "-"


def test_a_change_reaches_the_seeds_that_use_it(verify):
    assert verify.reached([]) == [] == verify.reached(["README.md", "benchmarks/bound.py"])
    assert verify.reached(["src/luthier/engine/loop.py"]) == verify.all_seeds() == verify.reached(["tests/conftest.py"])
    assert 114 in verify.reached(["src/luthier/techniques/methods/lora.py"])
    assert 11 not in verify.reached(["src/luthier/techniques/methods/lora.py"])
    assert {11, 114, 153} <= set(verify.reached(["src/luthier/techniques/methods/_shared.py"]))
    assert verify.reached(["tests/techniques/methods/test_bitfit.py"]) == [153]


def test_a_journal_that_was_cut_off_is_read_up_to_its_last_whole_line(verify, tmp_path):
    path = tmp_path / "tests.jsonl"
    path.write_text('{"id": 1}\n{"id": 2')
    assert verify.read(path) == [{"id": 1}] and path.read_text() == '{"id": 1}\n'
    assert verify.read(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("path", sorted((ROOT / "status").glob("*.json")), ids=lambda p: p.stem)
def test_a_status_file_says_what_its_clauses_say_and_the_catalogue_what_the_file_says(verify, path):
    found = json.loads(path.read_text(encoding="utf-8"))
    assert path.stem == f"{found['seed']:03}"
    assert found["status"] == verify.derive(found["clauses"], found["contract"])
    for clause in found["clauses"]:
        said = set(clause["tests"].values())
        assert clause["outcome"] == next((o for o in ("failed", "passed", "skipped") if o in said), "missing")
    shown = catalog.row(found["seed"], [(r["kind"], r["name"], r["version"], r["seeds"]) for r in index.rows()])
    versions = {f"{r['kind']} {r['name']}": r["version"] for r in verify.components_of(found["seed"])}
    assert versions, "no component names this seed: run make verify, which removes the file"
    held = [{"n": c["n"], "text": c["text"]} for c in found["clauses"]]
    same = versions == found["components"] and held == shown["oracles"]
    # The record of a study raises what is verified.
    study = next((r["version"] for r in index.rows() if r["kind"] == "study" and found["seed"] in r["seeds"]), None)
    raised = recorded.studied(found["status"], study, recorded.records().get(found["seed"]))
    assert shown["status"] == (raised if same else "stale")


def test_every_number_of_a_mark_is_a_clause_of_its_seed(verify):
    clauses = {row["id"]: {c["n"] for c in row["oracles"]} for row in catalog.rows()}
    wrong = []
    for name in verify.oracle_files():
        text = (ROOT / name).read_text(encoding="utf-8")
        wrong += [f"{name}: seed {seed}, clause {clause}" for seed, clause in verify.MARK.findall(text)
                  if not clause.isdigit() or int(clause) not in clauses.get(int(seed), ())]
    assert not wrong


def test_mutants_are_tried_on_the_oracles_of_their_seed_or_room():
    row = {"kind": "metric", "name": "x", "seeds": [7], "module": "luthier.techniques.evaluation.x"}
    own, other = test("a", "passed", 1), test("b", "passed", 1, seed=8)
    room = {**test("c", "passed"), "file": "tests/techniques/evaluation/test_y.py", "oracles": [{"clause": "z"}]}
    assert mutation.tests_of(row, [own, other, room, {**room, "file": "tests/engine/test_y.py"}]) == [own, room]


def test_files_that_import_what_is_changed_are_tried_first():
    row = next(r for r in index.rows() if (r["kind"], r["name"]) == ("metric", "recall"))
    mutant = mutation.Mutant("metric recall", "w", row["module"], "a", "b")
    files = [f"tests/techniques/{f}.py" for f in ("methods/test_lora", "evaluation/test_ranking", "data/test_question_quality",
                                                  "training/test_schedules")] + ["tests/pipelines/steps/test_evaluate.py"]
    near, far = mutation.by_nearness(mutant, row, files)
    assert near == ["tests/techniques/data/test_question_quality.py", "tests/techniques/evaluation/test_ranking.py"]
    assert far[0] == "tests/pipelines/steps/test_evaluate.py", "it names the metric"
    assert sorted(near + far) == sorted(files)


def test_a_mutant_is_killed_by_the_first_test_that_failed(verify):
    mutant = mutation.Mutant("method bitfit", "w", "luthier.techniques.methods.bitfit", "a", "b")
    passed, failed = test("a", "passed", 1, seed=153), test("b", "failed", 4, seed=153)
    assert verify.verdict(mutant, [passed, failed, test("c", "failed", 5, seed=153)])["clause"] == 4
    assert verify.verdict(mutant, [passed]) == {"id": mutant.id, "component": "method bitfit", "what": "w", "clause": None,
                                                "test": ""}


def test_processes_run_together_and_each_is_told_by_its_number(verify):
    def start(code):
        child = verify.os.fork()
        if child == 0:
            verify.os._exit(code)
        return child

    codes = [3, 0, 1, 5, 0]
    done = list(verify.together([partial(start, code) for code in codes], jobs=2))
    assert sorted(done) == list(enumerate(codes)) and list(verify.together([], jobs=2)) == []


def test_evidence_for_a_part_is_what_its_mutants_meet_and_its_contract(verify):
    row = next(r for r in index.rows() if (r["kind"], r["name"]) == ("metric", "similarity"))
    wanted = verify.evidence_for([row], whole=False)
    room = {**test("a", "passed"), "file": "tests/techniques/evaluation/test_words.py", "oracles": [{"clause": "a cosine"}]}
    assert wanted(room), "a clause without a seed, in the component's room"
    assert wanted(test("b", "passed", 1, seed=24)) and wanted(test("c", "passed", contract="metric similarity"))
    others = [{**room, "file": "tests/engine/test_x.py"}, test("d", "passed", 1, seed=7),
              test("e", "passed", contract="metric f1")]
    assert not any(map(wanted, others))
    assert [verify.evidence_for([row], whole=True)(t) for t in others] == [True, True, False]
