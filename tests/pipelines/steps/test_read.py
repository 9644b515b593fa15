"""read: rows in are rows out, and a bad file is refused before anything runs."""

import json
from pathlib import Path

import pytest

from luthier.core.errors import UserError
from luthier.core.files import Journal
from luthier.core.rng import Rng
from luthier.core.step import Ctx
from luthier.pipelines.steps.read import Read
from luthier.techniques.data import near_duplicates, read_jsonl  # noqa: F401  (registered by their import)

ROWS = [{"text": f"sentence number {i} of the file", "label": "ab"[i % 2]} for i in range(10)]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n\n".join(json.dumps(r) for r in ROWS), encoding="utf-8")
    return path


def run(tmp_path: Path, step: Read):
    step.check()
    folder = tmp_path / "work"
    folder.mkdir(exist_ok=True)
    ctx = Ctx(rng=Rng(0), folder=folder, journal=Journal(folder / "journal.jsonl"), engine=None)
    artifact = step.run({}, ctx)
    return artifact, step.receipts({}, artifact, ctx)


def test_rows_labels_format_and_receipt(tmp_path, file):
    artifact, (receipt,) = run(tmp_path, Read(path=str(file)))
    assert artifact.kind == "examples" and artifact.subsets == ["all"]
    assert artifact.meta["rows"] == {"all": 10} and artifact.meta["dropped"] == 0
    assert artifact.meta["labels"] == ["a", "b"] and artifact.meta["format"] == "text-label"
    assert [e.id for e in artifact.examples("all")][:2] == ["data.jsonl:1", "data.jsonl:3"]
    assert receipt.verdict == "agrees" and receipt.left == receipt.right == 10


def test_the_receipt_sees_a_lost_row(tmp_path, file):
    step = Read(path=str(file))
    artifact, _ = run(tmp_path, step)
    file.write_text(file.read_text() + "\n" + json.dumps(ROWS[0]))
    (receipt,) = step.receipts({}, artifact, None)
    assert receipt.verdict == "differs" and (receipt.left, receipt.right) == (11, 10)


@pytest.mark.parametrize(("row", "format"), [
    ({"question": "Q?", "answer": "A"}, "question-answer"), ({"prompt": "p", "completion": "c"}, "prompt-completion"),
])
def test_other_formats(tmp_path, row, format):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row))
    for named in ("auto", format):
        artifact, _ = run(tmp_path, Read(path=str(path), format=named))
        assert artifact.meta["format"] == format and artifact.meta["labels"] == []
    with pytest.raises(UserError, match=f"row 1 is {format}"):
        Read(path=str(path), format="text-label").check()


def test_same_file_same_identity(tmp_path, file):
    one, _ = run(tmp_path, Read(path=str(file)))
    (tmp_path / "work" / "examples" / "all" / "rows-00009.arrow").write_bytes(b"left by a killed attempt")
    two, _ = run(tmp_path, Read(path=str(file)))
    assert one.identity == two.identity


def test_content_is_the_hash_of_the_file(file):
    step = Read(path=str(file))
    before = step.content()
    assert list(before) == ["data.jsonl"] and before == step.content()
    file.write_text(file.read_text() + "\n")
    assert step.content() != before
    file.unlink()
    with pytest.raises(UserError, match="can't be read"):
        step.content()


@pytest.mark.parametrize(("name", "said"), [
    ("dat.jsonl", "does not exist. Did you mean 'data.jsonl'?"),
    ("nowhere/data.jsonl", "data.jsonl does not exist."),
    (".", "is a folder."),
])
def test_missing_files(tmp_path, file, name, said):
    with pytest.raises(UserError) as caught:
        Read(path=str(tmp_path / name)).check()
    assert said in str(caught.value)


def test_another_suffix(tmp_path):
    (tmp_path / "data.xlsx").write_text("a,b\n")
    with pytest.raises(UserError, match=r"'read-jsonl' does not read \.xlsx .* Legal: \.jsonl, \.ndjson, \.json, \.csv"):
        Read(path=str(tmp_path / "data.xlsx")).check()


def test_bad_rows_are_refused_by_check(tmp_path, file):
    lines = [json.dumps(r) for r in ROWS * 2]
    lines[16] = lines[16][:-1]
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 17, column"):
        Read(path=str(file)).check()


def test_a_long_line_is_refused(tmp_path):
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.truncate(60_000_000)
    with pytest.raises(UserError, match="line 1 is longer than 16 MB"):
        Read(path=str(path)).check()


def test_reader_fields(tmp_path, file):
    file.write_text('{"question": "Q?", "answers": []}\n{"question": "R?", "answers": ["a"]}\n')
    with pytest.raises(UserError, match="allow_unanswerable"):
        Read(path=str(file)).check()
    artifact, _ = run(tmp_path, Read(path=str(file), reader="read-jsonl:allow_unanswerable=true"))
    assert artifact.meta["rows"] == {"all": 2}


def test_format_belongs_to_readers_that_have_it(file):
    with pytest.raises(UserError, match="has no formats"):
        Read(path=str(file), format="text-label", reader="near-duplicates")._reader()


def test_plain_text_and_markdown_are_raw_texts(tmp_path):
    for name in ("a.txt", "b.md"):
        path = tmp_path / name
        path.write_text("first text\n\nsecond  text\n")
        step = Read(path=str(path), reader="read-raw:text_characters=5")
        artifact, (receipt,) = run(tmp_path, step)
        assert artifact.meta["format"] == Read(path=str(path)).found_format() == "raw-text"
        assert [e.turns[0].text for e in artifact.examples("all")] == ["first text", "second  text"]
        assert receipt.verdict == "agrees" and receipt.left == receipt.right == 19
        path.write_text("first text\n\nsecond  text and more\n")
        assert step.receipts({}, artifact, None)[0].verdict == "differs"
    with pytest.raises(UserError, match="'read-raw' has no formats"):
        Read(path=str(path), format="messages").check()


def test_a_folder_of_parquet_files(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards = tmp_path / "shards"
    shards.mkdir()
    for n in range(3):
        pq.write_table(pa.Table.from_pylist(ROWS[3 * n:3 * n + 3]), shards / f"{n}.parquet")
    step = Read(path=str(shards))
    artifact, (receipt,) = run(tmp_path, step)
    assert [e.label for e in artifact.examples("all")] == [r["label"] for r in ROWS[:9]]
    assert receipt.verdict == "agrees" and receipt.left == 9
    assert list(step.content()) == ["shards/0.parquet", "shards/1.parquet", "shards/2.parquet"]
    (shards / "notes.txt").write_text("not only Parquet any more")
    with pytest.raises(UserError, match="is a folder"):
        step.check()
