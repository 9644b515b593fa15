"""span-corruption: what is left out and what is written make the text again; spans have the shares that were asked for."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.kinds import DroppedRow
from luthier.core.rng import Rng
from luthier.engine.models import load_base
from luthier.engine.rendering import renderer

TEXT = "module class object list dict name scope block import yield " * 4


def row(text=TEXT):
    return Example("r", (Turn("user", (Part(text, name="text"),)),), task="text")


def marked(base):
    """The pico model with a T5's marks in its tokenizer."""
    model = load_base(base)
    model.tokenizer.add_special_tokens({"additional_special_tokens": [f"<extra_id_{n}>" for n in range(30)]})
    return model


@pytest.mark.oracle(clause="source and target together are the text", against="putting them together again")
@pytest.mark.parametrize("seed", range(12))
def test_the_text_comes_back(pico_encoder_decoder, seed):
    model = marked(pico_encoder_decoder)
    render, objective = renderer(model, 256), build("objective", "span-corruption")
    tokens = objective.encode(row(), render, Rng(seed))["input"]
    marks = {model.tokenizer.convert_tokens_to_ids(f"<extra_id_{n}>"): n for n in range(30)}
    target = tokens.decoder_ids[1:]
    assert tokens.targets == [False] + [True] * len(target) and target[-1] == render.stop_id and target[-2] in marks
    spans, current = {}, None
    for token in target[:-2]:
        if token in marks:
            current = spans.setdefault(marks[token], [])
        else:
            current.append(token)
    assert list(spans) == list(range(len(spans))) and marks[target[-2]] == len(spans)
    again = []
    for token in tokens.ids:
        again += spans[marks[token]] if token in marks else [token]
    assert again == render.text(row()).ids and all(spans.values())


@pytest.mark.oracle(clause="spans are `mean_span` long on average and `share` of the text", against="counts of many draws")
def test_spans_have_the_shares_that_are_asked_for():
    objective = build("objective", "span-corruption:share=0.15,mean_span=3")
    draws = [objective.spans(100, np.random.default_rng(n)) for n in range(300)]
    assert all(sum(length for _, length in spans) == 15 and len(spans) == 5 for spans in draws)
    for spans in draws:
        ends = [begin + length for begin, length in spans]
        assert all(begin > end for (begin, _), end in zip(spans[1:], ends,
                                                          strict=False)) and ends[-1] <= 100 and spans[0][0] >= 0
    lengths = [length for spans in draws for _, length in spans]
    assert np.mean(lengths) == pytest.approx(3) and min(lengths) == 1 and max(lengths) > 6
    starts = np.array([spans[0][0] for spans in draws])
    assert starts.min() < 3 and starts.max() > 40, "the first span may stand anywhere"
    assert objective.spans(2, np.random.default_rng(0)) == [(1, 1)]


def test_what_can_not_be_left_out_is_said(pico_encoder_decoder):
    objective, model = build("objective", "span-corruption"), load_base(pico_encoder_decoder)
    with pytest.raises(DroppedRow) as caught:
        objective.encode(row(""), renderer(model, 64), Rng(0))
    assert caught.value.dropped.reason == "nothing to learn"
    model.tokenizer.mask_token = None
    with pytest.raises(UserError, match="has no mark <extra_id_0>"):
        objective.encode(row(), renderer(model, 256), Rng(0))
