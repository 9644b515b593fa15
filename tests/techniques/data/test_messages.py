"""Chat rows: what they become, and every way in which one can be wrong."""

import json

import pytest

from luthier.core.errors import UserError
from luthier.core.example import Example, SourceFile
from luthier.techniques.data._formats import FORMATS
from luthier.techniques.data.read_jsonl import ReadJsonl

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLS = [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}]
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": [{"type": "text", "text": "Is it cold"}, {"type": "text", "text": "in Oslo?"}]},
    {"role": "assistant", "content": None, "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "5 degrees"},
    {"role": "assistant", "content": "It is.", "reasoning_content": "5 is cold"},
]


@pytest.fixture
def read(tmp_path, ctx):
    def run(rows, **fields) -> list[Example]:
        path = tmp_path / "chats.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return list(ReadJsonl(**fields).apply(iter([SourceFile("chats.jsonl", str(path))]), ctx))

    return run


def test_messages(read):
    (row,) = read([{"messages": TALK, "tools": [TOOL], "id": 3, "topic": "weather"}])
    assert (row.id, row.task, row.tools, row.meta) == ("3", "chat", (TOOL,), {"topic": "weather"})
    assert [t.role for t in row.turns] == ["system", "user", "assistant", "user", "assistant", "tool", "assistant"]
    assert [t.target for t in row.turns] == [False, False, True, False, True, False, True]
    assert row.turns[3].text == "Is it cold\nin Oslo?"
    assert row.turns[4].calls == [{"id": "c1", "name": "weather", "arguments": {"city": "Oslo"}}]
    assert row.turns[5].extra == {"tool_call_id": "c1", "name": "weather"}
    assert row.turns[6].extra == {"reasoning_content": "5 is cold"} and row.answer == "It is."
    assert Example.from_dict(json.loads(json.dumps(row.to_dict()))) == row


def test_sharegpt_conversations_become_the_same(read):
    (one,) = read([{"messages": TALK[:3] + [{"role": "user", "content": "Is it cold in Oslo?"}] + TALK[4:6] + [
        {"role": "assistant", "content": "It is."}], "tools": [TOOL]}])
    call = json.dumps({"id": "c1", "name": "weather", "arguments": {"city": "Oslo"}})
    (two,) = read([{"system": "Be kind.", "tools": json.dumps([TOOL["function"]]), "conversations": [
        {"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi."},
        {"from": "human", "value": "Is it cold in Oslo?"}, {"from": "function_call", "value": call},
        {"from": "observation", "value": "5 degrees", "name": "weather", "tool_call_id": "c1"},
        {"from": "gpt", "value": "It is."}]}])
    assert two == one


def test_a_message_can_be_left_out_of_learning(read):
    for mark in ({"train": False}, {"weight": 0}):
        (row,) = read([{"messages": [*TALK[:2], {**TALK[2], **mark}, *TALK[3:]]}])
        assert [t.target for t in row.turns if t.role == "assistant"] == [False, True, True]
    (row,) = read([{"messages": [*TALK[:2], {**TALK[2], "weight": 1, "train": True}]}])
    assert row.turns[2].target and row.turns[2].extra == {}


def test_only_the_last_answer_is_learned_if_asked_for(read):
    (row,) = read([{"messages": [*TALK[:6], {**TALK[6], "train": False}]}], learn="last")
    assert [n for n, t in enumerate(row.turns) if t.target] == [4]


def test_developer_is_the_system(read):
    (row,) = read([{"messages": [{"role": "developer", "content": "Be brief."}, *TALK[1:3]]}])
    assert row.turns[0].role == "system"


def test_rows_about_the_same_share_a_cluster_whatever_the_system_says(read):
    words = " ".join(f"w{i}" for i in range(60))
    rows = [{"messages": [{"role": "system", "content": s}, {"role": "user", "content": u}, TALK[2]]}
            for s, u in (("A" * 400, words), ("B" * 400, f"{words} more"), ("A" * 400, "something else"))]
    one, two, three = read(rows)
    assert one.cluster == two.cluster != three.cluster


GOOD = {"messages": TALK[:3]}


def changed(**message):
    return {"messages": [{**TALK[1], **message}, TALK[2]]}


@pytest.mark.parametrize(("bad", "said"), [
    ({"messages": {}}, "row 2: messages is an object ({}); expected a list of messages"),
    ({"messages": ["hi"]}, 'row 2: messages[0] is text ("hi"); expected an object with role and content'),
    ({"messages": [{"content": "x", "who": "y"}]}, "row 2: messages[0] has no role; its keys: content, who"),
    (changed(role="bot"), 'row 2: messages[0] has the role "bot"; legal: system, developer, user, assistant, tool'),
    (changed(content=None), "row 2: messages[0].content is null (null); only an assistant that calls tools"),
    (changed(content="  "), "row 2: messages[0].content is white space only"),
    (changed(content=[{"type": "image_url"}]), 'row 2: messages[0].content holds a part of type "image_url"; only text'),
    (changed(tool_calls=CALLS), "row 2: messages[0] has tool_calls, but its role is user"),
    ({"messages": [TALK[1], {"role": "assistant", "function_call": {}}]}, "row 2: messages[1] has function_call; write it"),
    ({"messages": [TALK[1], {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{oops"}}]}]},
     'row 2: messages[1].tool_calls[0].arguments is text ("{oops"); expected JSON'),
    ({"messages": [TALK[1], {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}]},
     "row 2: messages[1].tool_calls[0].arguments is a list ([1]); expected an object"),
    ({"messages": [TALK[1], TALK[4], {**TALK[5], "tool_call_id": "c9"}, TALK[6]]},
     'row 2: messages[2] answers the call "c9", which no message before it makes; calls made: c1'),
    ({"messages": [TALK[1]]}, "row 2: messages has nothing to learn: no assistant message"),
    ({"messages": [TALK[1], {**TALK[2], "train": False}]}, "row 2: messages has nothing to learn"),
    ({"messages": [TALK[1], {**TALK[2], "train": "no"}]}, 'row 2: messages[1].train is text ("no"); expected true or false'),
    ({"messages": [TALK[1], {**TALK[2], "weight": 0.5}]}, "row 2: messages[1].weight is a number (0.5); expected 0 or 1"),
    ({**GOOD, "tools": [{"name": 3}]}, "row 2: tools[0] has no function with a name; its keys: name"),
    ({"conversations": [{"from": "human", "value": "x"}]}, "row 2 is conversations (keys conversations), but the file is"),
])
def test_bad_rows_are_named_with_what_is_legal(read, bad, said):
    with pytest.raises(UserError) as caught:
        read([GOOD, bad])
    assert said in str(caught.value)


@pytest.mark.parametrize(("bad", "said"), [
    ({"conversations": [{"from": "martian", "value": "x"}]}, 'conversations[0] is from "martian"; legal: human, user, gpt'),
    ({"conversations": [{"from": "human"}]}, "conversations[0] needs from and value; found: from"),
    ({"conversations": [{"from": "function_call", "value": "no"}]}, 'conversations[0].value is text ("no"); expected JSON'),
])
def test_bad_conversations(read, bad, said):
    with pytest.raises(UserError) as caught:
        read([bad])
    assert said in str(caught.value)


def test_the_table_tells_formats_by_their_keys():
    rows = {"question-answer": {"question": "q", "answer": "a"}, "prompt-completion": {"prompt": "p", "completion": "c"},
            "text-label": {"text": "t", "label": "l"}, "messages": {"messages": []}, "conversations": {"conversations": []},
            "raw-text": {"text": "t"}}
    assert {name: next(n for n, f in FORMATS.items() if f.fits(row)) for name, row in rows.items()} == {n: n for n in rows}
