"""The contract of every method, on every architecture: it refuses by name, or it learns, moves what it said, is saved
whole and goes on exactly where it was stopped. Regularizers share the lifecycle and the suite."""

from __future__ import annotations

import pytest
import torch

from luthier.core.errors import UserError
from luthier.engine.models import add_tuned
from luthier.engine.steps.fit import Fit
from tests.contracts import dummies
from tests.contracts.workbench import example_of, shipped, short_fit, training_data, tuned_logits

ARCHITECTURES = ("decoder", "encoder", "encoder-decoder")
# Methods of models that read no tokens; their own tests train, save and load them: tests/techniques/models/test_petl_ast.py.
ELSEWHERE = {"deep-prompts"}


@pytest.fixture(scope="module")
def attempts():
    """What came of one method on one architecture, computed once for all clauses."""
    return {}


@pytest.fixture
def trained(request, attempts, bases, make_ctx):
    """(base, artifact, losses, what the spy saw) of a short training, or the error that refused it."""
    def train(part, architecture: str, field: str = "method"):
        key = (part.identity, architecture)
        if key not in attempts:
            attempts[key] = _train(part, architecture, field, bases[architecture], make_ctx)
        return attempts[key]

    return train


def _train(part, architecture, field, base, make_ctx):
    parts = {"method": part if field == "method" else "full"}
    regularizers = (*((part,) if field == "regularizer" else ()), "dummy-spy")
    # The loss without dropout on the very rows that are trained on, after every step.
    fit = short_fit(architecture, regularizers=regularizers, streams={"validation": "examples.train"}, **parts)
    inputs = {"base": base, "examples": training_data(make_ctx(f"{architecture}/examples"))}
    ctx = make_ctx(f"{architecture}/fit", inputs)
    try:
        artifact = fit.run(inputs, ctx)
    except UserError as error:
        return error
    receipts = fit.receipts(inputs, artifact, ctx)
    losses = [r["dev_loss"] for r in _curve(artifact)]
    return base, artifact, losses, dict(dummies.SPIED), receipts


def _curve(artifact):
    from luthier.core.files import read_lines

    return read_lines(artifact.folder / "curve.jsonl")


on_each = pytest.mark.parametrize("architecture", ARCHITECTURES)
every = pytest.mark.parametrize("row", shipped("method"))


def or_skip(result):
    if isinstance(result, UserError):
        pytest.skip(str(result)[:120])
    return result


@every
def test_it_works_on_some_architecture_and_refuses_the_others_by_name(row, trained):
    refused = []
    for architecture in ARCHITECTURES:
        result = trained(example_of(row), architecture)
        if isinstance(result, UserError):
            refused.append(architecture)
            assert row["name"].casefold() in str(result).casefold() and "." in str(result), str(result)
    assert len(refused) < len(ARCHITECTURES) or row["name"] in ELSEWHERE


@on_each
@every
def test_a_few_steps_lower_the_loss(row, architecture, trained):
    _base, _artifact, losses, *_ = or_skip(trained(example_of(row), architecture))
    assert all(loss == loss for loss in losses)
    assert len(losses) == 12 and losses[-1] < losses[0] - 1e-3, losses


@on_each
@every
def test_saved_and_loaded_gives_the_same_logits(row, architecture, trained, engine):
    base, artifact, _losses, seen, receipts = or_skip(trained(example_of(row), architecture))
    loaded = tuned_logits(add_tuned(engine.fresh(base), artifact))
    assert (loaded - seen["logits"]).abs().max() <= 1e-5
    assert [r.name for r in receipts if r.verdict == "differs"] == []
    assert any((artifact.folder / "licenses").iterdir())


@on_each
@every
def test_only_the_trained_weights_move_and_all_of_them(row, architecture, trained):
    *_, seen, _receipts = or_skip(trained(example_of(row), architecture))
    # Of a method that moves chosen entries, a tensor without any stays.
    stays = seen["trained"] - seen["chosen"] if seen["chosen"] else set()
    reached = {n for n, largest in seen["largest"].items() if largest > 1e-7 and (n not in stays or ":" in n)} - seen["cut"]
    # A trained weight that has another shape in the end (a rank that was chosen) has moved, too.
    assert seen["moved"] | seen["cut"] & seen["trained"]
    assert seen["moved"] <= seen["trained"], sorted(seen["moved"] - seen["trained"])[:3]
    assert reached <= seen["moved"], sorted(reached - seen["moved"])[:3]


@on_each
@every
def test_a_stopped_training_goes_on_exactly(row, architecture, trained, bases, make_ctx):
    _base, artifact, *_ = or_skip(trained(example_of(row), architecture))
    assert resumed(make_ctx, bases[architecture], architecture, method=example_of(row)).identity == artifact.identity


def resumed(make_ctx, base, architecture, **parts):
    """The same training, ended by an error at step 3 and run again."""
    inputs = {"base": base, "examples": training_data(make_ctx("again/examples"))}
    extra = parts.pop("regularizers", ())
    fit: Fit = short_fit(architecture, regularizers=(*extra, "dummy-spy", "dummy-stop"), checkpoint_seconds=0, **parts)
    with pytest.raises(dummies.Killed):
        fit.run(inputs, make_ctx("again/fit", inputs))
    stopped = make_ctx("again/fit", inputs)
    (stopped.folder / "stopped-once").rename(stopped.folder.parent / "stopped")
    fit = short_fit(architecture, regularizers=(*extra, "dummy-spy", "dummy-stop:at=99"), checkpoint_seconds=0, **parts)
    return fit.run(inputs, stopped)


def test_a_method_with_nothing_to_train_is_refused_by_name(trained):
    from luthier.core.component import build

    error = trained(build("method", "bitfit"), "decoder")
    assert isinstance(error, UserError)
    assert "bitfit has nothing to train: pico has no bias terms" in str(error)


# --- regularizers --------------------------------------------------------------------------------------------------

regularized = pytest.mark.parametrize("row", shipped("regularizer"))


def added_to_full(row, architecture, trained):
    """What came of a short full training with the regularizer, or the reason why this architecture is refused."""
    return trained(example_of(row), architecture, "regularizer")


@regularized
def test_a_regularizer_works_on_some_architecture_and_refuses_the_others_by_name(row, trained):
    results = [added_to_full(row, architecture, trained) for architecture in ARCHITECTURES]
    refused = [r for r in results if isinstance(r, UserError)]
    assert len(refused) < len(ARCHITECTURES) and all(row["name"] in str(r) for r in refused), refused


@on_each
@regularized
def test_the_loss_still_falls_and_what_is_saved_is_plain(row, architecture, trained, engine):
    base, artifact, losses, seen, receipts = or_skip(added_to_full(row, architecture, trained))
    assert losses[-1] < losses[0] - 1e-3, losses
    loaded = tuned_logits(add_tuned(engine.fresh(base), artifact))
    assert (loaded - seen["logits"]).abs().max() <= 1e-5
    assert [r.name for r in receipts if r.verdict == "differs"] == []
    assert seen["moved"] and seen["moved"] <= seen["trained"]


@on_each
@regularized
def test_a_stopped_training_with_a_regularizer_goes_on_exactly(row, architecture, trained, bases, make_ctx):
    _base, artifact, *_ = or_skip(added_to_full(row, architecture, trained))
    again = resumed(make_ctx, bases[architecture], architecture, method="full", regularizers=(example_of(row),))
    assert again.identity == artifact.identity


@on_each
@every
def test_a_learning_rate_is_recommended_with_its_source(row, architecture, bases, engine):
    from luthier.engine.models import load_base

    for name, default in example_of(row).defaults(load_base(bases[architecture]), 100).items():
        assert name in Fit.model_fields and default.source.strip() and 0 < default.value < 1


def test_the_suite_sees_a_method_that_moves_what_it_should_not(make_ctx, pico):
    """A mutant: a weight outside the trained set is nudged; the spy must report it."""
    def nudge(hook, ctx):
        with torch.no_grad():
            hook.model.module.get_input_embeddings().weight[0, 0] += 1e-6

    dummies.DummyProbe.call = staticmethod(nudge)
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    short_fit("decoder", regularizers=("dummy-spy", "dummy-probe")).run(inputs, make_ctx("fit", inputs))
    assert dummies.SPIED["moved"] - dummies.SPIED["trained"]
