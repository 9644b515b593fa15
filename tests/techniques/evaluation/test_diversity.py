"""diversity: counts by hand, the expected number of different draws, and the limit of a decoder that draws nothing."""

from __future__ import annotations

import pytest
import torch

from luthier.core.component import build
from luthier.core.example import question
from luthier.engine.generation import Generated
from luthier.engine.models import load_base
from luthier.engine.rendering import renderer

ASKED = [question("a", "wood of the peg"), question("b", "wood of the scroll")]


class Table:
    """An engine that answers from a table."""

    def __init__(self, said):
        self.said = said

    def generate(self, model, prompts, decoder, **options):
        assert prompts[:3] == [prompts[0]] * 3 and prompts[3:] == [prompts[3]] * 3 and prompts[0] != prompts[3]
        assert decoder.info.name == "sample" and decoder.temperature == 0.8
        return [Generated(text, 1, True, len(p)) for text, p in zip(self.said, prompts, strict=True)]


def scored(ctx, pico, **options):
    ctx.roles["policy"] = load_base(pico)
    metric = build("metric", {"use": "diversity", **options})
    return metric, metric.score(ASKED, [], ctx)


@pytest.mark.oracle(seed=171, clause=4, against="a count by hand")
def test_different_answers_are_counted(make_ctx, pico):
    ctx = make_ctx("m")
    ctx.engine = Table(["ebony", " ebony\n", "Ebony", "maple", "spruce", "pear"])
    metric, records = scored(ctx, pico, n=3)
    assert [(r["id"], r["value"]) for r in records] == [("a", 2), ("b", 3)]
    assert metric.reduce(records) == 2.5 and metric.details(records) == {"share": pytest.approx(5 / 6)}


@pytest.mark.oracle(seed=171, clause=4, against="the expected number of different draws from the model's own probabilities")
def test_samples_are_as_different_as_the_probabilities_say(make_ctx, pico):
    _, records = scored(make_ctx("m"), pico, n=200, decoder="sample:temperature=0.8,max_new_tokens=1")
    model = load_base(pico)
    render = renderer(model)
    for record, row in zip(records, ASKED, strict=True):
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([render.prompt(row)])).logits[0, -1].float()
        chance = torch.softmax(logits / 0.8, -1).double()
        texts: dict[str, float] = {}
        for token, p in enumerate(chance.tolist()):
            said = render.decode([] if token in render.stop_ids else [token]).strip()
            texts[said] = texts.get(said, 0.0) + p
        p = torch.tensor(list(texts.values()), dtype=torch.float64)
        expected = (1 - (1 - p) ** 200).sum()
        variance = ((1 - p) ** 200 * (1 - (1 - p) ** 200)).sum()  # an upper bound: draws are negatively correlated
        assert abs(record["value"] - expected) < 4 * variance.sqrt()


def test_without_sampling_all_answers_are_one(make_ctx, pico):
    assert [r["value"] for r in scored(make_ctx("m"), pico, n=4, decoder="greedy:max_new_tokens=3")[1]] == [1, 1]
