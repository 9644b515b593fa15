"""The contracts of decoders, optimizers, schedules, heads, metrics, data steps, retrievers and steps."""

from __future__ import annotations

import copy
import inspect
import math

import pytest
import torch
from torch import nn

from luthier.core.artifact import KINDS
from luthier.core.errors import UserError
from luthier.core.example import Dropped
from luthier.core.kinds import Prediction
from luthier.core.rng import Rng
from luthier.engine import generation, padded, scheduling
from luthier.engine.rendering import renderer
from tests.contracts.workbench import (
    class_of,
    example_of,
    examples,
    passages,
    rows_for,
    same_or_nan,
    shipped,
    stream,
)

# --- decoders ------------------------------------------------------------------------------------------------------

decoders = pytest.mark.parametrize("row", shipped("decoder"))


@decoders
@pytest.mark.parametrize("architecture", ["decoder", "encoder-decoder"])
def test_an_item_has_the_same_answer_in_every_batch(row, architecture, engine, bases, monkeypatch):
    decoder = example_of(row, max_new_tokens=6)
    model = engine.load(bases[architecture])
    speakers = {role: model for role in ("policy", *decoder.roles)}
    prompts = [renderer(model).prompt(e) for e in examples(5)]
    whole = generation.generate(speakers, prompts, decoder, Rng(3))
    grouped, made = padded.batches_of, scheduling.Scheduler
    for rows in (1, 2):
        monkeypatch.setattr(padded, "batches_of", lambda lengths, rows=rows: grouped(lengths, rows=rows))
        monkeypatch.setattr(generation, "Scheduler", lambda *given, rows=rows: made(*given, rows=rows))
        assert generation.generate(speakers, prompts, decoder, Rng(3)) == whole
    assert all(g.tokens <= 6 for g in whole)


@decoders
def test_scores_keep_their_shape(row):
    decoder = example_of(row)
    states = {role: torch.randn(3, 11, generator=torch.manual_seed(0)) for role in ("policy", *decoder.roles)}
    scores = decoder.scores(states)
    assert scores.shape == (3, 11) and not torch.isnan(scores).any()
    chosen = decoder.choose(scores, [lambda: 0.3] * 3)
    assert chosen.shape == (3,) and ((chosen >= 0) & (chosen < 11)).all()


# --- optimizers and schedules --------------------------------------------------------------------------------------

@pytest.mark.parametrize("row", shipped("optimizer"))
def test_an_optimizer_goes_downhill_and_its_state_goes_on(row):
    def run(steps: int, optimizer, weight) -> torch.Tensor:
        for _ in range(steps):
            optimizer.zero_grad()
            (weight - 1).square().sum().backward()
            optimizer.step()
        return weight.detach().clone()

    part = example_of(row)
    weight = nn.Parameter(torch.zeros(4, 3))
    optimizer = part.make([{"params": [weight]}], 0.05)
    assert optimizer.param_groups[0]["lr"] == 0.05
    start = float((weight.detach() - 1).square().sum())
    kept = run(5, optimizer, weight)
    assert float((kept - 1).square().sum()) < start
    again = nn.Parameter(kept.clone())
    other = part.make([{"params": [again]}], 0.05)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert torch.equal(run(3, optimizer, weight), run(3, other, again))


@pytest.mark.parametrize("row", shipped("schedule"))
@pytest.mark.parametrize("steps", [1, 2, 7, 100, 1001])
def test_a_schedule_stays_within_its_bounds(row, steps):
    factors = [example_of(row).factor(step, steps) for step in range(steps)]
    assert all(math.isfinite(f) and 0 <= f <= 1 for f in factors)
    assert max(factors) > 0 and factors[0] > 0, "the first step must move something"
    assert factors == [example_of(row).factor(step, steps) for step in range(steps)]


# --- heads ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("row", shipped("head"))
def test_a_head_that_answers_nothing_gives_a_number_a_state_and_learns(row, engine, pico):
    part, body = example_of(row), engine.load(pico)
    if part.answers:
        pytest.skip("it answers: labels are asked of it below")
    module = part.build(body, [])
    features, wanted = torch.randn(6, body.width, generator=torch.Generator().manual_seed(0)), torch.arange(6.0)[:, None]
    optimizer, losses = torch.optim.Adam(module.parameters(), 0.05), []
    for _ in range(20):
        loss = (part.predict(module(features)) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert module(features).shape == (6, 1) and losses[-1] < losses[0]


@pytest.mark.parametrize("row", shipped("head"))
def test_a_head_maps_features_to_labels_and_learns(row, engine, bases):
    part, labels = example_of(row), ["a", "b", "c"]
    if not part.answers:
        pytest.skip("it is read in training alone")
    states = part.reads == "states"
    # What reads states may need the other side of its body.
    body = engine.load(bases["encoder-decoder" if states else "encoder"])
    torch.manual_seed(0)
    module = part.build(body, labels).eval()
    given = (torch.randn(6, 5, body.width), torch.ones(6, 5, dtype=torch.long)) if states else (torch.randn(6, body.width),)
    wanted = torch.tensor([0, 1, 2, 0, 1, 2])
    assert module(*given).shape == (6, 3)
    chances = part.predict(module(*given))
    assert chances.shape == (6, 3) and (chances >= 0).all() and torch.allclose(chances.sum(-1), torch.ones(6))
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(module(*given), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    again = part.build(body, labels)
    again.load_state_dict(module.state_dict())
    assert torch.equal(again.eval()(*given), module.eval()(*given))


# --- metrics -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("row", shipped("metric"))
def test_a_metric_leaves_one_record_a_row_and_reduces_them(row, engine, bases, make_ctx):
    metric, asked = example_of(row), examples(6)
    roles = {r: engine.load(bases["encoder" if r == "encoder" else "decoder"]) for r in metric.roles}
    ctx = make_ctx("metric", roles=roles)
    said = [Prediction(e.id, text=e.answer, label=str(e.label), probabilities={"thing": 0.5, "word": 0.5}, tokens=3,
                       passages=(f"p{i}",), log_probability=-1.0) for i, e in enumerate(asked)]
    try:
        records = metric.score(asked, said, ctx)
    except UserError as refused:
        assert row["name"] in str(refused) and "needs" in str(refused)
        pytest.skip(f"needs more than its rows: {refused}")
    assert [r["id"] for r in records] == [e.id for e in asked]
    assert all(r["value"] is None or math.isfinite(r["value"]) for r in records)
    assert same_or_nan(metric.reduce(records), metric.reduce(list(reversed(records))))
    assert math.isnan(metric.reduce([])) or metric.reduce([]) == 0


# --- data steps ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("row", shipped("data_step"))
def test_a_data_step_streams_rows_and_names_what_it_drops(row, engine, pico, pico_encoder, make_ctx):
    step = example_of(row)
    offered = {"retriever": lambda queries, k: [passages()[:k] for _ in queries], "passages": passages}
    roles = {role: offered.get(role) or engine.load(pico_encoder if role == "encoder" else pico)
             for role in step.roles}
    ctx = make_ctx("data", roles=roles)
    ctx.stream = stream
    given = rows_for(step, ctx.folder)
    try:
        made = list(step.apply(iter(given), ctx))
    except UserError as refused:
        assert row["name"] in str(refused) and "needs" in str(refused)
        pytest.skip(f"needs more than its rows: {refused}")
    dropped = [m for m in made if isinstance(m, Dropped)]
    assert inspect.isgenerator(step.apply(iter(given), ctx)), "rows must stream"
    assert all(d.id and d.reason.strip() for d in dropped)
    if is_filter(type(step)):
        names = {r.id for r in given}
        if step.gives == "more":
            assert names <= {m.id for m in made} and len({m.id for m in made}) == len(made), "rows in are rows out or dropped"
        elif step.gives == "same":
            assert len(made) == len(given), "rows in = rows out + dropped"
            assert {m.id for m in made} <= names
    again = make_ctx("again", roles=ctx.roles)
    again.stream, again.rng = stream, ctx.rng
    twice = list(step.apply(iter(given), again))
    assert [getattr(m, "id", None) for m in twice] == [getattr(m, "id", None) for m in made]


def is_filter(cls) -> bool:
    """Whether a step gives back rows of the type that it reads, or names them as dropped."""
    notes = cls.apply.__annotations__
    wanted, left = (str(notes[n]).removeprefix("Iterator[").removesuffix("]") for n in ("rows", "return"))
    return left in (f"{wanted} | Dropped", wanted)


# --- retrievers ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("row", shipped("retriever"))
def test_a_retriever_finds_passages_best_first(row, engine, bases, make_ctx):
    retriever, known = example_of(row), passages()
    ctx = make_ctx("index", roles={role: engine.load(bases["encoder"]) for role in retriever.roles})
    index = retriever.index(iter(known), ctx)
    assert index.kind == "index"
    found = retriever.search(index, [p.text for p in known], 3, ctx)
    assert len(found) == len(known)
    for query, hits in zip(known, found, strict=True):
        assert 1 <= len(hits) <= 3 and hits[0][0].id == query.id
        assert [s for _, s in hits] == sorted((s for _, s in hits), reverse=True)
        assert len({p.id for p, _ in hits}) == len(hits)
    assert found == retriever.search(index, [p.text for p in known], 3, ctx)


# --- steps ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("row", shipped("step"))
def test_a_step_reads_and_leaves_legal_kinds(row):
    cls = class_of(row)
    assert set(cls.output.split("|")) <= set(KINDS)
    for name, kind in cls.inputs.items():
        assert name and kind and set(kind.split("|")) <= set(KINDS), f"{row['name']}: {name}: {kind}"
    for name in cls.inputs:
        assert name.rstrip("?") not in cls.model_fields, f"{row['name']}: '{name}' is an input and a field"
