"""What gates are taught, by hand."""

from __future__ import annotations

import pytest
import torch

from luthier.core.component import build
from luthier.engine.models import load_base
from luthier.techniques.methods._gated import gated_layers
from tests.contracts import loras
from tests.contracts.workbench import encode, examples, make_batch, make_loop


@pytest.mark.oracle(clause="gate loss equals hand cross-entropy", against="closed form, one gate after the other")
def test_the_gates_loss_is_the_mean_over_gates_and_real_tokens(pico, make_ctx):
    objective = build("objective", "gate-supervised:beta=7")
    torch.manual_seed(0)
    model = build("method", {"use": "meteora", "adapters": loras.two()}).prepare(load_base(pico), None)
    features = encode(objective, model, examples(6))
    heard = {}
    for name, layer in gated_layers(model.module).items():
        layer.gate.register_forward_hook(lambda gate, given, out, name=name: heard.__setitem__(name, (given[0], gate.weight)))
    total = tokens = lm = learned = 0.0
    for row in features:
        model.module.eval()
        with torch.no_grad():
            scores = model.module(input_ids=torch.tensor([row["input"].ids])).logits[0].log_softmax(-1)
        lm -= sum(float(scores[t, i]) for t, i in enumerate(row["input"].ids[1:]))
        learned += len(row["input"].ids) - 1
        for given, weight in heard.values():
            total -= float((given.view(-1, given.shape[-1]) @ weight.T).log_softmax(-1)[:, row["route"]].sum()) / len(heard)
        tokens += len(row["input"].ids)
    loop = make_loop(model, objective, features, make_ctx("fit"), batch_rows=6)
    found = loop.closure([make_batch(features, model)])
    assert found["gate"] == pytest.approx(7 * total / tokens, rel=1e-5)
    assert found["nll"] == pytest.approx(lm / learned, rel=1e-5)
