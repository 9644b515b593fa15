"""Greedy and sampled decoding against the probabilities that they claim to follow."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.component import build

SCORES = torch.tensor([[2.0, 1.0, 0.0, -1.0, -5.0]])


def drawn(decoder, numbers) -> np.ndarray:
    """Chosen ids for these uniform numbers, one row each."""
    scores = decoder.scores({"policy": SCORES.expand(len(numbers), -1)})
    return decoder.choose(scores, [lambda u=u: float(u) for u in numbers]).numpy()


def test_greedy_takes_the_highest():
    assert drawn(build("decoder", "greedy"), [0.1, 0.9]).tolist() == [0, 0]


def test_shares_are_the_probabilities():
    decoder = build("decoder", "sample:temperature=2,top_p=1")
    numbers = (np.arange(20_000) + 0.5) / 20_000
    shares = np.bincount(drawn(decoder, numbers), minlength=5) / len(numbers)
    assert np.abs(shares - (SCORES[0] / 2).softmax(-1).numpy()).max() < 1e-4


def test_top_p_keeps_the_smallest_set_that_holds_the_share():
    probabilities = SCORES[0].softmax(-1).numpy()
    for top_p in (0.1, 0.7, 0.95, 1.0):
        kept = int(np.searchsorted(probabilities.cumsum(), top_p) + 1) if top_p < 1 else 5
        numbers = (np.arange(4000) + 0.5) / 4000
        decoder = build("decoder", f"sample:temperature=1,top_p={top_p}")
        shares = np.bincount(drawn(decoder, numbers), minlength=5) / 4000
        wanted = np.where(np.arange(5) < kept, probabilities, 0)
        assert np.abs(shares - wanted / wanted.sum()).max() < 1e-3


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.floats(0.05, 5), st.floats(0.01, 1), st.integers(0, 1000))
def test_any_number_gives_a_kept_token_whatever_the_neighbours(u, temperature, top_p, seed):
    decoder = build("decoder", {"use": "sample", "temperature": temperature, "top_p": top_p})
    scores = torch.randn(3, 30, generator=torch.Generator().manual_seed(seed)) * 5
    alone = decoder.choose(decoder.scores({"policy": scores[:1]}), [lambda: u])
    together = decoder.choose(decoder.scores({"policy": scores}), [lambda: u, lambda: 0.0, lambda: 1 - 1e-9])
    assert int(alone[0]) == int(together[0])
    assert int(together[1]) == int(scores[1].argmax())


def test_a_cold_sample_is_greedy():
    assert set(drawn(build("decoder", "sample:temperature=0.01"), np.linspace(0, 0.999, 50))) == {0}
