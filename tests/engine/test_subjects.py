"""What an audit is handed: models by role, asked alike, kept in the journal, never trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from luthier.core.artifact import write_examples
from luthier.core.errors import UserError
from luthier.engine.subjects import Subject, parted
from tests.contracts.workbench import examples, short_fit, training_data


@pytest.fixture
def tuned(make_ctx, pico):
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    return inputs | {"tuned": short_fit("decoder").run(inputs, make_ctx("fit", inputs))}


def test_roles_are_two_models_asked_with_one_template(tuned, engine, make_ctx):
    subject, ctx = Subject.of(tuned, engine), make_ctx("audit")
    assert subject.kind == "run" and not subject.same and not subject.labels and not subject.encoder
    rows = examples(3)
    before, after = (subject.answer_scores(ctx, role, rows) for role in ("before", "after"))
    assert [len(r) for r in before] == [len(r) for r in after] and before != after
    assert sum(map(sum, after)) > sum(map(sum, before)), "it was trained on these rows"
    assert [subject.render(r).prompt(rows[0]) for r in ("before", "after")] == 2 * [subject.render("after").prompt(rows[0])]
    for role in ("before", "after"):
        assert not any(p.requires_grad for p in subject.model(role).module.parameters())


def test_scores_are_the_models_own_and_come_from_the_journal_the_second_time(tuned, engine, make_ctx, monkeypatch):
    subject, ctx, rows = Subject.of(tuned, engine), make_ctx("audit"), examples(2)
    found = subject.answer_scores(ctx, "before", rows)
    model, (prompt, answer) = subject.model("before"), parted(subject.render("before").whole(rows[0]))
    with torch.no_grad():
        scores = model.module(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    assert found[0] == pytest.approx([float(scores[len(prompt) + i - 1, t]) for i, t in enumerate(answer)], abs=1e-4)
    monkeypatch.setattr("luthier.engine.scoring.score_tokens", None)
    assert subject.answer_scores(make_ctx("audit"), "before", rows) == found


def test_the_base_against_itself_is_the_same(pico, engine, make_ctx):
    subject, ctx = Subject.of({"base": pico, "tuned": pico}, engine), make_ctx("audit")
    assert subject.kind == "pair" and subject.same
    said = [subject.answers(ctx, role, examples(2), "sample:max_new_tokens=4", repeats=2) for role in ("before", "after")]
    assert said[0] == said[1] and [len(s) for s in said[0]] == [2, 2]


def test_data_alone_has_rows_and_no_models(make_ctx, engine):
    rows = write_examples(make_ctx("rows").folder, {"all": examples(4)})
    subject = Subject.of({"examples": rows}, engine)
    assert subject.kind == "data" and len(subject.rows("train")) == 4 and not subject.held_out()
    with pytest.raises(UserError, match="There is no model here"):
        subject.model("after")


def test_models_with_other_chat_templates_are_not_compared(pico, engine, tmp_path, monkeypatch):
    other = replace(pico, identity="other", meta={**pico.meta, "name": "other"})
    real = type(engine).tokenizer

    def tokenizer(self, base):
        found = real(self, base)
        found.chat_template = "{{ messages }}" if base is other else None
        return found

    monkeypatch.setattr(type(engine), "tokenizer", tokenizer)
    with pytest.raises(UserError, match="chat templates of the two models differ"):
        Subject.of({"base": pico, "tuned": other}, engine)


def test_the_last_answer_is_parted_from_what_precedes_it():
    from luthier.core.kinds import Tokens

    row = Tokens([1, 2, 3, 4, 5, 6], [False, True, False, True, True, False])
    assert parted(row) == ([1, 2, 3], [4, 5])
    assert parted(Tokens([7, 8], [False, True, True], [0, 5, 6])) == ([7, 8], [5, 6])
