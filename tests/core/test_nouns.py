"""Identity, randomness, artifacts, findings, examples: what the nouns promise."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.artifact import Artifact, copy_licenses, open_artifact, seal, write_examples
from luthier.core.errors import GateError, LuthierError, UserError, nearest
from luthier.core.example import Document, Dropped, Example, Part, Passage, Section, Turn, question
from luthier.core.finding import Finding, not_applicable, receipt
from luthier.core.identity import canonical, digest, hash_file, hash_folder
from luthier.core.rng import Rng, epoch_order, rank_share

values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
                      lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3), max_leaves=8)


# --- identity ------------------------------------------------------------------------------------------------------

@given(st.dictionaries(st.text(), values))
def test_the_order_of_keys_changes_no_digest(value):
    assert digest(value) == digest(dict(reversed(list(value.items()))))


def test_canonical_text_is_plain():
    assert canonical({"b": (1, 2), "a": Path("x/y")}) == '{"a":"x/y","b":[1,2]}'
    assert canonical({"s": {3, 1, 2}}) == '{"s":[1,2,3]}'
    assert canonical([math.inf, -math.inf, math.nan]) == '["inf","-inf","nan"]'
    assert digest({"a": 1}) != digest({"a": "1"}) != digest({"a": True})
    assert len(digest({})) == 32
    with pytest.raises(TypeError, match="no canonical form for object"):
        canonical({"a": object()})


def test_a_folder_is_its_names_and_bytes(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_text("one")
    (tmp_path / "skip").write_text("1")
    before = hash_folder(tmp_path, frozenset({"skip"}))
    (tmp_path / "skip").write_text("2")
    assert hash_folder(tmp_path, frozenset({"skip"})) == before
    (tmp_path / "a/x").rename(tmp_path / "a/y")
    renamed = hash_folder(tmp_path, frozenset({"skip"}))
    (tmp_path / "a/y").write_text("two")
    assert len({before, renamed, hash_folder(tmp_path, frozenset({"skip"}))}) == 3
    assert hash_file(tmp_path / "a/y", chunk_bytes=1) == hash_file(tmp_path / "a/y")


# --- randomness ----------------------------------------------------------------------------------------------------

@given(st.integers(), st.text(max_size=5), st.integers())
def test_a_number_does_not_depend_on_what_was_drawn_before(seed, name, item):
    alone = Rng(seed)(name, item).random(3)
    rng = Rng(seed)
    rng("other", item).random(7)
    rng(name, item + 1).random(2)
    assert np.array_equal(rng(name, item).random(3), alone)
    assert rng.key(name, item) == Rng(seed).key(name, item) and 0 <= rng.key(name, item) < 2**63


def test_names_items_scopes_and_seeds_draw_apart():
    rngs = [Rng(0), Rng(1), Rng(0).within("a"), Rng(0).within("b"), Rng(0).within("a").within("b")]
    drawn = {float(r(name, item).random()) for r in rngs for name in ("x", "y") for item in (0, 1)}
    assert len(drawn) == len(rngs) * 4
    assert np.array_equal(Rng(5).within("fit")("x").random(2), Rng(5).within("fit")("x").random(2))


def test_an_epoch_holds_every_row_once_and_ranks_share_it():
    orders = [epoch_order(Rng(0), epoch, 20) for epoch in range(3)]
    assert all(sorted(o) == list(range(20)) for o in orders)
    assert not np.array_equal(orders[0], orders[1])
    shares = [rank_share(orders[0], r, 3) for r in range(3)]
    assert sorted(np.concatenate(shares)) == list(range(20))


def test_numbers_are_those_of_every_machine():
    assert Rng(0).key("order", 0) == 2066360570721811967
    assert list(epoch_order(Rng(0), 0, 6)) == [5, 1, 3, 4, 0, 2]


# --- artifacts -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["adapter", "delta", "model"])
def test_a_model_without_licences_is_refused(tmp_path, kind):
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="terms must travel with the weights"):
        seal(kind, tmp_path)
    (tmp_path / "licenses").mkdir()
    with pytest.raises(ValueError, match="no licenses/"):
        seal(kind, tmp_path)
    source = tmp_path / "source/licenses"
    source.mkdir(parents=True)
    (source / "LICENSE").write_text("terms")
    copy_licenses([tmp_path / "source"], tmp_path)
    assert open_artifact(seal(kind, tmp_path, note="n").folder).meta["note"] == "n"


def test_an_artifact_is_its_content_and_not_its_history(tmp_path):
    made = [write_examples(tmp_path / n, {"train": [question("a", "q", "b")]}, [Dropped("x", "why")]) for n in "ab"]
    (tmp_path / "b/journal.jsonl").write_text("{}\n")
    (tmp_path / "b/curve.jsonl").write_text("{}\n")
    again = seal("examples", tmp_path / "b")
    assert made[0].identity == made[1].identity == again.identity
    other = write_examples(tmp_path / "c", {"train": [question("a", "q", "c")]}, [Dropped("x", "why")])
    assert other.identity != again.identity


def test_examples_come_back_by_subset_with_their_ledger(tmp_path):
    rows = [question("a", "q?", "yes", passage="p", label=1.5, references=("y",), meta={"k": [1]}), question("b", "r?")]
    made = write_examples(tmp_path, {"train": rows, "dev": rows[:1]}, [Dropped("c", "why", "more")], extra=1)
    left = open_artifact(tmp_path)
    assert left.subsets == ["dev", "train"] and left.meta["rows"] == {"train": 2, "dev": 1} and left.meta["extra"] == 1
    assert list(left.examples("train")) == rows and list(made.examples("dev")) == rows[:1]
    assert left.ledger() == [{"id": "c", "reason": "why", "detail": "more"}] and left.meta["dropped"] == 1


def test_what_is_no_artifact_is_named(tmp_path):
    with pytest.raises(UserError, match=r"has no luthier\.json"):
        open_artifact(tmp_path)
    with pytest.raises(ValueError, match="no artifact kind 'cake'"):
        Artifact("cake", tmp_path, {}, "")


# --- findings and examples -----------------------------------------------------------------------------------------

def test_a_finding_comes_back():
    found = Finding("n", 1, [2], 0.5, "better", interval=(-1.0, 2.0), unit="points", evidence="x.jsonl", extra={"k": 1})
    assert Finding.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert Finding.from_dict(not_applicable("n", "why").to_dict()) == not_applicable("n", "why")


@pytest.mark.parametrize("left, right, tolerance, verdict", [
    (1, 1, 0, "agrees"), (1, 1.1, 0.2, "agrees"), (1, 1.3, 0.2, "differs"), (0, math.nan, 9, "differs"),
    (0, math.inf, math.inf, "differs")])
def test_a_receipt_says_whether_two_numbers_agree(left, right, tolerance, verdict):
    assert receipt("n", left, right, tolerance).verdict == verdict


def test_nouns_come_back_from_json():
    example = Example("i", (Turn("user", (Part([[1.0]], "image"), Part("q", name="question"))),
                            Turn("assistant", (Part("a"),), True, ((0, 1),))), "s", "c", "t", None, ("r",), {"m": 1})
    document = Document("d", "T", (Section(("H", "I"), "text"),), "00")
    passage = Passage("p", "text", "d", "d#s", ("H",), 3)
    for noun in (example, document, passage):
        assert type(noun).from_dict(json.loads(json.dumps(noun.to_dict()))) == noun
    assert (example.answer, example.part("question"), example.part("none")) == ("a", "q", "")


def test_errors_know_their_exit_codes_and_the_nearest_word():
    assert (LuthierError.exit_code, UserError.exit_code, GateError.exit_code) == (1, 2, 3)
    assert nearest("rnak", ["rank", "alpha"]) == "Did you mean 'rank'?"
    assert nearest("zzz", ["rank", "alpha"]) == "Legal: alpha, rank."
    assert nearest("zzz", []) == "Legal: nothing."
