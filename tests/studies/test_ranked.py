"""ranked: order within a question by hand; the rows of rated-answers and candidate-questions are what they say."""

from __future__ import annotations

import pytest
from sklearn.metrics import roc_auc_score

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import question
from luthier.core.files import read_lines
from luthier.core.kinds import Metric


class MarkedGood(Metric, name="marked-good"):
    """What a row says of itself."""

    def score(self, examples, predictions, ctx):
        return [{"id": e.id, "value": float(e.meta["good"])} for e in examples]


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
    step = build("step", {"use": "ranked", "metric": "token-recall", "sets": ["some"], "rated": ["alone"]})
    made = step.run({"examples": examples}, ctx)
    lines = read_lines(ctx.folder / "scores.jsonl")
    assert [(r["set"], r["cluster"], r["metric"], r["value"]) for r in lines] == [
        ("some", "c", "ranks-right", 1.0), ("alone", "c", "token-recall", pytest.approx(2 / 3)),
        ("alone", "d", "token-recall", 0)]
    (receipt,) = step.receipts({"examples": examples}, made, ctx)
    assert receipt.verdict == "agrees" and receipt.left == 3
    examples = write_examples(make_ctx("none-rows").folder, {"alone": [question("e", "?", cluster="e")]})
    with pytest.raises(UserError, match="no value for e of alone"):
        build("step", "ranked:rated=[alone]").run({"examples": examples}, make_ctx("none-rated"))


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
    asked, words = (build("step", {"use": "candidate-questions", "form": form, "states": 4, "crops": 6, "tested": 9,
                                     "pooled": 5}).run(
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
    for name, right in (("right", True), ("unrelated", False)):
        assert [(r.meta["said"] == r.answer, r.meta["said"] in r.part("passage")) for r in asked.examples(name)] == [
            (right, right)] * 9
    assert {r.source for r in asked.examples("held")} == tested


def test_no_rating_can_be_guessed_without_the_intended_answer(make_ctx):
    """Equal question, candidate and passage are rated 5 beside one intended answer and 1 beside another."""
    made = build("step", "candidate-questions:states=4,crops=6,tested=9,pooled=5").run({}, make_ctx("rate"))
    rated: dict[tuple[str, ...], dict[str, float]] = {}
    for row in made.examples("rate"):
        key = (row.part("question"), str(row.meta["candidate"]), row.part("passage"))
        rated.setdefault(key, {})[row.answer] = row.meta["rating"]
    asked = {key[0] for key in rated}
    both = {key[0] for key, found in rated.items() if set(found.values()) == {1.0, 5.0}}
    assert both == asked and len(asked) == 10 * 3


def test_the_pool_is_half_misled_and_reranking_keeps_what_a_metric_prefers(make_ctx):
    made = build("step", "candidate-questions:states=4,crops=6,tested=9,pooled=5").run({}, make_ctx("pool"))
    pool, drawn = list(made.examples("pool")), list(made.examples("drawn"))
    assert (len(pool), len(drawn)) == (5 * 3 * 4, 5 * 3) and sum(r.meta["good"] for r in pool) == len(pool) / 2
    assert {r.id for r in drawn} < {r.id for r in pool} and len({(r.source, r.answer) for r in drawn}) == 15
    others = {r.source for name in ("read", "rate", "fact", "held") for r in made.examples(name)}
    assert not others & {r.source for r in pool}
    ctx = make_ctx("kept")
    step = build("step", {"use": "reranked", "metric": "marked-good"})
    kept = step.run({"examples": made}, ctx)
    rows = list(kept.examples("train"))
    assert len(rows) == 15 and all(r.meta["good"] and r.meta["score"] == 1 for r in rows)
    assert step.receipts({"examples": made}, kept, ctx)[0].verdict == "agrees" and len(kept.ledger()) == 45
