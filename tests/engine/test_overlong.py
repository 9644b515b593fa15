"""Long rows: every learned token in exactly one row, no target ever cut, every cut counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.example import Example, Part, Turn, question
from luthier.core.kinds import DroppedRow
from luthier.engine.models import load_base
from luthier.engine.rendering import Render
from tests.engine.chat_templates import CASES, said
from tests.engine.test_chat import learned_texts, render_of

WORDS = "module class object list dict name scope block import yield".split()


@pytest.fixture(scope="module")
def tokenizer(pico):
    return load_base(pico).tokenizer


def render(tokenizer, policy, max_tokens) -> Render:
    return Render(tokenizer, "decoder", max_tokens, over_long=policy)


def talk(sizes) -> Example:
    """A system prompt, then exchanges of so many words each."""
    turns = [said("system", "Be kind.")]
    for n, (asked, answered) in enumerate(sizes):
        turns += [said("user", " ".join(WORDS[(n + i) % 10] for i in range(asked))),
                  said("assistant", f"answer {n} " + " ".join(WORDS[(n * 3 + i) % 10] for i in range(answered)))]
    return Example("talk", tuple(turns), task="chat")


sizes = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, max_tokens=st.integers(24, 120), chat=st.booleans())
def test_split_learns_every_turn_that_fits_exactly_once(tokenizer, sizes, max_tokens, chat):
    example = talk(sizes)
    chatml = CHATML if chat else None
    made = replace(chatml or render(tokenizer, "split", max_tokens), max_tokens=max_tokens, over_long="split", cuts=[])
    whole = learned_texts(made, made.whole(example))
    try:
        rows = made.pieces(example)
    except DroppedRow as drop:
        assert drop.dropped.reason == "too long"
        rows = []
    found = [text for row in rows for text in learned_texts(made, made.tokens(row))]
    assert len(set(found)) == len(found) and [t for t in whole if t in found] == found
    assert all(len(made.tokens(row).ids) <= max_tokens for row in rows)
    left = set(whole) - set(found)
    for n, text in enumerate(whole):  # what is left out does not fit with its own question
        alone = replace(example, turns=(example.turns[0], *example.turns[2 * n + 1:2 * n + 3]))
        assert (len(made.whole(alone).ids) > max_tokens) == (text in left)
    if rows and (len(rows) > 1 or left):
        (cut,) = made.cuts
        lost = sum(len(made.encode(t)) for t in left)
        assert (cut.id, cut.rows, cut.tokens) == ("talk", len(rows), lost)
    elif rows:
        assert rows == [example] and not made.cuts


CHATML = render_of(CASES["chatml"])


def test_split_shows_as_much_of_what_came_before_as_fits(tokenizer):
    example = talk([(4, 4)] * 5)
    two = len(render(tokenizer, "split", 512).whole(talk([(4, 4)] * 2)).ids) + 8
    rows = render(tokenizer, "split", two).pieces(example)
    assert [[t.target for t in row.turns if t.role == "assistant"] for row in rows] == [
        [True, True], [True, True], [False, True]]
    assert all(row.turns[0].role == "system" for row in rows) and rows[-1].turns[-4:] == (
        *example.turns[-4:-3], replace(example.turns[-3], target=False), *example.turns[-2:])


def test_one_learned_turn_is_not_divided(tokenizer):
    example = question("q", "What is a module?", "word " * 60)
    with pytest.raises(DroppedRow) as caught:
        render(tokenizer, "split", 32).pieces(example)
    assert "max_tokens_per_example=32" in caught.value.dropped.detail


@settings(max_examples=60, deadline=None)
@given(words=st.integers(0, 120), asked=st.integers(1, 12), answered=st.integers(1, 12), max_tokens=st.integers(16, 90))
def test_the_passage_is_cut_on_the_left_and_nothing_else(tokenizer, words, asked, answered, max_tokens):
    passage = " ".join(f"{WORDS[i % 10]}{i}" for i in range(words))
    example = question("q", " ".join(WORDS[:asked]), " ".join(WORDS[-answered:]), passage=passage)
    made = render(tokenizer, "truncate-context", max_tokens)
    bare = question("q", example.part("question"), example.answer)
    before = len(made.whole(example).ids)
    try:
        (short,) = made.pieces(example)
    except DroppedRow as drop:
        assert len(made.whole(bare).ids) > max_tokens and drop.dropped.reason == "too long"
        return
    tokens = made.tokens(short)
    assert len(tokens.ids) <= max_tokens and tokens.ids[0] == tokenizer.bos_token_id
    assert learned_texts(made, tokens) == learned_texts(made, made.whole(example))
    assert passage.endswith(short.part("passage")) and short.part("question") == example.part("question")
    text = tokenizer.decode(tokens.ids)
    assert f"Question: {example.part('question')}\nAnswer:" in text
    if before <= max_tokens:
        assert short == example and not made.cuts
    else:
        assert made.cuts[0].tokens == before - len(tokens.ids) > 0
        assert len(tokens.ids) >= max_tokens - 6 or not short.part("passage"), "no more is cut than needed"


def test_early_turns_are_cut_before_the_last_message_and_the_system_prompt(tokenizer):
    example = talk([(60, 3), (6, 3)])
    example = replace(example, turns=tuple(replace(t, target=n == 4) for n, t in enumerate(example.turns)))
    made = render(tokenizer, "truncate-context", 70)
    (short,) = made.pieces(example)
    assert [t.text for t in short.turns][0] == "Be kind." and short.turns[3] == example.turns[3]
    assert len(short.turns[1].text) < len(example.turns[1].text) and example.turns[1].text.endswith(short.turns[1].text)


def test_a_prompt_alone_is_cut_on_the_left(tokenizer):
    row = Example("r", (Turn("user", (Part(" ".join(WORDS * 9), name="prompt"),)),
                        Turn("assistant", (Part(" the end"),), target=True)), task="completion")
    made = render(tokenizer, "truncate-context", 24)
    (short,) = made.pieces(row)
    assert len(made.tokens(short).ids) <= 24 and row.turns[0].text.endswith(short.turns[0].text)
    assert learned_texts(made, made.tokens(short)) == [" the end<eos>"]


def test_signs_of_several_tokens_are_cut_whole(tokenizer):
    row = question("q", "What?", "This.", passage="\N{GRINNING FACE}" * 30)
    made = render(tokenizer, "truncate-context", 40)
    (short,) = made.pieces(row)
    assert set(short.part("passage")) <= {"\N{GRINNING FACE}"} and len(made.tokens(short).ids) <= 40


@pytest.mark.parametrize("policy", ["drop", "split", "truncate-context"])
def test_rows_that_fit_are_left_alone(tokenizer, policy):
    made = render(tokenizer, policy, 512)
    for example in (talk([(3, 3), (4, 4)]), question("q", "What?", "This.", passage="that")):
        assert made.pieces(example) == [example] and not made.cuts


@settings(max_examples=40, deadline=None)
@given(words=st.integers(1, 90), max_tokens=st.integers(8, 64))
def test_blocks_of_a_text_learn_every_token_once(tokenizer, words, max_tokens):
    text = " ".join(WORDS[i % 10] for i in range(words))
    example = Example("t", (Turn("user", (Part(text, name="text"),)),), task="text")
    made = render(tokenizer, "split", max_tokens)
    blocks = list(made.blocks(example))
    document = [tokenizer.bos_token_id, *made.encode(text), tokenizer.eos_token_id]
    learned = [i for b in blocks for i, t in zip(b.ids, b.targets, strict=True) if t]
    assert learned == document[1:] and all(len(b.ids) <= max_tokens for b in blocks)
    for before, after in zip(blocks, blocks[1:], strict=False):
        assert after.ids[0] == before.ids[-1] and not after.targets[0]
