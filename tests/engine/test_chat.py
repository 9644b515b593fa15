"""Chat templates: what is learned is exactly what the assistant says and its terminator, on every template."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from types import SimpleNamespace

import pytest

from luthier.core.errors import UserError
from luthier.core.example import Example, question
from luthier.core.kinds import DroppedRow
from luthier.engine.chat import ChatTemplate, choose, joined
from luthier.engine.pico import _tokenizer
from luthier.engine.rendering import Prompting, Render, check_invariants
from tests.engine.chat_templates import CASES, COUNTING, ENDLESS, IM, PLAIN_TALK, SILENT, TALK, Case, said


def tokenizer_with(tokens):
    made = _tokenizer(encoder=False)
    made.add_special_tokens({"additional_special_tokens": list(tokens)})
    return made


def render_of(case: Case, **options) -> Render:
    tokenizer = tokenizer_with(case.tokens)
    return Render(tokenizer, "decoder", 4096, chat=ChatTemplate(tokenizer, case.jinja, "the template under test"), **options)


@pytest.fixture(scope="module")
def renders() -> dict[str, Render]:
    return {name: render_of(case) for name, case in CASES.items()}


def learned_texts(render: Render, tokens) -> list[str]:
    """The learned stretches of a row, decoded with their special tokens."""
    pairs = zip(tokens.ids, tokens.targets, strict=True)
    return [render.tokenizer.decode([i for i, _ in group]) for on, group in groupby(pairs, key=lambda p: p[1]) if on]


each = pytest.mark.parametrize("name", CASES)


@each
def test_the_template_passes_its_checks(name, renders):
    check_invariants(renders[name], "some-model")


@each
def test_exactly_what_the_assistant_says_is_learned_with_its_terminator(name, renders):
    case, render = CASES[name], renders[name]
    rows = render.pieces(case.talk)
    assert len(rows) == (len(case.learned) if case.alone else 1)
    found = [text for row in rows for text in learned_texts(render, render.tokens(row))]
    assert found == list(case.learned)


@each
def test_the_prompt_of_every_learned_turn_is_what_a_server_would_tokenize(name, renders):
    case, render = CASES[name], renders[name]
    for row in render.pieces(case.talk):
        tokens = render.tokens(row)
        for n, turn in enumerate(row.turns):
            if not turn.target:
                continue
            before = replace(row, turns=tuple(replace(t, target=False) for t in row.turns[:n]))
            prompt = render.prompt(before)
            assert tokens.ids[:len(prompt)] == prompt and tokens.targets[len(prompt)]
        assert tokens.targets[-1] and tokens.ids[-1] in render.stop_ids
        assert render.prompt(row) == tokens.ids[:len(render.prompt(row))]


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if c.generation])
def test_the_mask_is_that_of_transformers_where_the_template_has_markers(name, renders):
    """Oracle: `{% generation %}` markers and transformers' own mask, which share nothing with rendering twice."""
    case, render = CASES[name], renders[name]
    theirs = render.tokenizer.apply_chat_template(
        [m for m in messages(case.talk)], tools=list(case.talk.tools) or None, chat_template=case.jinja, tokenize=True,
        return_dict=True, return_assistant_tokens_mask=True)
    ours = render.tokens(case.talk)
    size = len(ours.ids)
    assert ours.ids == theirs["input_ids"][:size] and not any(theirs["assistant_masks"][size:])
    assert ours.targets == [bool(m) for m in theirs["assistant_masks"][:size]]


def messages(example: Example) -> list[dict]:
    """The conversation written out again, by hand."""
    made = []
    for turn in example.turns:
        calls = [{"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
                 for c in turn.calls]
        made.append({"role": turn.role, "content": turn.text, **turn.extra, **({"tool_calls": calls} if calls else {})})
    return made


@each
def test_every_stop_is_a_token_that_ends_a_learned_turn(name, renders):
    case, render = CASES[name], renders[name]
    ends = {render.tokens(row).ids[i] for row in render.pieces(case.talk) for i, t in enumerate(render.tokens(row).targets)
            if t and not (render.tokens(row).targets + [False])[i + 1]}
    assert ends <= render.stop_ids and render.stop_ids == ends | {render.stop_id}
    assert render.state()["stop_ids"] == sorted(render.stop_ids)


def test_a_skipped_turn_is_seen(renders):
    """A mutant: with one turn fewer in the mask the learned texts are others."""
    case, render = CASES["chatml"], renders["chatml"]
    turns = tuple(replace(t, target=t.target and n != 6) for n, t in enumerate(case.talk.turns))
    found = learned_texts(render, render.tokens(replace(case.talk, turns=turns)))
    assert found == [t for t in case.learned if not t.startswith("It is")]


def test_what_comes_after_the_last_learned_turn_is_left_out(renders):
    render = renders["chatml"]
    longer = replace(TALK, turns=(*TALK.turns, said("user", "One more")))
    assert render.tokens(longer) == render.tokens(TALK)


def test_instruction_and_shots_stand_before_the_conversation():
    render = render_of(CASES["gemma"], prompting=Prompting("Be short.", (question("s", "Why?", "Because."),)))
    text = render.tokenizer.decode(render.prompt(question("q", "What?", "A thing.", passage="It is a thing.")))
    assert text == ("<bos><start_of_turn>user\nBe short.\n\nWhy?<end_of_turn>\n<start_of_turn>model\nBecause.<end_of_turn>\n"
                    "<start_of_turn>user\nPassage: It is a thing.\nQuestion: What?<end_of_turn>\n<start_of_turn>model\n")


# --- templates and conversations that can't be used ----------------------------------------------------------------

@pytest.mark.parametrize(("jinja", "tokens", "said_of_it"), [
    (COUNTING, IM, "is not prefix-stable at turn 2: asked for, it begins after 'A talk of ' with '1 messages"),
    (ENDLESS, (), "never ends a turn: nothing stands after the text of turn 2"),
    (CASES["chatml"].jinja, (), "ends a turn with '<|im_end|>', which is .* tokens .* new_tokens: \\['<|im_end|>'\\]"),
    (SILENT, (), "turn 2"),
    ("{{ raise_exception('no talking') }}", (), "turn 2 of a short conversation: the template refuses it: no talking"),
    ("{% for m in messages %}{{ m.content }}", (), "the template refuses it"),
])
def test_a_broken_template_is_refused_by_name_turn_and_difference(jinja, tokens, said_of_it):
    tokenizer = tokenizer_with(tokens)
    render = Render(tokenizer, "decoder", 512, chat=ChatTemplate(tokenizer, jinja, "the template bad.jinja"))
    with pytest.raises(UserError, match="(?s)The template bad.jinja.*" + said_of_it.replace("|", r"\|")):
        check_invariants(render, "some-model")


@pytest.mark.parametrize(("name", "turns", "said_of_it"), [
    ("gemma", [said("user", "a"), said("user", "b"), said("assistant", "c")], "turn 3 of 3.*roles must alternate"),
    ("chatml", [said("user", "a"), said("assistant", "b<|im_end|>c")], "turn 2 of 2.*holds the end of turn"),
    ("reasoner", [said("user", "a"), said("assistant", "b")], "turn 2 of 2.*opens '<think>', and the turn does not"),
])
def test_a_conversation_that_a_template_can_not_show_is_dropped_with_the_reason(name, turns, said_of_it, renders):
    with pytest.raises(DroppedRow) as caught:
        renders[name].tokens(Example("row", tuple(turns), task="chat"))
    assert caught.value.dropped.id == "row"
    import re
    assert re.search(said_of_it, caught.value.dropped.detail)


def test_turns_that_do_not_join_are_not_joined_silently(renders):
    render = renders["forgetful"]
    assert joined(render._learned(CASES["forgetful"].talk)) is None
    with pytest.raises(DroppedRow, match="can't show it"):
        render.tokens(CASES["forgetful"].talk)


def test_an_encoder_decoder_has_a_row_for_each_turn(renders):
    render = replace(renders["phi"], architecture="encoder-decoder")
    rows = [render.tokens(row) for row in render.pieces(PLAIN_TALK)]
    texts = [render.tokenizer.decode([i for i, t in zip(r.decoder_ids, r.targets, strict=True) if t]) for r in rows]
    assert texts == list(CASES["phi"].learned)


# --- which template a model has ------------------------------------------------------------------------------------

def model(own: str = "", trained=None):
    tokenizer = tokenizer_with(IM)
    tokenizer.chat_template = own or None
    return SimpleNamespace(tokenizer=tokenizer, name="some-model", template=trained or {})


def test_auto_is_the_own_template_for_chats_and_plain_for_the_rest():
    jinja = CASES["chatml"].jinja
    assert choose(model(jinja), "auto", chats=True).jinja == jinja
    assert choose(model(jinja), "auto", chats=False) is None
    assert choose(model(), "auto", chats=True) is None
    assert choose(model(jinja), "plain", chats=True) is None
    assert choose(model(jinja), "chat", chats=False).jinja == jinja
    with pytest.raises(UserError, match="has no chat template"):
        choose(model(), "chat", chats=True)


def test_a_file_is_used_and_a_missing_one_refused(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(CASES["chatml"].jinja)
    found = choose(model(), str(path), chats=True)
    assert (found.jinja, found.name) == (CASES["chatml"].jinja, "the template mine.jinja")
    with pytest.raises(UserError, match="no such file. Legal: auto, plain, chat, or the path"):
        choose(model(), str(tmp_path / "other.jinja"), chats=True)


def test_a_tuned_model_keeps_its_template_and_refuses_another(tmp_path):
    jinja = CASES["chatml"].jinja
    tuned = model("{{ own }}", {"name": "chat", "chat": {"source": "the template mine.jinja", "jinja": jinja}})
    for chats in (True, False):
        assert choose(tuned, "auto", chats).jinja == jinja
    path = tmp_path / "other.jinja"
    path.write_text(CASES["forgetful"].jinja)
    for asked in ("plain", str(path)):
        with pytest.raises(UserError, match="was trained with 'the template mine.jinja'.*other_template: true"):
            choose(tuned, asked, chats=True)
    assert choose(tuned, "plain", chats=True, other=True) is None
    assert choose(tuned, str(path), chats=True, other=True).jinja == CASES["forgetful"].jinja
    plain = model("{{ own }}", {"name": "plain"})
    assert choose(plain, "auto", chats=True) is None
    with pytest.raises(UserError, match="was trained with the plain template"):
        choose(plain, "chat", chats=True)
