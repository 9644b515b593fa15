"""The contract of every objective: counts known before the forward, sums that do not depend on how rows are batched,
rows that can't be used named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from luthier.core.component import build
from luthier.core.kinds import DroppedRow, Tokens
from luthier.core.rng import Rng
from luthier.engine.forward import Forward
from luthier.engine.models import load_base
from luthier.engine.rendering import Render, renderer
from tests.contracts import dummies, loras  # noqa: F401  (registers the dummies)
from tests.contracts.workbench import encode, example_of, examples, labelled, make_batch, make_loop, shipped

# Objectives that learn one number a text.
RATING = {"span-scorer"}
# Objectives that are 0 where the model is its reference: it is moved away first.
HELD = {"kl-to-reference"}
# Objectives that teach gates.
GATED = {"gate-supervised"}
# Objectives that pull the keys of a pool.
POOLED = {"l2m"}
# Objectives that tell options apart: their rows have two, and the number of the right one.
CHOOSING = {"choose"}


def given(objective, count: int) -> list:
    """Rows that the objective learns from."""
    if objective.info.name not in CHOOSING:
        return examples(count)
    return [replace(e, label=n % 2, meta={**e.meta, "options": ["a thing", "a word indeed"]})
            for n, e in enumerate(examples(count))]


every = pytest.mark.parametrize("row", shipped("objective"))


def settings(objective, bases) -> dict:
    """A trainable model and encoded rows for each architecture that the objective declares."""
    found = {}
    for architecture in objective.architectures:
        model = load_base(bases[architecture])
        model.module.requires_grad_(True)
        if objective.needs_head:
            torch.manual_seed(0)
            names = [] if objective.learns_numbers else ["thing", "word"]
            model.labels["task"] = names
            model.heads["task"] = build("head", "linear:dropout=0").build(model, names)
        elif objective.info.name in RATING:
            torch.manual_seed(0)
            model.heads["task"] = build("head", "linear:dropout=0").build(model, [])
        elif objective.info.name in HELD:
            with torch.no_grad():
                for i, p in enumerate(model.module.parameters()):
                    p.add_(0.1 * torch.sin(torch.arange(p.numel()).view(p.shape) + i))
        elif objective.info.name in GATED:
            torch.manual_seed(0)
            model = build("method", {"use": "meteora", "adapters": loras.two()}).prepare(model, None)
        elif objective.info.name in POOLED:
            torch.manual_seed(0)
            model = build("method", "l2m:pool_size=3").prepare(model, None)
        features = encode(objective, model, given(objective, 8))
        assert features, "no example row could be encoded: the suite's rows lack what this objective learns from"
        found[architecture] = (model, features)
    return found


def forward(model, objective, base) -> Forward:
    run = Forward({"policy": model, **{role: load_base(base) for role in objective.roles}})
    run.task = "task"
    return run


@every
def test_parts_counts_and_losses_have_the_same_names(row, bases):
    objective = example_of(row)
    assert objective.parts and set(objective.parts.values()) <= {"additive", "coupled"}
    assert set(objective.coefficients()) <= set(objective.parts)
    for architecture, (model, features) in settings(objective, bases).items():
        batch = make_batch(features, model)
        losses = objective.loss(forward(model, objective, bases[architecture]), batch)
        assert set(losses) == set(objective.count(batch)) <= set(objective.parts)
        assert all(part.ndim == 0 and torch.isfinite(part) for part in losses.values())


@every
def test_counts_before_the_forward_add_up(row, bases):
    objective = example_of(row)
    for model, features in settings(objective, bases).values():
        whole = objective.count(make_batch(features, model))
        singles = [objective.count(make_batch([f], model)) for f in features]
        for name in [n for n in whole if objective.parts[n] == "additive"]:
            assert whole[name] == sum(s[name] for s in singles) > 0


@every
def test_the_count_of_a_token_loss_is_the_number_of_learned_tokens(row, bases):
    objective = example_of(row)
    for model, features in settings(objective, bases).values():
        sequences = [f for f in features if isinstance(f.get("input"), Tokens)]
        learned = sum(sum(f["input"].targets) for f in sequences)
        units = learned if learned else len(features)
        if "nll" in objective.parts:
            assert objective.count(make_batch(features, model))["nll"] == units


@every
def test_one_batch_of_n_is_n_batches_of_one(row, bases, make_ctx):
    objective = example_of(row)
    additive = all(kind == "additive" for kind in objective.parts.values())
    for architecture, (model, features) in settings(objective, bases).items():
        if not additive:
            continue
        losses, gradients = zip(*(self_gradients(model, objective, features, size, bases[architecture], make_ctx)
                                  for size in (len(features), 1, 3)), strict=True)
        for other in (1, 2):
            assert losses[0] == pytest.approx(losses[other], abs=1e-5)
            worst = max(float((a - b).abs().max()) for a, b in zip(gradients[0], gradients[other], strict=True))
            assert worst <= 1e-5, (architecture, worst)


@every
@pytest.mark.parametrize("limits", [{"micro_rows": 1}, {"micro_rows": 3}, {"micro_tokens": 1}], ids=str)
def test_micro_batches_as_the_loop_cuts_them_change_no_gradient(row, bases, make_ctx, limits):
    objective = example_of(row)
    if "coupled" in objective.parts.values():
        pytest.skip("rows of a coupled part stay together")
    for architecture, (model, features) in settings(objective, bases).items():
        found = []
        for plan in ({"micro_rows": len(features)}, limits):
            roles = {role: load_base(bases[architecture]) for role in objective.roles}
            loop = make_loop(model, objective, features, make_ctx(f"{architecture}{plan}/loop"), roles=roles,
                             batch_rows=len(features), **plan)
            batches = loop.batch(loop.tasks[0], 0)
            values = loop.closure(batches, loop.tasks[0])
            found.append((len(batches), sum(values.values()), loop.masters.taken()))
        (few, loss, gradients), (many, other, cut) = found
        assert many > few and loss == pytest.approx(other, abs=1e-5)
        for a, b in zip(gradients, cut, strict=True):
            assert (a is None) == (b is None) and (a is None or float((a - b).abs().max()) <= 1e-5)


def self_gradients(model, objective, features, size, base, make_ctx):
    """Loss and gradients of all rows, `size` rows at a time."""
    model.module.zero_grad(set_to_none=True)
    roles = {role: load_base(base) for role in objective.roles}
    loop = make_loop(model, objective, features, make_ctx(f"loop{size}"), roles=roles)
    batches = [make_batch(features[i:i + size], model) for i in range(0, len(features), size)]
    values = loop.closure(batches, loop.tasks[0])
    trained = [p for p in model.module.parameters() if p.requires_grad]
    kept = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in trained]
    model.module.zero_grad(set_to_none=True)
    return sum(values.values()), kept


@every
def test_a_mean_over_micro_batches_would_be_seen(row, bases, make_ctx):
    """A mutant: dividing each micro-batch by its own count must give other gradients where lengths differ."""
    objective = example_of(row)
    if "nll" not in objective.parts or objective.needs_head:
        pytest.skip("rows of a label task all count one")
    architecture, (model, features) = next((a, s) for a, s in settings(objective, bases).items() if a != "encoder")
    counts = [objective.count(make_batch([f], model))["nll"] for f in features]
    assert len(set(counts)) > 1
    _, right = self_gradients(model, objective, features, 1, bases[architecture], make_ctx)
    wrong = [torch.zeros_like(g) for g in right]
    for feature in features:
        _, one = self_gradients(model, objective, [feature], 1, bases[architecture], make_ctx)
        wrong = [w + g / len(features) for w, g in zip(wrong, one, strict=True)]
    assert max(float((a - b).abs().max()) for a, b in zip(right, wrong, strict=True)) > 1e-4


@every
def test_a_row_that_is_too_long_is_dropped_by_name(row, bases):
    objective = example_of(row)
    for architecture in objective.architectures:
        model = load_base(bases[architecture])
        render = Render(model.tokenizer, model.architecture, 8, labels=["thing"])
        for example in given(objective, 2) if objective.info.name in CHOOSING else labelled(examples(2), "thing"):
            with pytest.raises(DroppedRow) as caught:
                objective.encode(example, render, Rng(0).within(f"encode/{example.id}"))
            assert caught.value.dropped.id == example.id
            assert caught.value.dropped.reason == "too long" and "at most" in caught.value.dropped.detail


@every
def test_encoding_is_a_function_of_the_row(row, bases):
    objective = example_of(row)
    model = load_base(bases[objective.architectures[0]])
    render = renderer(model, 256)
    render.labels = render.routes = ["thing", "word"]
    for example in given(objective, 3):
        first, second = (objective.encode(example, render, Rng(0).within(f"encode/{example.id}")) for _ in range(2))
        assert first == second


@every
def test_the_loss_falls_where_it_is_trained(row, bases, make_ctx):
    objective = example_of(row)
    for architecture, (model, features) in settings(objective, bases).items():
        roles = {role: load_base(bases[architecture]) for role in objective.roles}
        loop = make_loop(model, objective, features, make_ctx(architecture), roles=roles, steps=5,
                         batch_rows=len(features), micro_rows=len(features), rate=3e-3)
        loop.train()
        assert loop.curve[-1]["loss"] < loop.curve[0]["loss"]
