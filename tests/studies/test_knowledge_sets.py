"""knowledge-sets: known facts for dev and test, of the categories that are asked for, and a mixture of the others."""

from __future__ import annotations

from collections import Counter

import pytest

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import question

SIZES = {"HighlyKnown": 12, "MaybeKnown": 8, "WeaklyKnown": 10, "Unknown": 10}


@pytest.fixture
def marked(make_ctx):
    rows = {name: [question(f"{kind}{i}", f"What is {kind}{i}?", "x", meta={"knowledge": kind})
                   for kind in kinds for i in range(SIZES[kind])]
            for name, kinds in (("told", ("HighlyKnown", "MaybeKnown", "WeaklyKnown")), ("untold", ("Unknown",)))}
    return write_examples(make_ctx("marked").folder, rows)


def divided(marked, make_ctx, word, name="sets"):
    made = build("step", f"knowledge-sets:{word}").run({"rows": marked}, make_ctx(name))
    return {subset: list(made.examples(subset)) for subset in made.subsets}


def kinds(rows):
    return Counter(r.meta["knowledge"] for r in rows)


FEW = "test_rows=10,dev_rows=4"


def test_only_the_categories_that_are_asked_for_are_tested(marked, make_ctx):
    sets = divided(marked, make_ctx, f"{FEW},tested=[HighlyKnown,MaybeKnown],"
                                     "mixture={use: knowledge-mixture, rows: 16, unknown: 0.0}")
    assert (len(sets["test"]), len(sets["dev"])) == (10, 4)
    assert "WeaklyKnown" not in kinds(sets["test"] + sets["dev"])
    # 6 facts of the tested categories are left, and all 10 others that are known: exactly the mixture.
    assert kinds(sets["train"])["WeaklyKnown"] == 10 and len(sets["train"]) == 16
    assert not {r.id for r in sets["train"]} & {r.id for r in sets["test"] + sets["dev"]}


def test_all_that_is_known_is_tested_when_nothing_is_said(marked, make_ctx):
    sets = divided(marked, make_ctx, "test_rows=25,dev_rows=4,mixture={use: knowledge-mixture, rows: 2, unknown: 1.0}")
    tested = kinds(sets["test"] + sets["dev"])
    assert sum(tested.values()) == 29 and "Unknown" not in tested and tested["WeaklyKnown"] >= 9


def test_the_mixture_does_not_move_the_test(marked, make_ctx):
    word = f"{FEW},tested=[HighlyKnown,MaybeKnown],mixture={{use: knowledge-mixture, rows: 6, unknown: %s}}"
    known, unknown = (divided(marked, make_ctx, word % share, f"x{share}/sets") for share in (0.0, 1.0))
    assert [r.id for r in known["test"]] == [r.id for r in unknown["test"]]
    assert "train-unknown" not in known and "train-known" not in unknown


def test_too_few_of_the_categories_are_refused(marked, make_ctx):
    with pytest.raises(UserError, match="12 of 40 facts are HighlyKnown to the model; more than 14 are needed"):
        divided(marked, make_ctx, f"{FEW},tested=[HighlyKnown]")
