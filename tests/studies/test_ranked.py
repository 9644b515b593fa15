"""ranked: order within a question by hand; the rows of rated-answers and candidate-questions are what they say."""

from __future__ import annotations

import pytest
from sklearn.metrics import roc_auc_score

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import question
from luthier.core.files import read_lines


def rated(name, said, good, cluster="c"):
    return question(name, "Which oak?", "dark red oak", cluster=cluster, meta={"said": said, "good": good})


def values(rows, ctx, metric="token-recall"):
    examples = write_examples(ctx.folder / "rows", {"some": rows})
    build("step", {"use": "ranked", "metric": metric}).run({"examples": examples}, ctx)
    return {line["cluster"]: line["value"] for line in read_lines(ctx.folder / "scores.jsonl")}


def test_the_share_of_pairs_in_the_right_order(make_ctx):
    rows = [rated("a", "a dark red oak it is", True), rated("b", "red", True), rated("c", "red oak", False),
            rated("d", "red", False), rated("e", "pine", True, "d"), rated("f", "oak", False, "d")]
    ctx = make_ctx("by-hand")
    (ctx.folder / "rows").mkdir()
    found = values(rows, ctx)
    recall = [1, 1 / 3, 2 / 3, 1 / 3]  # of the cluster c, in order
    assert found == {"c": pytest.approx(roc_auc_score([1, 1, 0, 0], recall)), "d": 0}
    assert found["c"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)


def test_a_question_without_a_bad_answer_is_refused(make_ctx):
    ctx = make_ctx("none")
    (ctx.folder / "rows").mkdir()
    with pytest.raises(UserError, match="c of some has 1 good and 0 bad rows"):
        values([rated("a", "oak", True)], ctx)


def test_rated_subsets_keep_the_metrics_own_values(make_ctx):
    ctx = make_ctx("rated-rows")
    (ctx.folder / "rows").mkdir()
    examples = write_examples(ctx.folder / "rows", {
        "some": [rated("a", "oak", True), rated("b", "pine", False)],
        "alone": [rated("c", "a red oak", True), rated("d", "pine", True, "d")]})
    step = build("step", {"use": "ranked", "metric": "token-recall", "rated": ["alone"]})
    made = step.run({"examples": examples}, ctx)
    lines = read_lines(ctx.folder / "scores.jsonl")
    assert [(r["set"], r["cluster"], r["metric"], r["value"]) for r in lines] == [
        ("some", "c", "ranks-right", 1.0), ("alone", "c", "token-recall", pytest.approx(2 / 3)),
        ("alone", "d", "token-recall", 0)]
    (receipt,) = step.receipts({"examples": examples}, made, ctx)
    assert receipt.verdict == "agrees" and receipt.left == 3
    examples = write_examples(make_ctx("none-rows").folder, {"alone": [question("e", "?", cluster="e")]})
    with pytest.raises(UserError, match="no value for e of alone"):
        step.run({"examples": examples}, make_ctx("none-rated"))


def test_rated_answers_are_right_or_wrong_as_they_say(make_ctx):
    made = build("step", "rated-answers:questions=30").run({}, make_ctx("rated"))
    assert {name: len(list(made.examples(name))) for name in made.subsets} == {"natural": 180, "fooling": 60, "faithful": 150}
    for row in made.examples("natural"):
        said, right = row.meta["said"], row.answer
        assert row.meta["good"] == (right in said) or row.id.endswith("/5"), "a copied passage may hold anything"
    for row in made.examples("fooling"):
        assert (row.answer in row.meta["said"]) is not row.meta["good"]
    for row in made.examples("faithful"):
        assert row.answer in row.meta["shown"][0]


def test_candidates_lead_to_their_answer_or_elsewhere(make_ctx):
    asked, words = (build("step", {"use": "candidate-questions", "form": form, "states": 4, "crops": 6, "tested": 9}).run(
        {}, make_ctx(form)) for form in ("question", "reference"))
    for subset in ("fact", "section"):
        one, other = list(asked.examples(subset)), list(words.examples(subset))
        assert [(r.id, r.cluster, r.meta["good"]) for r in one] == [(r.id, r.cluster, r.meta["good"]) for r in other]
        assert [r.part("question") for r in one] == [r.meta["said"] for r in other] and len(one) == 27
        assert all(r.answer in r.part("passage") for r in one)
        assert all((r.meta["said"] != r.answer) for r in other), "no candidate is the reference itself"
    tested = {r.source for r in asked.examples("fact")}
    assert len(tested) == 9 and not tested & {r.source for r in asked.examples("read")}
    ratings = {(r.answer == r.meta["candidate"], r.meta["rating"]) for r in asked.examples("rate")}
    assert ratings == {(True, 5.0), (False, 4.0), (False, 1.0)}
