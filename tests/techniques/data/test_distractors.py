"""distractors: gold among hard negatives, never where it was left out; all by the seed and the row's own id."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from luthier.core.citing import ABSTENTION, parse
from luthier.core.errors import UserError
from luthier.core.example import Passage, question
from luthier.core.rng import Rng
from luthier.engine.rendering import passages_of
from luthier.techniques.data.distractors import Distractors
from luthier.techniques.data.show_passage import ShowPassage
from luthier.techniques.evaluation._shared import gold_answers

PASSAGES = [Passage(f"p{i}", f"Part {i} is new. It weighs {i} grams in all.", "d", f"s{i}", ("Parts",), page=i, line=2 * i)
            for i in range(8)]
ROWS = [question(f"q{i}", f"How heavy is {i}?", f"{i % 8} grams in all", passage=PASSAGES[i % 8].shown, source=f"p{i % 8}",
                 cluster=f"s{i % 8}", references=(f"{i % 8} grams in all",), meta={"gold": [f"p{i % 8}"], "generator": "hand"})
        for i in range(400)]


def near(queries, k):
    """The gold passage second, the next ones after it: a retriever by brute force."""
    found = []
    for query in queries:
        n = int("".join(c for c in query if c.isdigit())) % 8
        found.append([PASSAGES[(n + d) % 8] for d in (1, 0, 2, 3, 4, 5, 6, 7)][:k])
    return found


def make(ctx, rows=ROWS, seed=0, retriever=near, **fields):
    ctx = replace(ctx, rng=Rng(seed), roles={"retriever": retriever})
    return list(Distractors(**fields).apply(iter(rows), ctx))


@pytest.mark.oracle(seed=1, clause=6, against="brute force")
@pytest.mark.parametrize("seed", [0, 1])
def test_where_gold_is_left_out_it_is_nowhere_in_the_prompt(ctx, seed):
    made = make(ctx, seed=seed, no_gold_rate=0.5)
    without = [r for r in made if r.answer == ABSTENTION]
    assert 0.4 < len(without) / len(made) < 0.6
    for row, before in zip(made, ROWS, strict=True):
        prompt = "\n".join(p.value for t in row.turns if not t.target for p in t.parts)
        gold = before.part("passage")
        assert (gold in prompt) == (row.answer != ABSTENTION)
        assert (f"{before.answer}." in prompt) == (row.answer != ABSTENTION), "nor does another passage give the answer"
        assert len(passages_of(row)) == len(row.meta["shown"]) == 3, "one more distractor stands in its place"
    assert all(gold_answers(r) == () and r.meta["gold"] == [] and r.meta["left_out"] for r in without)


def test_negatives_are_the_best_that_are_not_gold(ctx):
    for row, before in zip(make(ctx, no_gold_rate=0), ROWS, strict=True):
        n = int(before.source[1:])
        assert set(row.meta["shown"]) == {f"p{n}", f"p{(n + 1) % 8}", f"p{(n + 2) % 8}"}
        assert passages_of(row) == [next(p.shown for p in PASSAGES if p.id == name) for name in row.meta["shown"]]


def test_the_answer_cites_the_place_of_gold_and_keeps_the_sentence(ctx):
    places = Counter()
    for row, before in zip(make(ctx, no_gold_rate=0), ROWS, strict=True):
        answer, (number,) = parse(row.answer)
        assert answer == before.answer == row.meta["answer"] and row.references == before.references
        assert row.meta["shown"][number - 1] == before.source
        n = int(before.source[1:])
        assert row.meta["cited"] == {"number": number, "sentence": f"It weighs {n} grams in all.", "page": n, "line": 2 * n}
        places[number] += 1
    assert all(places[n] / len(ROWS) == pytest.approx(1 / 3, abs=0.08) for n in (1, 2, 3)), "gold has no favourite place"


def test_citations_may_be_left_out(ctx):
    assert [r.answer for r in make(ctx, cite=False, no_gold_rate=0)] == [r.answer for r in ROWS]


def test_a_row_is_drawn_by_its_id_whatever_stands_beside_it(ctx):
    whole = {r.id: r for r in make(ctx)}
    assert {r.id: r for r in make(ctx, ROWS[::-3])} == {r.id: whole[r.id] for r in ROWS[::-3]}
    assert {r.id: r for r in make(ctx, seed=1)} != whole
    more = {r.id: r for r in make(ctx, no_gold_rate=0.6)}
    assert all(more[i].answer == ABSTENTION for i, r in whole.items() if r.answer == ABSTENTION)


def test_a_passage_that_holds_the_answer_is_no_distractor(ctx):
    twin = Passage("twin", f"Also: {ROWS[0].answer}!", "d", "s9")
    (row,) = make(ctx, ROWS[:1], retriever=lambda q, k: [[twin, *near(q, k)[0]]], no_gold_rate=0)
    assert "twin" not in row.meta["shown"]
    short = replace(ROWS[0], turns=(*ROWS[0].turns[:1], replace(ROWS[0].turns[1], parts=(replace(ROWS[0].turns[1].parts[0],
                                                                                                  value="grams"),))))
    (row,) = make(ctx, [short], retriever=lambda q, k: [[twin, *near(q, k)[0]]], no_gold_rate=0)
    assert "twin" in row.meta["shown"], "one word stands in many passages"


def test_a_single_passage_stays_gold_with_nothing_beside_it(ctx):
    for row in make(ctx, ROWS[:20], retriever=lambda queries, k: [near([q], 8)[0][1:2] for q in queries], no_gold_rate=0.9):
        assert len(row.meta["shown"]) == 1 and parse(row.answer)[1] == (1,)


def test_rows_without_a_passage_stay_as_they_are(ctx):
    rows = list(ShowPassage(share=0.5).apply(iter(ROWS), replace(ctx, rng=Rng(0))))
    made = make(ctx, rows)
    assert [r.id for r in made] == [r.id for r in ROWS]
    for before, after in zip(rows, made, strict=True):
        assert (after == before) != bool(before.part("passage"))


def test_without_a_retriever_it_is_refused(ctx):
    with pytest.raises(UserError, match="distractors needs a retriever"):
        list(Distractors().apply(iter(ROWS), ctx))
