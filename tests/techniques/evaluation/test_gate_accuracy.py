"""gate-accuracy with gates that are told what to say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import question
from luthier.engine.models import load_base
from luthier.engine.rendering import renderer
from luthier.techniques.methods._gated import gated_layers
from tests.contracts import loras


@pytest.fixture
def model(pico):
    """Gates that take 'word' at every token whose id is even, and 'thing' elsewhere; one of them the other way round."""
    found = build("method", {"use": "meteora", "adapters": loras.two()}).prepare(load_base(pico), None)
    found.module.eval()
    seen = {}
    found.module.get_input_embeddings().register_forward_hook(lambda m, given, out: seen.update(even=given[0] % 2 == 0))
    for n, layer in enumerate(gated_layers(found.module).values()):
        def told(gate, given, out, n=n):
            word = seen["even"].view(-1) ^ (n == 0)
            return torch.stack([~word, word], -1).to(out.dtype)
        layer.gate.register_forward_hook(told)
    return found


def score(model, *rows):
    return build("metric", "gate-accuracy").score(rows, [], SimpleNamespace(roles={"policy": model}))


@pytest.mark.oracle(clause="share of gates and tokens", against="worked by hand: gates that follow ids")
def test_it_counts_gates_and_tokens(model):
    row = question("q", "What is a module?", "a class of the module", meta={"task": "word"})
    ids = renderer(model).tokens(row).ids
    gates, even = len(gated_layers(model.module)), sum(i % 2 == 0 for i in ids)
    (record,) = score(model, row)
    assert record["tokens"] == len(ids)
    assert record["value"] == pytest.approx((even * (gates - 1) + (len(ids) - even)) / (gates * len(ids)))


@pytest.mark.oracle(clause="each token by its segment", against="worked by hand")
def test_each_token_is_held_to_the_adapter_of_its_segment(model):
    row = question("q", "What is a module?", "a class of the module", meta={"segments": [["word", "What is"],
                                                                                         ["thing", " class of the"]]})
    ids, gates = renderer(model).tokens(row).ids, len(gated_layers(model.module))
    decode, hits, count = model.tokenizer.decode, 0.0, 0
    text = decode(ids)
    for label, part in ((1, "What is"), (0, " class of the")):
        start = text.index(part)
        for i, token in enumerate(ids):
            begin, end = len(decode(ids[:i])) if i else 0, len(decode(ids[:i + 1]))
            if begin < start + len(part) and end > start:
                agrees = (token % 2 == 0) == (label == 1)
                hits += ((gates - 1) if agrees else 1) / gates
                count += 1
    (record,) = score(model, row)
    assert record["tokens"] == count and record["value"] == pytest.approx(hits / count)


def test_rows_of_no_task_and_models_without_gates_have_no_value(model, pico):
    assert score(model, question("q", "What is a module?", "a class"))[0]["value"] is None
    assert score(load_base(pico), question("q", "What?", "a class", meta={"task": "word"}))[0]["value"] is None


def test_what_the_gates_do_not_know_is_refused(model):
    with pytest.raises(UserError, match="Row q is about the adapter 'other'; the model's are thing, word"):
        score(model, question("q", "What?", "a class", meta={"task": "other"}))
    with pytest.raises(UserError, match="its segment 'nowhere' does not stand in the row"):
        score(model, question("q", "What?", "a class", meta={"segments": [["word", "nowhere"]]}))
