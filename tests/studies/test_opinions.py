"""opinions and strange-opinions: labels are what the remarks say, and strange rows are strange in the way they should be."""

from __future__ import annotations

import pytest

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.studies._worlds.opinions import DOMAINS


def remarks(text, domain):
    """(aspect, good) of every remark of a text, found by its words."""
    return [(aspect, side == 0) for aspect, sides in DOMAINS[domain].items() for side, told in enumerate(sides)
            for remark in told if f"{remark[0].upper()}{remark[1:]}." in text]


def test_sentiment_is_that_of_most_remarks_and_mixing_is_by_domain(make_ctx):
    made = build("step", {"use": "opinions", "rows": 40, "mixed": [0.0, 0.5, 1.0, 0.0]}).run({}, make_ctx("rows"))
    rows = list(made.examples("all"))
    assert made.meta["labels"] == ["bad", "good"] and len({r.turns[0].text for r in rows}) > 150
    mixed = {}
    for row in rows:
        found = remarks(row.turns[0].text, row.source)
        good = sum(side for _, side in found)
        assert len(found) == len({a for a, _ in found}) == 3 and row.label == ("good" if good > 1.5 else "bad")
        mixed.setdefault(row.source, []).append(good in (1, 2))
    shares = {domain: sum(odd) / len(odd) for domain, odd in mixed.items()}
    assert shares["meals"] == shares["tools"] == 0 and shares["hotels"] == 1 and 0.25 < shares["films"] < 0.75
    assert all(sum(r.label == "good" for r in rows if r.source == d) == 20 for d in DOMAINS)


@pytest.mark.parametrize("mixed", [[0.1, 0.2], [0.0, 0.0, 0.0, 1.5]])
def test_shares_that_are_none_are_refused(mixed):
    with pytest.raises(UserError, match="one share from 0 to 1 for each of meals, films, hotels, tools"):
        build("step", {"use": "opinions", "mixed": mixed}).check()


def test_strange_rows_are_of_another_domain_or_of_the_class_held_out(make_ctx):
    far, near = (build("step", {"use": "strange-opinions", "strange": kind, "train_rows": 30, "test_rows": 12}).run(
        {}, make_ctx(kind)) for kind in ("domain", "class"))
    for subset in ("train", "test"):
        same = [[e.turns[0].text for e in made.examples(subset)] for made in (far, near)]
        assert same[0] == same[1]
        assert {(e.source, e.label) for e in far.examples(subset)} == {("hotels", a) for a in ("bed", "noise", "bath")}
    assert {e.source for e in far.examples("ood")} == {"meals", "films", "tools"}
    assert {(e.source, e.label) for e in near.examples("ood")} == {("hotels", "desk")}
    for row in near.examples("ood"):
        assert {a for a, _ in remarks(row.turns[0].text, "hotels")} == {"desk"}
