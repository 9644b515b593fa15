"""Several data sets in one task: proportions without luck, sources that go round by themselves, pure in (seed, step)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.artifact import write_examples
from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.core.rng import Rng
from luthier.engine.mixing import LONGEST_PERIOD, Mixture, chairmen
from tests.contracts import dummies
from tests.contracts.workbench import examples, short_fit

RNG = Rng(0).within("mix")


def test_three_to_one_is_three_to_one_in_every_four():
    mixture = Mixture({"a": 10, "b": 4}, {"a": 3, "b": 1})
    assert mixture.parts == [3, 1] and mixture.shares == {"a": 0.75, "b": 0.25}
    for step in range(30):
        rows = mixture.rows_at(RNG, step, 4)
        assert sum(r < 10 for r in rows) == 3 and len(rows) == 4


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
@pytest.mark.oracle(clause="every prefix within one of its share", against="brute force")
def test_every_prefix_is_within_one_row_of_its_share(parts):
    order, total, k = chairmen(parts), sum(parts), len(parts)
    assert [order.count(i) for i in range(k)] == parts
    bound = 1 - 1 / (2 * k - 2) if k > 1 else 0
    for t in range(1, total + 1):
        for i in range(k):
            assert abs(order[:t].count(i) - parts[i] * t / total) <= bound + 1e-9


def test_a_draw_at_random_would_be_seen():
    """A mutant: the same proportions by luck are off by more than one row somewhere."""
    parts, total = [3, 1], 400
    lucky = np.random.default_rng(0).choice(2, size=total, p=[0.75, 0.25])
    assert max(abs(int((lucky[:t] == 0).sum()) - parts[0] * t / 4) for t in range(1, total)) > 1


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=4), st.integers(1, 7), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_sources_go_round_independently_and_ranks_share_a_batch(sources, batch, ranks):
    names = [f"s{i}" for i in range(len(sources))]
    mixture = Mixture(dict(zip(names, (n for n, _ in sources), strict=True)),
                      dict(zip(names, (w for _, w in sources), strict=True)))
    had: dict[int, list[int]] = {i: [] for i in range(len(sources))}
    for step in range(12):
        rows = mixture.rows_at(RNG, step, batch)
        shares = [mixture.rows_at(RNG, step, batch, rank, ranks) for rank in range(ranks)]
        assert sorted(np.concatenate(shares)) == sorted(rows) and len(rows) == batch
        for row in rows:
            source = max(i for i, first in enumerate(mixture.first) if row >= first)
            had[source].append(int(row))
    assert [len(h) for h in had.values()] == mixture.drawn(12 * batch)
    for source, rows in had.items():
        size = sources[source][0]
        for i in range(0, len(rows) - size + 1, size):
            assert len(set(rows[i:i + size])) == size, "each row of a source once, before any comes again"


def test_rows_are_a_function_of_seed_and_step():
    one, two = (Mixture({"a": 30, "b": 7}, {"a": 1, "b": 2}) for _ in range(2))
    assert [list(one.rows_at(RNG, s, 5)) for s in (9, 2, 9)] == [list(two.rows_at(RNG, s, 5)) for s in (9, 2, 9)]
    assert list(one.rows_at(RNG, 3, 5)) != list(one.rows_at(Rng(1), 3, 5))


@pytest.mark.oracle(clause="temperature", against="closed form")
def test_temperature_flattens_the_shares():
    shares = Mixture({"a": 1, "b": 1}, {"a": 9, "b": 1}, temperature=2).shares
    assert shares == pytest.approx({"a": 0.75, "b": 0.25}, abs=1e-3)
    assert Mixture({"a": 1, "b": 1}, {"a": 0.7, "b": 0.3}).parts == [7, 3]
    assert sum(Mixture({"a": 1, "b": 1}, {"a": 0.123456789, "b": 1}).parts) == pytest.approx(LONGEST_PERIOD, abs=2)


# --- in a training -------------------------------------------------------------------------------------------------

def fitted(make_ctx, pico, name="fit", **changed):
    made = examples(10)
    rows = {"train": made[:7], "extra": made[7:]}
    inputs = {"base": pico, "examples": write_examples(make_ctx(f"{name}/examples").folder, rows)}
    task = {"data": {"examples.train": 1, "examples.extra": 3}}
    fit = short_fit("decoder", **{"tasks": (task,), "batch_rows": 4, "length": {"steps": 9}, **changed})
    ctx = make_ctx(f"{name}/fit", inputs)
    artifact = fit.run(inputs, ctx)
    assert all(r.verdict == "agrees" for r in fit.receipts(inputs, artifact, ctx))
    return artifact


def test_a_task_draws_from_its_sources_in_proportion(make_ctx, pico, monkeypatch):
    from luthier.engine import loop

    seen: list[list[str]] = []
    collate = loop.collate
    monkeypatch.setattr(loop, "collate", lambda rows, ids, *rest: seen.append(list(ids)) or collate(rows, ids, *rest))
    artifact = fitted(make_ctx, pico)
    extra = {"q7", "q8", "q9"}
    assert [sum(i in extra for i in ids) for ids in seen] == [3] * 9
    assert Counter(i for ids in seen for i in ids if i in extra) == {"q7": 9, "q8": 9, "q9": 9}
    assert artifact.meta["fit"]["mixtures"] == {"examples.train+examples.extra": {
        "examples.train": {"rows": 7, "share": 0.25, "epochs": round(9 / 7, 4)},
        "examples.extra": {"rows": 3, "share": 0.75, "epochs": 9.0}}}


def test_a_mixture_goes_on_where_it_was_stopped(make_ctx, pico):
    whole = fitted(make_ctx, pico, "whole")
    stop = {"regularizers": ("dummy-stop:at=4",), "checkpoint_seconds": 0}
    with pytest.raises(dummies.Killed):
        fitted(make_ctx, pico, "again", **stop)
    again = fitted(make_ctx, pico, "again", **stop)
    weights = [(a.folder / "adapter_model.safetensors").read_bytes() for a in (whole, again)]
    assert weights[0] == weights[1]
    assert [r["loss"] for r in read_lines(whole.folder / "curve.jsonl")] == [
        r["loss"] for r in read_lines(again.folder / "curve.jsonl")]


@pytest.mark.parametrize("data, why", [
    ({"examples.train": 1, "examples.extra": 0}, "greater than 0"),
    ({}, "at least one"),
    ({"examples.train": 1, "examples.other": 1}, "no subset 'other'"),
    ({"examples.train:a.jsonl": 1, "examples.extra": 1}, "no row of the file 'a.jsonl'"),
])
def test_a_mixture_that_can_not_be_drawn_is_refused(make_ctx, pico, data, why):
    with pytest.raises((UserError, ValueError), match=why):
        fitted(make_ctx, pico, tasks=({"data": data},))
