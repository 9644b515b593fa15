"""inversion: clean messages are read to the last token, noisy ones as far as they were replaced."""

from __future__ import annotations

import pytest
import torch

from luthier.core.component import build
from luthier.core.files import read_lines
from luthier.core.rng import Rng
from luthier.engine.models import load_base
from luthier.engine.splitting import Privatizer, Split
from luthier.engine.subjects import Subject
from luthier.techniques.methods.split_and_privatize import _table
from luthier.techniques.privacy.inversion import by_classifier, by_nearest, by_network, sent
from tests.contracts.workbench import short_fit, training_data

TEXTS = [[1, 40, 77, 300, 40, 2], [1, 9, 10, 11, 2], [1, 500, 501, 77, 2]]


@pytest.mark.oracle(seed=2, clause=5, against="the texts themselves")
@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_clean_messages_of_the_embedding_are_read_whole(bases, architecture):
    model = load_base(bases[architecture])
    split = Split(model, 0)
    assert by_nearest(split, [sent(split, ids) for ids in TEXTS]) == TEXTS


@pytest.mark.oracle(seed=2, clause=5, against="the texts themselves")
def test_of_twins_one_is_named_and_of_replaced_tokens_the_replacement(pico_encoder):
    model = load_base(pico_encoder)
    with torch.no_grad():
        model.module.get_input_embeddings().weight[500] = model.module.get_input_embeddings().weight[300]
    split = Split(model, 0)
    named = by_nearest(split, [sent(split, ids) for ids in TEXTS])
    assert named[0] == TEXTS[0] and named[2][1] in (300, 500)
    table, special, _ = _table(model)
    split.privatizer = Privatizer(table, special, 20.0, Rng(1))
    replaced = [split.privatizer.transform(ids) for ids in TEXTS]
    assert replaced != TEXTS
    twins = {500: 300}
    assert [[twins.get(i, i) for i in row] for row in by_nearest(split, [sent(split, ids) for ids in TEXTS])] == [
        [twins.get(i, i) for i in row] for row in replaced]


def test_a_trained_attacker_reads_behind_a_layer(pico_encoder):
    model = load_base(pico_encoder)
    split = Split(model, 1)
    rng = Rng(3)("shadow")
    shadow = [[1, *rng.integers(30, 60, 12).tolist(), 2] for _ in range(60)]
    secret = [[1, *rng.integers(30, 60, 12).tolist(), 2] for _ in range(5)]
    named = by_classifier(split, shadow, [sent(split, ids) for ids in secret], 150, 0)
    hits = [a == b for row, ids in zip(named, secret, strict=True) for a, b in zip(row, ids, strict=True)]
    assert sum(hits) / len(hits) > 0.8


def test_a_network_tells_what_is_there_to_be_told():
    draw = torch.Generator().manual_seed(0)
    seen = torch.randn(80, 6, generator=draw)
    wanted = (seen[:, 0] * seen[:, 1] > 0).long()
    others = torch.randn(80, 6, generator=draw)
    said = by_network(seen, wanted.tolist(), others, 2, 300, 1)
    assert (torch.tensor(said) == (others[:, 0] * others[:, 1] > 0)).float().mean() > 0.7


def test_findings_of_a_run(pico_encoder, make_ctx, engine):
    inputs = {"base": pico_encoder, "examples": training_data(make_ctx("examples"), 12)}
    made = short_fit("encoder", length={"steps": 1}, method={"use": "split-and-privatize", "change": 0.6, "cti": "protect",
                                                             "cti_top": 0.3}).run(inputs, make_ctx("fit", inputs))
    ctx = make_ctx("audit")
    subject = Subject(engine, pico_encoder, made, None, inputs["examples"])
    audit = build("audit", "inversion:rows=12")
    subject.held_out = lambda: subject.rows("train")
    found = {f.name.rpartition("/")[2]: f for f in audit.measure(ctx, subject)}
    assert set(found) == {"all", "protected", "others"}
    lines = read_lines(ctx.folder / "tokens.jsonl")
    # What is left in place is read; what is replaced is not.
    border = subject.model("after").border
    render = subject.render("after")
    original = [i for e in subject.rows("train") for i in render.text(e).ids]
    sent_on = [i for e in subject.rows("train") for i in border.privatizer.transform(render.text(e).ids)]
    special = border.privatizer.special
    kept = [a == b for a, b in zip(original, sent_on, strict=True) if a not in special]
    assert found["all"].right == pytest.approx(sum(kept) / len(kept)) and len(lines) == len(kept)
    assert found["protected"].right == 1.0 and found["others"].right < 0.6
    assert found["all"].extra["privacy"] == pytest.approx(1 - found["all"].right)
    bare = Subject(engine, pico_encoder, None, None, inputs["examples"])
    (none,) = audit.measure(ctx, bare)
    assert none.verdict == "not applicable" and "not split" in none.detail


def test_an_attribute_is_inferred_from_messages(pico_encoder, make_ctx, engine):
    from dataclasses import replace

    inputs = {"base": pico_encoder, "examples": training_data(make_ctx("examples"), 24)}
    made = short_fit("encoder", length={"steps": 1}, method={"use": "split-and-privatize", "change": None}).run(
        inputs, make_ctx("fit", inputs))
    subject = Subject(engine, pico_encoder, made, None, inputs["examples"])
    rows = [replace(e, meta={**e.meta, "word": "module" in e.part("question")}) for e in subject.rows("train")]
    subject.rows = lambda subset: rows
    subject.held_out = lambda: rows
    found = build("audit", "inversion:attribute=word,rows=24").measure(make_ctx("audit"), subject)
    assert found[-1].name == "audit/inversion/attribute" and found[-1].right == 1.0 > found[-1].left
