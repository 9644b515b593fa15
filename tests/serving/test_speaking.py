"""Speaking: pieces add up to the text of the tokens, whatever lies across them."""

from __future__ import annotations

import pytest

from luthier.core.component import build
from luthier.core.rng import Rng
from luthier.engine.scheduling import Request
from luthier.serving.speaking import Spoken


class Bytes:
    """A tokenizer of single bytes: every character beyond ASCII lies across tokens. 0 is special."""

    def decode(self, ids, skip_special_tokens=False):
        return bytes(i for i in ids if i or not skip_special_tokens).decode("utf-8", "replace")


def pieces(text: bytes, stops=(), strip=False, prompt=b"Tell: "):
    told = []
    request = Request(list(prompt), build("decoder", "greedy:max_new_tokens=999"), Rng(0))
    spoken = Spoken(Bytes(), request, lambda p: told.append(p.text), stops, strip)
    for token in text:
        request.written.append(token)
        spoken.hear(token)
        if request.done:
            break
    spoken.finish()
    return told, request


@pytest.mark.parametrize("text", ["plain words", "é", "日本語のテキスト", "a😀b\n", " \n x", ""])
@pytest.mark.parametrize("strip", [False, True])
def test_pieces_add_up_and_no_character_is_broken(text, strip):
    told, _ = pieces(text.encode(), strip=strip)
    assert "".join(told) == (text.strip() if strip else text)
    assert all(told) and "\ufffd" not in "".join(told)


def test_text_that_ends_within_a_character_says_so():
    assert "".join(pieces("a😀".encode()[:-1])[0]) == "a\ufffd"


def test_a_piece_is_told_as_soon_as_it_is_certain():
    assert pieces(b"abc")[0] == ["a", "b", "c"]
    assert pieces(b"a b", strip=True)[0] == ["a", " b"], "white space waits for what follows it"
    assert pieces(b"xENx", stops=["END"])[0] == ["x", "ENx"], "what could be a stop string waits"


@pytest.mark.parametrize(("text", "stops", "said"), [
    (b"one two END three", ["END"], "one two "), (b"one\n\ntwo", ["\n\n", "two"], "one"), (b"aaab", ["aab"], "a"),
    (b"never", ["END"], "never"), (b"halfEN", ["END"], "halfEN"), (b"END", ["END"], ""), (b"ab", ["b", "ab"], "")])
def test_a_stop_string_ends_the_request_and_is_not_told(text, stops, said):
    told, request = pieces(text, stops)
    assert "".join(told) == said
    assert request.stopped == request.done == any(s.encode() in text for s in stops)


def test_the_prompt_is_never_told_and_special_tokens_have_no_text():
    assert "".join(pieces(b"\0a\0b", prompt="Prompt é".encode()[:-1])[0]).endswith("ab")
    assert pieces(b"\0\0")[0] == []
