"""The catalogue: its data is complete and speaks the names of the house, its reader finds and counts."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

from luthier.core import catalog

ROOT = Path(__file__).resolve().parents[2]
KEYS = ["id", "slug", "name", "title", "kind", "home", "summary", "works_when", "components", "oracles", "status",
        "result"]


def words(line: str) -> set[str]:
    return set(line.split())


COMMANDS = words("adapt tune compare evaluate audit merge export data ask chat serve ui plan list schema catalog "
                 "reproduce doctor")
FLAGS = words("method objective regularizer optimizer decoder metric audit data-step rule retriever recipe base out "
              "seed executor json set fresh accept-terms")
KINDS = words("method objective regularizer optimizer decoder metric audit data_step weight_rule retriever head "
              "environment recipe")
LEFTOVERS = re.compile(r"--stage|--how|--only|--resume|--model\b|--methods|--recipes|--objectives|(?<![\w./-])sft\b"
                       r"|[:,]r=\d|bias-only|--set (?:audits|metrics?|use|synthesizer|curator|selector|augmenter|model"
                       r"|base|rule|benchmark|mechanism)=|(?<![\w./])/(?:work|home|root|tmp)/|\bcards/")


@pytest.fixture(scope="module")
def seeds() -> list[dict]:
    return catalog.rows()


def texts(seed: dict) -> list[str]:
    """Every text of a seed that a user may read as a command."""
    return [seed["summary"], seed["works_when"], *(clause["text"] for clause in seed["oracles"])]


def test_every_seed_once_in_order(seeds):
    assert [seed["id"] for seed in seeds] == list(range(1, 211))
    assert len({seed["slug"] for seed in seeds}) == 210


def test_keys_and_their_order(seeds):
    for seed in seeds:
        assert list(seed) == KEYS, seed["slug"]
        assert all(seed[key] for key in KEYS[:8]), seed["slug"]
        assert seed["result"] is None


def test_data_says_nothing_of_status():
    lines = files("luthier").joinpath("data", "catalog.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["status"] for line in lines} == {"-"}


def test_file_is_small():
    assert len(files("luthier").joinpath("data", "catalog.jsonl").read_bytes()) < 1_000_000


def test_clauses_are_numbered_and_say_something(seeds):
    for seed in seeds:
        assert seed["oracles"], seed["slug"]
        assert [clause["n"] for clause in seed["oracles"]] == list(range(1, len(seed["oracles"]) + 1)), seed["slug"]
        for clause in seed["oracles"]:
            text = clause["text"]
            assert list(clause) == ["n", "text"] and len(text) >= 6 and text == text.strip(" ;"), (seed["slug"], text)
            assert text.count("(") == text.count(")"), (seed["slug"], text)
            assert text.count('"') % 2 == 0, (seed["slug"], text)


def test_commands_are_those_of_the_house(seeds):
    for seed in seeds:
        for text in texts(seed):
            named = re.findall(r"\bluthier ([\w-]+)", text)
            assert set(named) <= COMMANDS, (seed["slug"], named)
            flags = set(re.findall(r"(?<!\S)`?--([a-z][a-z-]*)", text))
            assert flags <= FLAGS, (seed["slug"], flags - FLAGS)


def test_no_older_name_is_left(seeds):
    for seed in seeds:
        for text in texts(seed):
            assert not LEFTOVERS.search(text), (seed["slug"], LEFTOVERS.search(text)[0], text)


def test_components_are_named_once_and_well(seeds):
    for seed in seeds:
        pairs = [(part["kind"], part["name"]) for part in seed["components"]]
        assert len(set(pairs)) == len(pairs), seed["slug"]
        assert all(list(part) == ["kind", "name"] for part in seed["components"])
        for kind, name in pairs:
            assert kind in KINDS and re.fullmatch(r"[a-z][a-z0-9@/+-]*[a-z0-9]", name), (seed["slug"], kind, name)


def test_components_in_commands_are_listed(seeds):
    by_slug = {seed["slug"]: [(part["kind"], part["name"]) for part in seed["components"]] for seed in seeds}
    assert by_slug["lora"][0] == ("method", "lora")
    assert by_slug["mixout"] == [("regularizer", "mixout")]
    assert by_slug["wise-ft"] == [("weight_rule", "wise-ft")]
    assert ("data_step", "got-d") in by_slug["got-d"]
    assert ("audit", "wrapper-audit") in by_slug["wrapper-audit"]


def recorded(seed: dict, **changed) -> dict:
    """A status file of a seed with one component, method x at version 2."""
    return {"seed": seed["id"], "status": "verified", "components": {"method x": 2}, "clauses": seed["oracles"], **changed}


def test_status_holds_for_the_versions_and_clauses_that_were_tested(seeds):
    lora = seeds[113]
    assert lora["slug"] == "lora"
    assert catalog.state(lora, {"method x": 2}, recorded(lora)) == "verified"
    assert catalog.state(lora, {"method x": 3}, recorded(lora)) == "stale"
    assert catalog.state(lora, {"method x": 2, "metric y": 1}, recorded(lora)) == "stale"
    assert catalog.state(lora, {"method x": 2}, recorded(lora, clauses=lora["oracles"][1:])) == "stale"
    assert catalog.state(lora, {"method x": 2}, None) == "-" == catalog.state(lora, {}, recorded(lora))


def test_without_components_nothing_runs(monkeypatch, seeds):
    assert all(seed["status"] == "-" for seed in catalog.rows())
    monkeypatch.setattr(catalog, "records", lambda: {114: recorded(seeds[113]), 8: recorded(seeds[7])})
    found = catalog.rows([("method", "x", 2, [114]), ("regularizer", "smart", 1, (68, 8)), ("method", "other", 1, ())])
    assert {s["id"]: s["status"] for s in found if s["status"] != "-"} == {8: "stale", 114: "verified"}
    assert catalog.statuses([("method", "x", 2, [114])]) == {114: "verified"}
    assert catalog.row("lora")["status"] == "-", "a former call must leave no trace"


def test_rows_are_the_callers_own():
    catalog.row("lora")["name"] = "changed"
    assert catalog.row("lora")["name"] != "changed"


@pytest.mark.parametrize("key", ["mixout", "Mixout", 122, "122"])
def test_row_by_slug_or_id(key):
    assert catalog.row(key)["slug"] == "mixout"


@pytest.mark.parametrize(("key", "hint"), [("mixot", "mixout"), ("lora-assymetry", "lora-asymmetry"),
                                           ("modelsoup", "model-soup"), (0, "1 to 210"), ("211", "1 to 210")])
def test_unknown_seed_names_the_nearest(key, hint):
    with pytest.raises(LookupError, match=hint) as caught:
        catalog.row(key)
    assert caught.value.exit_code == 2


def test_unknown_seed_without_neighbours():
    with pytest.raises(LookupError, match="luthier catalog"):
        catalog.row("qqqqqqqq")


def test_reader_loads_nothing_heavy():
    code = ("import sys, luthier.core.catalog as c; c.rows(); "
            "print(*{'torch', 'pydantic', 'peft', 'transformers'} & set(sys.modules))")
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": paths})
    assert done.stdout.strip() == ""


def maker():
    """The script that writes the catalogue, as a module."""
    spec = importlib.util.spec_from_file_location("make_catalog", ROOT / "scripts" / "make_catalog.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("old", "new"), [
    ("luthier tune d --stage sft", "luthier tune d --objective supervised"),
    ("luthier tune d --stage pit:variant=pit++.", "luthier tune d --recipe pit:variant=pit++."),
    ("`luthier merge a b --how port:scale=1`", "`luthier merge a b --rule port:scale=1`"),
    ("luthier merge a --method mera, then", "luthier merge a --rule mera, then"),
    ("luthier data curate x --method clean", "luthier data curate x --data-step clean"),
    ("luthier audit R --only ood:k=1,keep=2", "luthier audit R --audit ood:k=1,keep=2"),
    ("luthier audit R --set use=safety:a=1,b=2", "luthier audit R --audit safety:a=1,b=2"),
    ("luthier audit R --only ood,spectrum:energy=0.9", "luthier audit R --audit ood --audit spectrum:energy=0.9"),
    ("luthier evaluate R --set metrics=[map,p@1],by=x", "luthier evaluate R --metric map --metric p@1 --set by=x"),
    ("luthier evaluate R --set metrics=a,b --set k=1", "luthier evaluate R --metric a --metric b --set k=1"),
    ("luthier compare d --methods full,lora:r=4,lora:r=8",
     "luthier compare d --method full --method lora:rank=4 --method lora:rank=8"),
    ("luthier tune d --set model=M,branch=nlu", "luthier tune d --base M --set branch=nlu"),
    ("luthier tune d --set augmenter=mask:p=0.4,fill=…", "luthier tune d --data-step mask:p=0.4,fill=…"),
    ("plain words -- and a - b", "plain words -- and a - b"),
])
def test_translation_of_commands(old, new):
    assert maker().house(old) == new


@pytest.mark.parametrize(("text", "claims"), [
    ("One holds to 1e-5; two is .5 v. .3 (a; b). Three, e.g. four.", ["One holds to 1e-5", "two is .5 v. .3 (a; b)",
                                                                      "Three, e.g. four"]),
    ('EM on "It is. So" is 0. b = 20. x.y = 1', ['EM on "It is. So" is 0', "b = 20", "x.y = 1"]),
    ("(a) first. (b) second (so it is.) third", ["first", "second (so it is.)", "third"]),
])
def test_split_into_clauses(text, claims):
    assert [clause["text"] for clause in maker().clauses("", text)] == claims


@pytest.mark.skipif("LUTHIER_SEEDS" not in os.environ, reason="needs the folder of seeds: set LUTHIER_SEEDS")
def test_data_is_what_the_script_writes(tmp_path):
    maker().main([os.environ["LUTHIER_SEEDS"], "--out", str(tmp_path / "catalog.jsonl")])
    shipped = files("luthier").joinpath("data", "catalog.jsonl").read_bytes()
    assert (tmp_path / "catalog.jsonl").read_bytes() == shipped
