"""The plain template for conversations: as documented, every assistant turn with the end token, learned or not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from luthier.core.example import Example
from luthier.engine.models import load_base
from luthier.engine.rendering import Render
from tests.engine.chat_templates import CALL, TALK, said
from tests.engine.test_chat import learned_texts


@pytest.fixture(scope="module")
def render(pico) -> Render:
    return Render(load_base(pico).tokenizer, "decoder", 4096)


def test_it_reads_as_documented(render):
    tokens = render.tokens(replace(TALK, tools=({"name": "weather"},)))
    assert render.tokenizer.decode(tokens.ids) == (
        '<bos>Be kind.\n\nTools: [{"name": "weather"}]\n\nUser: Hello there\nAssistant: Hello to you.<eos>\n\n'
        'User: Is it cold in Oslo?\nAssistant: Call weather: {"city": "Oslo"}<eos>\n\n'
        "Tool weather: 5 degrees\nAssistant: It is 5 degrees.<eos>\n\nUser: Thanks\nAssistant: You are welcome.<eos>")
    assert learned_texts(render, tokens) == [
        " Hello to you.<eos>", f' Call {CALL["name"]}: {{"city": "Oslo"}}<eos>', " It is 5 degrees.<eos>",
        " You are welcome.<eos>"]


def test_a_turn_that_is_not_learned_keeps_its_place_and_its_end(render):
    turns = tuple(replace(t, target=n == 6) for n, t in enumerate(TALK.turns))
    whole, one = render.tokens(TALK), render.tokens(replace(TALK, turns=turns))
    assert one.ids == whole.ids[:len(one.ids)] and learned_texts(render, one) == [" It is 5 degrees.<eos>"]


def test_the_prompt_is_everything_before_the_last_learned_turn(render):
    tokens, prompt = render.tokens(TALK), render.prompt(TALK)
    assert tokens.ids[:len(prompt)] == prompt and render.decode(tokens.ids[len(prompt):]) == " You are welcome."
    asked = Example("a", (said("user", "Hello"),), task="chat")
    assert render.decode(render.prompt(asked)) == "User: Hello\nAssistant:"


def test_questions_with_history_are_prompted_as_they_are_trained(render):
    from luthier.core.example import Part, Turn

    turns = (Turn("user", (Part("one?", name="question"),)), Turn("assistant", (Part("yes"),), target=True),
             Turn("user", (Part("two?", name="question"),)), Turn("assistant", (Part("no"),), target=True))
    row = Example("q", turns)
    tokens, prompt = render.tokens(row), render.prompt(row)
    assert tokens.ids[:len(prompt)] == prompt and render.decode(tokens.ids[len(prompt):]) == " no"
