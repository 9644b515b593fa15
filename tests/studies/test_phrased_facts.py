"""phrased-facts: wordings that tuning sees, options that stay, and persons that are kept apart."""

from __future__ import annotations

from collections import defaultdict

import pytest

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.studies._worlds.phrased_facts import OBSERVED, UNOBSERVED


@pytest.fixture
def facts(make_ctx):
    return build("step", "facts-world:persons=30,values=6").run({}, make_ctx("facts"))


@pytest.mark.parametrize("templates", [1, 3, 12])
def test_tuning_sees_its_wordings_and_tests_ask_all_facts_in_every_one(facts, make_ctx, templates):
    step = build("step", f"phrased-facts:templates={templates},train_rows=120,test_facts=5")
    made = step.run({"facts": facts}, make_ctx("rows"))
    train = list(made.examples("train"))
    text = {e.source: 0 for e in train}
    asked = [*made.examples("unobserved"), *made.examples("observed")]
    assert len(train) == 120 and not text.keys() & {e.source for e in asked}
    ends = {w.replace("{q}", "").replace("{s}", "").strip() for task in OBSERVED for w in OBSERVED[task][:templates]}
    used = {next(w for w in sorted(ends, key=len, reverse=True) if w in e.part("question")) for e in train}
    assert used <= ends and len(used) >= templates
    assert len(list(made.examples("observed"))) == 2 * 5 * 3 and len(list(made.examples("unobserved"))) == 2 * 5 * 6
    by_fact = defaultdict(set)
    for e in asked:
        assert len(set(e.meta["options"])) == 4
        by_fact[e.cluster].add((tuple(e.meta["options"]), e.label))
    assert len(by_fact) == 10 and all(len(found) == 1 for found in by_fact.values())
    for task in OBSERVED:
        assert not set(OBSERVED[task]) & set(UNOBSERVED[task]) and len(OBSERVED[task]) == 12


def test_a_world_that_is_too_small_is_refused(facts, make_ctx):
    with pytest.raises(UserError, match="too few for 500 test facts and others to train on. Raise persons"):
        build("step", "phrased-facts:test_facts=500").run({"facts": facts}, make_ctx("rows"))
    small = build("step", "facts-world:persons=30,values=3").run({}, make_ctx("small"))
    with pytest.raises(UserError, match="has 3 values, and four options are asked. Raise values"):
        build("step", "phrased-facts:test_facts=5").run({"facts": small}, make_ctx("rows"))
