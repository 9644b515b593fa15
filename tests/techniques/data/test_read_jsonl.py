"""The three formats, what they keep, and every way in which a file can be wrong."""

import json
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import UserError
from luthier.core.example import Part, SourceFile, Turn
from luthier.techniques.data.read_jsonl import ReadJsonl


@pytest.fixture
def examples(tmp_path, ctx):
    def read(rows, name="data.jsonl", **fields):
        path = tmp_path / name
        if isinstance(rows, bytes):
            path.write_bytes(rows)
        else:
            lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return list(ReadJsonl(**fields).apply(iter([SourceFile(name, str(path))]), ctx))

    return read


def refusal(examples, rows, **fields) -> str:
    with pytest.raises(UserError) as caught:
        examples(rows, **fields)
    return str(caught.value)


def qa(n: int, **more):
    return {"question": f"What is number {n}?", "answer": f"It is {n}.", **more}


def test_question_answer(examples):
    first, second, third = examples([
        {"question": "Q?", "answer": "A", "id": 7, "source": "a.md"},
        {"question": "R?", "answers": ["one", "two", "one"], "passage": "P"},
        {"question": "S?", "answer": ["x"], "answers": ["y"], "context": "P2"},
    ])
    assert first.id == "7" and first.task == "qa" and first.answer == "A"
    assert first.source == first.cluster == "a.md"
    assert second.id == "data.jsonl:2" and second.answer == "one" and second.references == ("two",)
    assert second.part("passage") == "P" and second.part("question") == "R?"
    assert third.answer == "x" and third.references == ("y",) and third.part("passage") == "P2"


def test_prompt_completion(examples):
    (row,) = examples([{"prompt": "2+2=", "completion": "4"}])
    assert row.turns == (Turn("user", (Part("2+2=", name="prompt"),)), Turn("assistant", (Part("4"),), target=True))


def test_text_label(examples):
    rows = examples([{"text": "good", "label": "pos"}, {"text": "bad", "label": 0}, {"text": "so", "label": True}])
    assert [r.label for r in rows] == ["pos", "0", "True"]
    assert {r.task for r in rows} == {"classify"}
    assert rows[0].turns == (Turn("user", (Part("good", name="text"),)),)


def test_blank_lines_mark_and_line_ends(examples):
    data = b"\xef\xbb\xbf" + b'{"text": "a", "label": "x"}\r\n\r\n  \n{"text": "\xc3\xa4", "label": "y"}'
    rows = examples(data)
    assert [r.id for r in rows] == ["data.jsonl:1", "data.jsonl:4"] and rows[1].part("text") == "ä"


def test_further_keys_are_kept_and_said_once(examples, log):
    rows = examples([qa(1, level=3), qa(2, level=4, note={"a": [1]}), qa(3)])
    assert rows[1].meta == {"level": 4, "note": {"a": [1]}} and rows[2].meta == {}
    assert log == ["data.jsonl: kept, not used: level (2), note (1)"]


def test_conflicting_answers_are_only_said(examples, log):
    rows = [{"text": "same", "label": "a"}, {"text": "Same ", "label": "b"}, {"text": "other", "label": "a"}]
    assert len(examples(rows)) == 3
    assert log == ["data.jsonl: 1 of 3 rows repeat a question with another answer"]
    log.clear()
    examples([*rows, *({"text": str(i), "label": "a"} for i in range(3))])
    assert log == []


def test_clusters(examples):
    words = " ".join(f"w{i}" for i in range(60))
    rows = examples([
        {"question": words, "answer": "a"},
        {"question": f"{words} more", "answer": "b", "id": "second"},
        {"question": "Why?", "answer": "c", "passage": words.replace("w3 ", "x ")},
        {"question": "Why?", "answer": "d", "passage": "Another passage about something else altogether."},
        {"question": "Why not?", "answer": "d", "passage": "another passage about something else ALTOGETHER."},
        {"question": words, "answer": "e", "source": "s"},
    ])
    one, four = "data.jsonl:1", "data.jsonl:4"
    assert [r.cluster for r in rows] == [one, one, one, four, four, "s"]


def test_broken_json_names_line_and_column(examples):
    rows = [qa(i) for i in range(30)]
    rows[16] = '{"question": "Q?", answer: "A"}'
    said = refusal(examples, rows)
    assert "line 17, column 20: broken JSON" in said and "data.jsonl" in said


@pytest.mark.parametrize(("bad", "said"), [
    ({"question": "Q?"}, "row 3: no answer or answers; keys found: question"),
    ({"answer": "A"}, "row 3: no question; keys found: answer"),
    ({}, "row 3: no question; keys found: none"),
    ({"question": "Q?", "answer": ""}, "row 3: answer is empty"),
    ({"question": " ", "answer": "A"}, "row 3: question is empty"),
    ({"question": "Q?", "answer": 42}, "row 3: answer holds a number (42); expected text or a list of texts"),
    ({"question": "Q?", "answer": None}, "row 3: answer holds null (null)"),
    ({"question": ["Q?"], "answer": "A"}, 'row 3: question holds a list (["Q?"]); expected text'),
    ({"question": "Q?", "answers": []}, "row 3: answers is an empty list; 'allow_unanswerable: true'"),
    ({"question": "Q?", "answers": ["a", ""]}, "row 3: answers is empty"),
    (qa(3, passage=5), "row 3: passage is a number (5); expected text"),
    (qa(3, passage="a", context="b"), "row 3: it has passage and context; keep one"),
    (qa(3, id=[1]), "row 3: id is a list ([1])"),
    (qa(3, id="data.jsonl:1"), "row 3: id 'data.jsonl:1' is already that of row 1"),
    (["a"], 'line 3: a list (["a"]); expected an object'),
    ("null", "line 3: null (null); expected an object"),
    ('{"question": "\\ud800", "answer": "A"}', "line 3: it holds half of a surrogate pair"),
    ("[" * 100_000, "line 3: JSON that can't be read"),
    ('{"question": "Q?", "answer": "A", "n": ' + "9" * 5000 + "}", "line 3: JSON that can't be read"),
])
def test_bad_rows(examples, bad, said):
    assert said in refusal(examples, [qa(1), qa(2), bad, qa(4)])


@pytest.mark.parametrize(("label", "said"), [
    (None, "row 2: label is null"), ("", "row 2: label is empty"), ([1], "row 2: label is a list"),
    (float("nan"), "row 2: label is a number (NaN)"),
])
def test_bad_labels(examples, label, said):
    assert said in refusal(examples, [{"text": "a", "label": "x"}, {"text": "b", "label": label}])


def test_five_problems_are_shown_and_the_rest_counted(examples):
    said = refusal(examples, [qa(0), *({"question": "Q?", "answer": ""} for _ in range(8))])
    assert said.count("is empty") == 5 and "row 6" in said and "row 7" not in said and said.endswith("… and 3 more")


def test_mixed_formats_name_the_first_row_that_differs(examples):
    said = refusal(examples, [qa(1), qa(2), {"prompt": "p", "completion": "c"}, {"text": "t", "label": "l"}])
    assert "row 3 is prompt-completion (keys prompt, completion)" in said and "read as question-answer" in said


def test_unknown_keys_of_the_first_row(examples):
    said = refusal(examples, [{"dialogue": [], "n": 1}])
    assert "row 1: keys found: dialogue, n. Expected" in said and "prompt-completion: prompt, completion" in said


def test_a_named_format_is_kept_to(examples):
    assert "row 1 is question-answer" in refusal(examples, [qa(1)], format="text-label")
    (row,) = examples([qa(1, text="t", label="l")], format="text-label")
    assert row.task == "classify" and set(row.meta) == {"question", "answer"}


def test_unanswerable_when_allowed(examples):
    rows = examples([qa(1), {"question": "Q?", "answers": []}], allow_unanswerable=True)
    assert rows[1].answer == "" and len(rows[1].turns) == 1


@pytest.mark.parametrize(("data", "said"), [
    (b"", "holds no rows"),
    (b"\n \n", "holds no rows"),
    (json.dumps(qa(1)).encode("utf-16"), "is UTF-16"),
    (b'{"text": "caf\xe9", "label": "x"}', "line 1, byte 14: not UTF-8 (0xe9)"),
    (b"[\n {}\n]", "line 1: the JSON runs over several lines"),
    (b'{\n "text": 1}', "line 1: the JSON runs over several lines"),
    (b'[{"text": "a"}]', "To split a list: jq -c '.[]' FILE > FILE.jsonl"),
    (b'{"text": "a"', "line 1, column 13: broken JSON"),
])
def test_bad_files(examples, data, said):
    assert said in refusal(examples, data)


def test_a_missing_file(tmp_path, ctx):
    with pytest.raises(UserError, match=r"can't be read: No such file"):
        list(ReadJsonl().apply(iter([SourceFile("x", str(tmp_path / "x"))]), ctx))


def test_one_long_line_is_refused_without_being_read(tmp_path, ctx):
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "a", "label": "x"}\n')
        file.truncate(200_000_000)
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(UserError, match=r"line 2 is longer than 16 MB \(max_line_megabytes\)"):
        list(ReadJsonl().apply(iter([SourceFile("long.jsonl", str(path))]), ctx))
    assert time.monotonic() - began < 2
    assert tracemalloc.get_traced_memory()[1] < 60_000_000
    tracemalloc.stop()


def test_the_line_limit_counts_the_line_alone(examples):
    row = {"text": "a" * 1000, "label": "x"}
    assert len(examples([row, row], max_line_megabytes=0.0011)) == 2
    assert "line 1 is longer than 0.001 MB" in refusal(examples, [row], max_line_megabytes=0.001)


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(str.strip)


META = st.dictionaries(st.sampled_from(["level", "tag"]), st.integers() | TEXT)


@given(st.lists(st.tuples(TEXT, TEXT, META), min_size=1, max_size=6), st.booleans())
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read(tmp_path_factory, rows, ascii_only):
    from types import SimpleNamespace

    path = tmp_path_factory.mktemp("rows") / "data.jsonl"
    lines = [json.dumps({"question": q, "answer": a, **m}, ensure_ascii=ascii_only) for q, a, m in rows]
    path.write_text("\n".join(lines), encoding="utf-8", newline="")
    ctx = SimpleNamespace(log=lambda text: None)
    found = list(ReadJsonl().apply(iter([SourceFile("data.jsonl", str(path))]), ctx))
    assert [(e.part("question"), e.answer, e.meta) for e in found] == rows
    assert all(e.cluster in {x.id for x in found} for e in found)


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    from types import SimpleNamespace

    path = tmp_path_factory.mktemp("rows") / "data.jsonl"
    path.write_bytes(data)
    try:
        list(ReadJsonl().apply(iter([SourceFile("data.jsonl", str(path))]), SimpleNamespace(log=lambda text: None)))
    except UserError as error:
        assert "data.jsonl" in str(error)
