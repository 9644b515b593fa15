"""kl-to-reference against torch.distributions, its zero, and what it moves."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from luthier.core.component import build
from luthier.engine.forward import Forward
from luthier.engine.models import load_base
from tests.contracts.workbench import encode, examples, make_batch


def moved(base, by=0.1):
    model = load_base(base)
    with torch.no_grad():
        for i, p in enumerate(model.module.parameters()):
            p.add_(by * torch.sin(torch.arange(p.numel()).view(p.shape) + i))
    return model


def scores(model, batch):
    """[learned, vocabulary] scores of the whole model, row by row without padding."""
    found = []
    for ids, mask, targets in zip(batch.ids, batch.mask, batch.targets, strict=True):
        n = int(mask.sum())
        with torch.no_grad():
            logits = model.module(input_ids=ids[None, :n], attention_mask=mask[None, :n]).logits[0]
        found.append(logits[:-1][targets[1:n]].double())
    return torch.cat(found)


@pytest.mark.oracle(clause="KL(reference || policy) at the learned positions", against="torch.distributions")
def test_it_is_the_divergence_of_the_reference_from_the_policy(pico):
    policy, reference = moved(pico), load_base(pico)
    objective = build("objective", "kl-to-reference")
    batch = make_batch(encode(objective, policy, examples(5)), policy)
    run = Forward({"policy": policy, "reference": reference})
    found = objective.loss(run, batch)["kl"].item()
    ours, theirs = (Categorical(logits=scores(m, batch["input"])) for m in (policy, reference))
    right, turned = (float(kl_divergence(a, b).sum()) for a, b in ((theirs, ours), (ours, theirs)))
    assert found == pytest.approx(right, rel=1e-3) and abs(right - turned) > 0.01 * right, "the sides are told apart"
    assert objective.count(batch) == {"kl": len(scores(policy, batch["input"]))}
    assert run.take()["kl"] == pytest.approx(right / objective.count(batch)["kl"], rel=1e-3)


@pytest.mark.oracle(clause="no distance and no pull at the reference", against="zero")
def test_at_the_reference_nothing_pulls(pico):
    policy, reference = load_base(pico), load_base(pico)
    policy.module.requires_grad_(True)
    objective = build("objective", "kl-to-reference")
    batch = make_batch(encode(objective, policy, examples(4)), policy)
    loss = objective.loss(Forward({"policy": policy, "reference": reference}), batch)["kl"]
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-4)
    assert max(float(p.grad.abs().max()) for p in policy.module.parameters() if p.grad is not None) < 1e-4


def test_the_answers_token_itself_is_not_learned(pico):
    """Rows that differ only in the last learned token are compared at the same states, so the loss is the same."""
    policy, reference = moved(pico), load_base(pico)
    objective = build("objective", "kl-to-reference")
    features = encode(objective, policy, examples(1))
    ids = list(features[0]["input"].ids)
    other = [{"input": type(features[0]["input"])(ids[:-1] + [5 if ids[-1] != 5 else 6], features[0]["input"].targets)}]
    run = Forward({"policy": policy, "reference": reference})
    losses = [objective.loss(run, make_batch(f, policy))["kl"].item() for f in (features, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
