"""majority: the commonest training label, for every row."""

from __future__ import annotations

import pytest

from luthier.core.artifact import Artifact, write_examples
from luthier.core.example import Example, Part, Turn
from luthier.core.files import read_lines
from luthier.pipelines.steps.majority import Majority


def texts(labels: str, name: str) -> list[Example]:
    return [Example(f"{name}{i}", (Turn("user", (Part(f"text {i} of {name}"),)),), cluster=f"{name}/{i}", label=label)
            for i, label in enumerate(labels)]


@pytest.fixture
def vote(make_ctx, tmp_path):
    def run(train: str, unseen: str, **fields) -> Artifact:
        rows = write_examples(tmp_path / "rows", {"train": texts(train, "t"), "dev": texts("zzzzzz", "d"),
                                                  "unseen": texts(unseen, "u")})
        step, ctx = Majority(**fields), make_ctx("majority")
        made = step.run({"examples": rows}, ctx)
        assert [r.verdict for r in step.receipts({"examples": rows}, made, ctx)] == ["agrees", "agrees"]
        return made

    return run


def test_every_row_gets_the_commonest_training_label(vote):
    made = vote("abb", "aabbbbcc")
    rows = read_lines(made.folder / "predictions.jsonl")
    assert {r["text"] for r in rows} == {"b"} and [r["label"] for r in rows] == list("aabbbbcc")
    assert rows[0]["probabilities"] == {"a": pytest.approx(1 / 3), "b": pytest.approx(2 / 3)}
    assert [r["value"] for r in read_lines(made.folder / "scores.jsonl")] == [0, 0, 1, 1, 1, 1, 0, 0]
    assert made.meta["arm"] == "majority label" and made.meta["metrics"] == {"accuracy": True}


def test_of_equally_common_labels_the_first_by_name(vote):
    assert {r["text"] for r in read_lines(vote("cbacba", "a").folder / "predictions.jsonl")} == {"a"}


def test_the_arm_and_the_sets_may_be_named(vote):
    made = vote("ab", "a", arm="vote", sets=("dev", "unseen"))
    assert made.meta["arm"] == "vote"
    assert [r["set"] for r in read_lines(made.folder / "predictions.jsonl")] == ["dev"] * 6 + ["unseen"]
