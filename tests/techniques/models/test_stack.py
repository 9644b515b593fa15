"""stack: every weight of a model is in one part, and a split at a layer leaves none out."""

from __future__ import annotations

import pytest

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.engine.models import load_base


@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_every_weight_is_in_one_part(bases, architecture):
    model = load_base(bases[architecture])
    body = build("body", "stack")
    parts = body.parts(model)
    held = [id(p) for part in parts.values() for p in part.parameters()]
    assert len(held) == len(set(held)) and set(held) == {id(p) for p in model.module.parameters()}
    assert len(parts["layers"]) == 2
    for layer in (0, 1, 2):
        below, above = body.split(model, layer)
        sides = [{id(p) for p in side.parameters()} for side in (below, above)]
        assert not sides[0] & sides[1] and sides[0] | sides[1] == set(held)
        assert len(list(below.children())) == 1 + layer


def test_what_has_no_one_stack_is_refused(bases):
    body = build("body", "stack")
    with pytest.raises(UserError, match="the layers of pico-encoder-decoder are not one stack"):
        body.parts(load_base(bases["encoder-decoder"]))
    with pytest.raises(UserError, match="there is no layer 3 to split at; legal: 0 to 2"):
        body.split(load_base(bases["encoder"]), 3)
    method = build("method", {"use": "parts", "body": "stack", "train": ["rest"]})
    model = method.prepare(load_base(bases["decoder"]), None)
    assert {n.rsplit(".", 2)[-2] for n, p in model.module.named_parameters() if p.requires_grad} == {"norm", "lm_head"}
