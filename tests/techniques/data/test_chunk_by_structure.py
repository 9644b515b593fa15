"""Nothing lost, nothing repeated, nothing over the limit; code in one piece where it fits."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.example import Document, Section
from luthier.techniques.data.chunk_by_structure import WORDS_AND_SIGNS, ChunkByStructure


class Bytes:
    """A tokenizer of one token for every four bytes of a word; blanks belong to the word after them."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert add_special_tokens is False
        return [0 for word in text.split() for _ in range(0, len(word.encode()), 4)]


def document(*sections: tuple[tuple[str, ...], str]) -> Document:
    return Document("a.md", "A", tuple(Section(h, t) for h, t in sections))


def cut(text: str, ctx, **fields) -> list[str]:
    return [p.text for p in ChunkByStructure(**fields).apply(iter([document(((), text))]), ctx)]


def solid(text: str) -> str:
    return "".join(text.split())


WORD = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Z"]), min_size=1, max_size=30)
PIECES = st.one_of(
    WORD,
    st.sampled_from([" ", "\n", "\n\n", ". ", "! ", "```\n", "\n```\n", "\n- ", " | ", "    ", "\t", "。", "x" * 200]),
)
TEXTS = st.lists(PIECES, max_size=120).map("".join)


@pytest.mark.parametrize("tokenizer", [None, Bytes()], ids=["words and signs", "tokenizer"])
@given(text=TEXTS, most=st.integers(16, 40), least=st.integers(0, 20))
@settings(max_examples=150, deadline=None)
def test_the_section_is_there_once_and_no_passage_is_over_the_limit(tokenizer, text, most, least):
    from types import SimpleNamespace

    ctx = SimpleNamespace(roles={} if tokenizer is None else {"tokenizer": tokenizer})
    passages = list(ChunkByStructure(max_tokens=most, min_tokens=least).apply(iter([document(((), text))]), ctx))
    assert solid("".join(p.text for p in passages)) == solid(text)
    for passage in passages:
        count = len(WORDS_AND_SIGNS.findall(passage.text)) if tokenizer is None else len(
            tokenizer.encode(passage.text, add_special_tokens=False))
        assert passage.tokens == count <= most
        assert passage.text.strip() and passage.text in text
    assert len({p.id for p in passages}) == len(passages)


def test_paragraphs_first(ctx):
    text = "\n\n".join(["one two three four. five six seven"] * 4)
    assert cut(text, ctx, max_tokens=16, min_tokens=0) == ["\n\n".join(["one two three four. five six seven"] * 2)] * 2


def test_then_sentences(ctx):
    first, second = "Aa bb cc dd ee ff gg hh ii.", "Kk ll mm nn oo pp qq rr ss."
    assert cut(f"{first} {second}", ctx, max_tokens=16, min_tokens=0) == [first, second]


def test_then_words_then_letters(ctx):
    assert cut(" ".join(["w"] * 40), ctx, max_tokens=16, min_tokens=0) == [" ".join(["w"] * n) for n in (16, 16, 8)]
    assert [len(p) for p in cut("x" * 3000, ctx, max_tokens=16)] == [1024, 1024, 952]


def test_code_stays_whole_and_is_cut_at_line_ends_only(ctx):
    code = "```python\n" + "\n".join(f"    x{i} = a. b. c" for i in range(12)) + "\n\n    y = 1\n```"
    whole = cut(f"Before it. Words.\n{code}\nAfter.", ctx, max_tokens=100, min_tokens=0)
    assert any(code in p for p in whole)
    pieces = cut(code, ctx, max_tokens=40, min_tokens=0)
    assert len(pieces) > 1
    lines = [line for p in pieces for line in p.split("\n")]
    assert [line for line in lines if line] == [line for line in code.split("\n") if line]


def test_a_fence_between_paragraphs_is_never_opened_by_a_blank_line_in_it(ctx):
    code = "```\na b c d e f\n\ng h i j k l\n```"
    text = f"{'w ' * 12}\n\n{code}\n\n{'v ' * 12}"
    assert code in cut(text, ctx, max_tokens=24, min_tokens=0)


def test_a_table_is_cut_between_rows(ctx):
    rows = [f"cell {i}. with | more {i}" for i in range(8)]
    for piece in cut("\n".join(rows), ctx, max_tokens=16, min_tokens=0):
        assert set(piece.split("\n")) <= set(rows)


def test_small_passages_join_within_their_section_only(ctx):
    long = " ".join(["w"] * 30)
    text = f"{long}\n\ntiny\n\n{long}"
    assert len(cut(text, ctx, max_tokens=31, min_tokens=0)) == 2
    rows = list(ChunkByStructure(max_tokens=64, min_tokens=32).apply(
        iter([document((("A",), "tiny"), (("B",), "also tiny"))]), ctx))
    assert [p.text for p in rows] == ["tiny", "also tiny"]


def test_a_short_tail_of_a_long_paragraph_is_joined(ctx):
    text = f"{' '.join(['w'] * 20)}\n\n{' '.join(['v'] * 40)}"
    assert [len(p.split()) for p in cut(text, ctx, max_tokens=32, min_tokens=0)] == [20, 32, 8]
    assert [len(p.split()) for p in cut(text + "\n\nend", ctx, max_tokens=32, min_tokens=16)] == [20, 32, 9]


def test_ids_sections_and_headings(ctx):
    page = document((("A b", "C++"), "x"), (("A b", "C"), "y"), (("A b", "C"), "z"), ((), "top"), (("§",), "s"))
    rows = list(ChunkByStructure().apply(iter([page]), ctx))
    assert [p.id for p in rows] == ["a.md#a-b/c++:0", "a.md#a-b/c:0", "a.md#a-b/c:1", "a.md#top:0", "a.md#section:0"]
    assert [p.section for p in rows[:4]] == ["a.md#A b / C++", "a.md#A b / C", "a.md#A b / C", "a.md#"]
    assert rows[0].document == "a.md" and rows[0].headings == ("A b", "C++")
    assert rows == list(ChunkByStructure().apply(iter([page]), ctx))


@pytest.mark.parametrize("text", ["x" * 2_000_000, "word " * 200_000, "a.\n" * 200_000, "\n\n".join(["p q"] * 100_000)])
def test_long_texts_take_no_time(text, ctx):
    longest = 0

    class Watched(Bytes):
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            nonlocal longest
            longest = max(longest, len(text))
            return super().encode(text, add_special_tokens)

    ctx.roles = {"tokenizer": Watched()}
    began = time.monotonic()
    pieces = cut(text, ctx)
    assert solid("".join(pieces)) == solid(text)
    assert time.monotonic() - began < 5
    assert longest <= 64 * 256  # a file of one line is never tokenized whole
