"""Tables in every container hold the same rows; damaged files are refused, never crash."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import UserError
from luthier.core.example import SourceFile
from luthier.techniques.data.read_json import ReadJson
from luthier.techniques.data.read_jsonl import ReadJsonl
from luthier.techniques.data.read_table import ReadTable

ROWS = [{"question": f'What, "{i}"?', "answer": f"line\none {i}; ä"} for i in range(5)]
QUIET = SimpleNamespace(log=lambda text: None)


def written(rows, suffix: str) -> bytes:
    text = io.StringIO(newline="")
    binary = io.BytesIO()
    if suffix in (".csv", ".tsv"):
        table = csv.DictWriter(text, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
        table.writeheader()
        table.writerows(rows)
        return text.getvalue().encode()
    if suffix == ".json":
        return json.dumps(rows, indent=1).encode()
    if suffix == ".jsonl":
        return "".join(json.dumps(r) + "\n" for r in rows).encode()
    table = pa.Table.from_pylist(rows)
    if suffix == ".parquet":
        pq.write_table(table, binary)
    else:
        with (pa.ipc.new_file if suffix == ".arrow" else pa.ipc.new_stream)(binary, table.schema) as sink:
            sink.write_table(table, max_chunksize=2)
    return binary.getvalue()


def reader(name: str):
    suffix = name.removesuffix(".gz").rpartition(".")[2]
    return {"json": ReadJson, "jsonl": ReadJsonl}.get(suffix, ReadTable)


@pytest.fixture
def table(tmp_path):
    def read(data: bytes | str, name: str = "data.csv", **fields):
        path = tmp_path / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        file = SourceFile(name, str(path))
        made = reader(name)(**fields)
        found = list(made.apply(iter([file]), QUIET))
        assert made.count_rows(file) == len(found)
        return found

    return read


def refused(table, data, name="data.csv", **fields) -> str:
    with pytest.raises(UserError) as caught:
        table(data, name, **fields)
    return str(caught.value)


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", "stream.arrow"])
def test_every_container_holds_the_same_rows(table, suffix, packed):
    data = written(ROWS, suffix)
    rows = table(gzip.compress(data) if packed else data, f"data{suffix}{packed}")
    assert [{"question": r.part("question"), "answer": r.answer} for r in rows] == ROWS


@pytest.mark.parametrize(("data", "fields"), [
    ("\ufefftext,label\ncafé,x\n".encode(), {}), ("text;label\ncafé;x\n".encode(), {}),
    ("text,label\r\n\r\ncafé,x".encode("utf-16"), {}), ("text|label\ncafé|x\n".encode("cp1252"), {"encoding": "cp1252"}),
    ("café,x\n".encode(), {"header": ("text", "label")}),
    ("z,café,x\n".encode(), {"header": False, "columns": {"text": "2", "label": "3"}}),
    ("'text',label\ncafé,x\n".encode(), {"columns": {"text": "'text'"}}),
])
def test_dialects(table, data, fields):
    (row,) = table(data, **fields)
    assert (row.part("text"), row.label) == ("café", "x")


def test_quotes_in_tab_separated_text(table):
    plain = table('text\tlabel\n"Stop" he said\tx\n"quoted"\ty\n', "a.tsv")
    assert [r.part("text") for r in plain] == ['"Stop" he said', '"quoted"']
    (quoted,) = table('text\tlabel\n"a ""b""\tc"\tx\n', "b.tsv", quotes="double")
    assert quoted.part("text") == 'a "b"\tc'


def test_lists_in_cells(table):
    (row,) = table('question,options,answer\nWhich?,"[""a"", ""b""]",B\n')
    (other,) = table("question,options,answer\nWhich?,\"['a', 'b']\",B\n")
    assert row.answer == other.answer == "b" and row.meta["options"] == ["a", "b"]


@pytest.mark.parametrize(("data", "said"), [
    ("text,label\na,b,c\n", "row 1 (line 2): 3 cells, but 2 columns: text, label"),
    ('text,label\n"a\nb",x\nc\n', "row 2 (line 4): 1 cells, but 2 columns"),
    ("text,text\na,b\n", "columns 1 and 2 have the same name 'text'. If the file has no header"),
    ("text,,label\na,b,c\n", "column 2 has no name"),
    ('text,label\n"a,b\n', "a quote is opened and never closed"),
    ('text,label\n"a" b,c\n', "expected after"),
    (b"text,label\ncaf\xe9,x\n", "it holds the byte 0xe9"),
    ("text,label\na,x\n".encode("utf-16-le"), "encoding: utf-16-le"),
    ("", "holds no rows"), ("text,label\n", "holds no rows"),
    ("one,two\na,b\n", "If the first line is no header: header: false"),
])
def test_bad_tables(table, data, said):
    assert said in refused(table, data)


def test_wrong_settings(table):
    assert "there is no encoding of that name" in refused(table, "text,label\na,b\n", encoding="utf-9")
    assert "delimiter = '::'" in refused(table, "text,label\na,b\n", delimiter="::")


def test_tagged_text(table):
    text = "-DOCSTART- -X- O\n\nAnna NNP B-PER\nsings VB O\n\n\n. . O\n"
    for name in ("a.conll", "a.tsv"):
        rows = table(text.replace(" ", "\t"), name)
        assert [r.turns[0].parts[1].value for r in rows] == [["Anna", "sings"], ["."]]
        assert [r.turns[1].parts[0].value for r in rows] == [["B-PER", "O"], ["O"]]
    assert "row 1 (line 2): 'sings' has no tag" in refused(table, "Anna B-PER\nsings\n", "b.conll")


def test_types_that_json_has_not(table):
    import datetime
    import decimal

    rows = [{"text": "t", "label": 1, "day": datetime.date(2020, 1, 2), "price": decimal.Decimal("1.5"), "raw": b"x",
             "none": None, "inner": {"day": datetime.date(2020, 1, 2)}}]
    (row,) = table(written(rows, ".parquet"), "a.parquet")
    assert row.meta == {"day": "2020-01-02", "price": 1.5, "inner": {"day": "2020-01-02"}} and row.label == "1"


def test_saved_datasets_as_the_library_itself_reads_them(tmp_path):
    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "ner_tags": datasets.List(names)})
    made = datasets.Dataset.from_dict({"tokens": [["a", "b"], ["c"]], "ner_tags": [[0, 1], [1]]}, features=features)
    made.save_to_disk(tmp_path / "saved", num_shards=2)
    file = SourceFile("saved", str(tmp_path / "saved"))
    rows = list(ReadTable().apply(iter([file]), QUIET))
    theirs = datasets.load_from_disk(tmp_path / "saved")
    assert [r.turns[0].parts[1].value for r in rows] == theirs["tokens"][:]
    assert [r.turns[1].parts[0].value for r in rows] == [[names.int2str(t) for t in ts] for ts in theirs["ner_tags"]]
    made.to_parquet(tmp_path / "a.parquet")
    (first, _) = ReadTable().apply(iter([SourceFile("a.parquet", str(tmp_path / "a.parquet"))]), QUIET)
    assert first.turns[1].parts[0].value == ["neg", "pos"]
    next((tmp_path / "saved").glob("*.arrow")).unlink()
    with pytest.raises(UserError, match="which is not there"):
        list(ReadTable().apply(iter([file]), QUIET))


@pytest.mark.parametrize(("text", "ids"), [
    ('{"version": 1, "data": [{"text": "a"}, {"text": "b"}]}', ["x:1", "x:2"]),
    ('{"k1": {"text": "a"}, "k2": {"text": "b"}}', ["k1", "k2"]),
    ('{"text": "a"}\n{"text": "b"}\n', ["x:1", "x:2"]), ('{"text": "a"}', ["x:1"]), (' [ {"text": "a"} ] ', ["x:1"]),
])
def test_layouts_of_json(tmp_path, text, ids):
    (tmp_path / "x.json").write_text(text)
    rows = list(ReadJson().apply(iter([SourceFile("x", str(tmp_path / "x.json"))]), QUIET))
    assert [r.id for r in rows] == ids and [r.part("text") for r in rows] == ["a", "b"][:len(ids)]


def test_articles_question_by_question(table):
    article = {"title": "T", "paragraphs": [{"context": "Hide glue.", "qas": [
        {"id": "q1", "question": "What?", "answers": [{"text": "glue", "answer_start": 5}], "is_impossible": False},
        {"id": "q2", "question": "Why?", "answers": [], "is_impossible": True}]}]}
    rows = table(json.dumps({"version": "v2.0", "data": [article]}), "a.json")
    assert [(r.id, r.answer) for r in rows] == [("q1", "glue"), ("q2", "The passage does not say.")]
    assert "paragraphs[0] needs context" in refused(table, json.dumps([{"paragraphs": [{}]}]), "b.json")


@pytest.mark.parametrize(("text", "said"), [
    ('[{"text": "a"},\n {"text": }]', "line 2, column 11: broken JSON"), ('[{"text": "a"}', "the file ends; expected ','"),
    ('[{"text": "a"},]', "a value is missing"), ("[1]", "row 1 (line 1): a number (1); expected an object"),
    ("text", "expected a list or an object"), ('[{"text": "\\ud800"}]', "half of a surrogate pair"), ("", "holds no rows"),
    ("[" * 100_000, "broken JSON"), ('[{"text" "a"}]', "broken JSON"),
])
def test_broken_json(table, text, said):
    assert said in refused(table, text, "a.json")


ELEMENT = st.fixed_dictionaries({"text": st.text(st.characters(codec="utf-8"), max_size=50),
                                 "n": st.integers() | st.floats(allow_nan=False, allow_infinity=False)})


@given(st.lists(ELEMENT, max_size=5), st.sampled_from([None, 1]), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_json_is_the_same_whatever_the_chunks(rows, indent, chunk):
    from luthier.techniques.data import read_json

    class Short(io.StringIO):
        def read(self, size=-1):
            return super().read(min(size, chunk) if size > 0 else size)

    values = read_json._Values(Short(json.dumps(rows, indent=indent)), "x", 10**6)
    assert [element for _, element in read_json._elements(values)] == rows


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


@given(st.lists(st.tuples(CELL.filter(str.strip), CELL.filter(str.strip), CELL), min_size=1, max_size=6),
       st.sampled_from([",", ";", "\t", "|"]), st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
@settings(max_examples=60, deadline=None)
def test_what_is_written_as_csv_is_read(tmp_path_factory, rows, delimiter, encoding):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows([("question", "answer", "note"), *rows])
    found = list(ReadTable(delimiter=delimiter, near_rows=0).apply(iter([SourceFile("a.csv", str(path))]), QUIET))
    assert [(r.part("question"), r.answer, r.meta["note"]) for r in found] == rows


def harmed(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        where = rng.randrange(len(made))
        match rng.randrange(4):
            case 0:
                made[where] = rng.randrange(256)
            case 1:
                del made[where:where + rng.randint(1, 30)]
            case 2:
                made[where:where] = rng.randbytes(rng.randint(1, 8))
            case _:
                made = made[:max(1, where)]
        if not made:
            made = bytearray(b"\0")
    return bytes(made)


@pytest.mark.parametrize("count", [60, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.json", "a.jsonl", "a.parquet", "a.arrow", "a.csv.gz", "a.parquet.gz"])
def test_damaged_files_are_read_or_refused(tmp_path, name, count):
    data = written(ROWS, "." + name.split(".")[1])
    data = gzip.compress(data, mtime=0) if name.endswith(".gz") else data
    rng = random.Random(name)
    file = SourceFile(name, str(tmp_path / name))
    for number in range(count):
        (tmp_path / name).write_bytes(harmed(data, rng))
        try:
            list(reader(name)(near_rows=0).apply(iter([file]), QUIET))
        except UserError as error:
            assert name in str(error), number


# --- folders of Parquet files ----------------------------------------------------------------------------------------


def folder(tmp_path, *names: str):
    """A folder of Parquet files of two rows each, numbered along."""
    made = tmp_path / "shards"
    made.mkdir()
    for n, name in enumerate(names):
        part = [{"question": f"What is {2 * n + i}?", "answer": str(2 * n + i)} for i in range(2)]
        (made / name).write_bytes(written(part, ".parquet"))
    return made


def test_a_folder_of_parquet_files_is_read_in_the_order_of_names(tmp_path):
    made = folder(tmp_path, "b.parquet", "a.parquet")
    (made / "_SUCCESS").touch()
    (made / ".hidden.crc").touch()
    file = SourceFile("shards", str(made))
    rows = list(ReadTable().apply(iter([file]), QUIET))
    assert [r.answer for r in rows] == ["2", "3", "0", "1"] and [r.id for r in rows][-1] == "shards:4"
    assert ReadTable().count_rows(file) == ReadTable(kind="parquet").count_rows(file) == 4
    assert list(ReadTable(kind="parquet").rows(file)) == list(ReadTable().rows(file))


def test_a_folder_streams(tmp_path):
    """The first row is there before the second file is opened."""
    made = folder(tmp_path, "a.parquet", "b.parquet")
    (made / "b.parquet").write_bytes(b"damaged")
    rows = ReadTable().rows(SourceFile("shards", str(made)))
    assert [next(rows).row["answer"] for _ in range(2)] == ["0", "1"]
    with pytest.raises(UserError, match=r"b\.parquet can't be read"):
        next(rows)


@pytest.mark.parametrize(("names", "said"), [
    (("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"), ""),
    (("train-00000-of-00002.parquet",), "says that there are 2 files, and 1 are there"),
    (("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"), r"several splits \(test, train\)"),
])
def test_names_of_parts_are_believed(tmp_path, names, said):
    file = SourceFile("shards", str(folder(tmp_path, *names)))
    if not said:
        assert ReadTable().count_rows(file) == 4
        return
    for look in (lambda: list(ReadTable().rows(file)), lambda: ReadTable().count_rows(file)):
        with pytest.raises(UserError, match=said):
            look()
