"""Files are whole or absent: torn journals, full disks, rows that come back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core import files
from luthier.core.files import (
    Growing,
    Journal,
    commit_folder,
    grown,
    json_lines,
    read_json,
    read_lines,
    read_rows,
    write_atomic,
    write_json,
    write_lines,
    write_rows,
)

text = st.text(st.characters(codec="utf-8"), max_size=12)
scalars = st.none() | st.booleans() | st.integers(-2**63, 2**63 - 1) | st.floats(allow_nan=False) | text
nested = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(text, v, max_size=3), max_leaves=5)
names = ("a", "b", "c")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.fixed_dictionaries({n: nested for n in names}), max_size=9), shard=st.integers(1, 4))
def test_rows_come_back(tmp_path_factory, rows, shard):
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "SHARD_ROWS", shard)
        assert write_rows(folder, iter(rows)) == len(rows)
    back = list(read_rows(folder))
    assert back == rows
    assert [{n: type(v) for n, v in r.items()} for r in back] == [{n: type(v) for n, v in r.items()} for r in rows]
    assert len(list(folder.glob("*.arrow"))) == max(1, -(-len(rows) // shard))


def test_a_missing_key_comes_back_as_none(tmp_path):
    write_rows(tmp_path, [{"a": 1}, {"b": "x"}])
    assert list(read_rows(tmp_path)) == [{"a": 1, "b": None}, {"a": None, "b": "x"}]


def test_fewer_rows_leave_no_old_shard_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SHARD_ROWS", 2)
    write_rows(tmp_path, ({"i": i} for i in range(7)))
    write_rows(tmp_path, ({"i": i} for i in range(3)))
    assert [r["i"] for r in read_rows(tmp_path)] == [0, 1, 2]


def test_any_arrow_reader_opens_the_rows(tmp_path):
    import pyarrow as pa

    write_rows(tmp_path, [{"id": "a", "n": 1, "deep": {"x": [1]}}])
    with pa.memory_map(str(tmp_path / "rows-00000.arrow")) as source:
        assert pa.ipc.open_file(source).read_all().to_pylist() == [{"id": "a", "n": 1, "deep": '{"x": [1]}'}]


# --- journal -------------------------------------------------------------------------------------------------------

def test_a_journal_computes_once(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    assert journal.do("a", lambda: {"x": (1, 2)}) == {"x": [1, 2]}
    assert journal.do("a", lambda: pytest.fail("made again")) == {"x": [1, 2]}
    assert "a" in journal and "b" not in journal
    assert Journal(tmp_path / "j.jsonl").values == {"a": {"x": [1, 2]}}


@pytest.mark.parametrize("torn", [b'{"key": "c", "va', b'{"key": "c", "value": 3}', b"\x00\x00\x00", b"{not json}\n"])
def test_a_torn_last_line_is_cut_and_the_rest_kept(tmp_path, torn):
    path = tmp_path / "j.jsonl"
    journal = Journal(path)
    journal.put("a", 1)
    journal.put("b", "zwölf\u2028lines")
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    again = Journal(path)
    assert again.values == {"a": 1, "b": "zwölf\u2028lines"} and path.read_bytes() == whole
    again.put("c", 4)
    assert Journal(path).values == {"a": 1, "b": "zwölf\u2028lines", "c": 4}


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 200))
def test_a_journal_cut_anywhere_keeps_its_first_lines(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    journal = Journal(path)
    for i in range(4):
        journal.put(f"k{i}", [i])
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    kept = whole[:cut].count(b"\n")
    assert Journal(path).values == {f"k{i}": [i] for i in range(kept)}


# --- whole or absent -----------------------------------------------------------------------------------------------

FULL_DISK = """
import resource, sys, signal
from pathlib import Path
from luthier.core.files import write_atomic, Journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
folder = Path(sys.argv[1])
journal = Journal(folder / "j")
for write in (lambda: write_atomic(folder / "file", "x" * 5000), lambda: journal.put("b", "y" * 5000)):
    try:
        write()
    except OSError as error:
        print(error.errno)
journal.put("c", 3)
"""


def test_a_full_disk_leaves_the_old_file(tmp_path):
    import errno

    write_atomic(tmp_path / "file", "old\n")
    Journal(tmp_path / "j").put("a", 1)
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=60,
                          env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin"})
    assert done.stdout.split() == [str(errno.EFBIG)] * 2, done.stderr
    assert (tmp_path / "file").read_text() == "old\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "j"], "nothing half-written is left"
    assert Journal(tmp_path / "j").values == {"a": 1, "c": 3}


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomic(path, "old")
    monkeypatch.setattr(files.os, "replace", lambda a, b: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_lines_and_json_come_back(tmp_path):
    rows = [{"a": "one\u2028two\nthree"}, {"b": None}]
    assert write_lines(tmp_path / "x/lines.jsonl", iter(rows)) == 2
    assert read_lines(tmp_path / "x/lines.jsonl") == rows and read_lines(tmp_path / "none") == []
    write_json(tmp_path / "v.json", {"ü": [1.5]})
    assert read_json(tmp_path / "v.json") == {"ü": [1.5]}


def test_a_committed_folder_replaces_the_old_one(tmp_path: Path):
    for name, content in (("work", "new"), ("final", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(content)
    commit_folder(tmp_path / "work", tmp_path / "final")
    assert (tmp_path / "final/x").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["final"]


def test_json_lines_are_numbered_and_broken_ones_named():
    problems: list[str] = []
    found = list(json_lines('{"a": 1}\n\n[2\n  3\n"x\u2028y"\n' + "[" * 100_000, problems))
    assert found == [(1, {"a": 1}), (4, 3), (5, "x\u2028y")]
    assert [p.split(" (")[0] for p in problems] == ["line 3: broken JSON", "line 6: broken JSON"]


def test_a_file_that_grows_is_read_up_to_its_last_whole_line_and_begun_anew(tmp_path):
    path = tmp_path / "curve.jsonl"
    assert grown(path) == []
    growing = Growing(path, [{"step": 1}])
    growing.add({"step": 2})
    assert grown(path) == [{"step": 1}, {"step": 2}], "before it is closed"
    growing.close()
    with path.open("a") as file:
        file.write('{"step": 3, "lo')
    assert grown(path) == [{"step": 1}, {"step": 2}]
    Growing(path, [{"step": 1}]).close()
    assert read_lines(path) == grown(path) == [{"step": 1}]
