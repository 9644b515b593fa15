"""unanswerable: made-up names occur nowhere, hidden answers stand nowhere else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from luthier.core.errors import UserError
from luthier.core.example import Passage, question
from luthier.core.rng import Rng
from luthier.techniques.data.unanswerable import Unanswerable
from luthier.techniques.evaluation._shared import gold_answers

PARTS = "Clamp glue Plane wood string varnish peg nut bridge scroll".split()
PASSAGES = [Passage(f"p{i}", f"The {p} is kept on shelf {i} of old wood.", "d", f"s{i}") for i, p in enumerate(PARTS)]
ROWS = [question(f"q{i}", f"Where is the {p} kept?", f"on shelf {i}", source=f"p{i}", cluster=f"s{i}",
                 references=(f"on shelf {i}",), meta={"gold": [f"p{i}"]}) for i, p in enumerate(PARTS)]


def make(ctx, asked=ROWS, passages=PASSAGES, seed=0, **fields):
    ctx = replace(ctx, rng=Rng(seed), roles={"passages": lambda: iter(passages)})
    return list(Unanswerable(**fields).apply(iter(asked), ctx))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_swapped_name_occurs_nowhere_in_the_documents(ctx, seed):
    made = make(ctx, seed=seed, ways=("swapped",))
    everything = " ".join(p.text for p in PASSAGES).lower()
    assert len(made) == len(ROWS) and {r.meta["of"] for r in made} == {r.id for r in ROWS}
    for row in made:
        old, new = row.meta["swapped"]
        before = next(r for r in ROWS if r.id == row.meta["of"]).part("question")
        assert old in everything and new not in everything
        assert row.part("question").lower() == before.lower().replace(old, new)
        assert gold_answers(row) == () and row.meta["gold"] == [] and row.answer == ""


def test_the_rarest_name_is_swapped_in_its_own_case(ctx):
    made = {r.meta["of"]: r for r in make(ctx, ways=("swapped",))}
    assert made["q0"].meta["swapped"][0] == "clamp", "`kept` stands in every passage"
    assert made["q0"].part("question").split()[3][0].isupper() and made["q1"].part("question").split()[3].islower()


def test_part_of_a_dotted_name_is_swapped(ctx):
    row = question("q", "What does str.center() do?", "it centres", cluster="s")
    (made,) = make(ctx, [row], [Passage("p", "str.center() centres. str is a type.", "d", "s")], ways=("swapped",))
    assert made.part("question") == f"What does str.{made.meta['swapped'][1]}() do?"


def test_hidden_questions_are_answered_nowhere_else(ctx):
    twin = Passage("twin", "It also lies on shelf 3.", "d", "other")
    made = {r.meta["of"]: r for r in make(ctx, passages=[*PASSAGES, twin], ways=("hidden",))}
    assert made.keys() == {r.id for r in ROWS} - {"q3"}
    for name, row in made.items():
        before = next(r for r in ROWS if r.id == name)
        assert row.part("question") == before.part("question") and row.meta["hidden"] == [before.cluster]
        assert gold_answers(row) == () and row.id != name
    short = replace(ROWS[0], references=("shelf",))
    assert make(ctx, [short], ways=("hidden",)) == [], "one word may stand anywhere"


def test_hidden_ones_fill_up_what_swapping_leaves(ctx):
    made = make(ctx, rows=12)
    assert len(made) == 12 and [r.meta["made"] for r in made] == ["swapped"] * 10 + ["hidden"] * 2
    assert [r.meta["made"] for r in make(ctx, rows=4)] == ["swapped"] * 4
    assert make(ctx, rows=4) == make(ctx, rows=4) != make(ctx, rows=4, seed=1)


def test_questions_without_an_answer_make_none_and_documents_are_needed(ctx):
    assert make(ctx, [question("q", "Where is the peg?", cluster="s")]) == []
    with pytest.raises(UserError, match="unanswerable needs the documents"):
        list(Unanswerable().apply(iter(ROWS), ctx))
