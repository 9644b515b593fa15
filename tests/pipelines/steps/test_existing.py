"""existing links what another run left; test-rows refuses rows that were trained on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from luthier.core.artifact import Artifact, open_artifact, seal, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn, question
from luthier.core.files import write_json
from luthier.pipelines.steps.existing import Existing, TestRows


@pytest.fixture
def left(tmp_path) -> Artifact:
    """What a finished step left."""
    folder = tmp_path / "left"
    (folder / "licenses").mkdir(parents=True)
    (folder / "licenses" / "TERMS.txt").write_text("terms")
    for name in ("step.json", "receipts.jsonl", "journal.jsonl"):
        (folder / name).write_text("{}\n")
    return write_examples(folder, {"train": [question("a", "Who?", "I")], "dev": []}, labels=["x"])


def link(left: Artifact, ctx, kind: str = "examples") -> Artifact:
    step = Existing(path=str(left.folder), kind=kind)
    step.check()
    return step.run({}, ctx)


# --- existing --------------------------------------------------------------------------------------------------------


def test_files_are_linked_and_the_identity_is_kept(left, make_ctx):
    ctx = make_ctx("existing")
    write_json(ctx.folder / "state.json", {"key": "mine"})
    made = link(left, ctx)
    assert (made.kind, made.identity, made.meta) == (left.kind, left.identity, left.meta)
    assert open_artifact(made.folder) == made and list(made.examples("train")) == list(left.examples("train"))
    shard = Path("examples", "train", "rows-00000.arrow")
    assert os.path.samefile(made.folder / shard, left.folder / shard)
    names = {p.name for p in made.folder.iterdir()}
    assert names == {"examples", "licenses", "ledger.jsonl", "luthier.json", "state.json"}
    assert not os.path.samefile(made.folder / "luthier.json", left.folder / "luthier.json")


def test_a_model_keeps_the_identity_of_its_weights_elsewhere(tmp_path, make_ctx):
    (tmp_path / "base" / "licenses").mkdir(parents=True)
    (tmp_path / "base" / "licenses" / "TERMS.txt").write_text("terms")
    base = seal("model", tmp_path / "base", identity="of the weights", name="mine", path="/models/mine")
    assert link(base, make_ctx("existing"), "model").meta == base.meta and base.identity == "of the weights"


def test_where_links_are_not_possible_files_are_copied(left, make_ctx, monkeypatch):
    def refuse(one: str, two: str) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    made = link(left, make_ctx("existing"))
    assert made.identity == left.identity and (made.folder / "licenses" / "TERMS.txt").read_text() == "terms"
    assert not os.path.samefile(made.folder / "ledger.jsonl", left.folder / "ledger.jsonl")


def test_a_second_attempt_finds_the_files_of_the_first(left, make_ctx):
    first = link(left, make_ctx("existing"))
    assert link(left, make_ctx("existing")) == first


def test_another_kind_and_a_folder_that_is_none_are_refused(left, tmp_path):
    with pytest.raises(UserError, match="left is of the kind 'examples', not 'model'"):
        Existing(path=str(left.folder), kind="model").check()
    with pytest.raises(UserError, match="is not an artifact of Luthier"):
        Existing(path=str(tmp_path / "nowhere"), kind="model").check()


def test_the_key_follows_the_artifact(left):
    assert Existing(path=str(left.folder), kind="examples").content() == {"identity": left.identity}


# --- test-rows -------------------------------------------------------------------------------------------------------

TRAIN, DEV = [question("t1", "What is a module?", "a file")], [question("d1", "What is a class?", "a maker")]


@pytest.fixture
def test_rows(make_ctx, tmp_path):
    def run(*rows: Example) -> Artifact:
        inputs = {"rows": write_examples(tmp_path / "rows", {"all": rows}),
                  "trained": write_examples(tmp_path / "trained", {"train": TRAIN, "dev": DEV, "unseen": rows})}
        ctx = make_ctx("test")
        made = TestRows().run(inputs, ctx)
        assert [r.verdict for r in TestRows().receipts(inputs, made, ctx)] == ["agrees"]
        return made

    return run


def test_new_rows_stand_beside_those_of_the_run(test_rows):
    new = [question("n1", "What is a scope?", "a region"), question("n2", "What is a block?", "a piece")]
    made = test_rows(*new)
    assert {n: list(made.examples(n)) for n in made.subsets} == {"train": TRAIN, "dev": DEV, "test": new}


@pytest.mark.parametrize("leak", [
    question("n", "what is  a MODULE?", "something else"),
    question("n", "What is a class?", "a maker", passage="Of it."),
    Example("n", (Turn("user", (Part("What is a module?"),)), Turn("assistant", (Part("x"),), target=True))),
])
def test_rows_that_were_trained_on_are_refused(test_rows, leak):
    with pytest.raises(UserError, match=r"1 of 2 rows were trained on; first: n is [td]1 of .*take them out"):
        test_rows(question("m", "What is a scope?", "a region"), leak)
