"""Decoding, refusals of a reader's frame, fenced code, near-duplicate search."""

import os
import random
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.example import Dropped, SourceFile
from luthier.core.identity import hash_file
from luthier.techniques.data._shared import NearTexts, NotRead, decode, fences, near_clusters, shingles, trim
from luthier.techniques.data.read_html import ReadHtml
from luthier.techniques.data.read_markdown import ReadMarkdown
from luthier.techniques.data.read_text import ReadText

GERMAN = "Größe und Maß: fünf Äpfel kosten 3 € – „viel“.\nZweite Zeile.\n"
READERS = [ReadMarkdown(), ReadText(), ReadHtml()]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_encodings(encoding, read):
    document = read(ReadText(), GERMAN.encode(encoding))
    assert document.sections[0].text == GERMAN.strip()


def test_utf16_big_endian(read):
    assert read(ReadText(), b"\xfe\xff" + GERMAN.encode("utf-16-be")).sections[0].text == GERMAN.strip()


def test_latin1_is_read_and_logged(read, log):
    # 0x81 has no letter in cp1252, so this is latin-1.
    document = read(ReadText(), "déjà vu, où ça; \x81".encode("latin-1"))
    assert document.sections[0].text.startswith("déjà vu, où ça")
    assert log == ["page.txt: not UTF-8, read as latin-1"]


@pytest.mark.parametrize(("content", "reason", "detail"), [
    (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "not text", "NUL"),
    (bytes(range(1, 32)) * 20, "not text", "control characters"),
    (random.Random(0).randbytes(4000).replace(b"\0", b"\1"), "not text", "control characters"),
    (("текст " * 50).encode("cp1251"), "not text", "save it as UTF-8"),
    (b"t\0e\0x\0t\0", "not text", "UTF-16"),
    (b"\xff\xfea\0b", "not text", "utf-16"),
    (b"\xef\xbb\xbfab\xff", "not text", "utf-8"),
    (b"", "empty", "0 bytes"),
    (b" \n\t\r\n", "empty", "bytes"),
    (b"\xef\xbb\xbf", "empty", ""),
])
@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.info.name)
def test_what_is_not_text_is_dropped(reader, content, reason, detail, read):
    row = read(reader, content)
    assert isinstance(row, Dropped) and row.id == "page.txt"
    assert row.reason == reason and detail in row.detail


def test_one_long_line_over_the_limit_is_not_opened(tmp_path, ctx):
    path = tmp_path / "huge.txt"
    with path.open("wb") as file:
        file.truncate(200_000_000)
    began = time.monotonic()
    (row,) = ReadText().apply(iter([SourceFile("huge.txt", str(path))]), ctx)
    assert time.monotonic() - began < 0.5
    assert row == Dropped("huge.txt", "too large", "200 MB; max_megabytes is 50")


def test_a_file_that_grows_is_left_out(tmp_path, ctx, monkeypatch):
    path = tmp_path / "grows.txt"
    path.write_text("a" * 3000)
    real = path.stat()
    small = os.stat_result((*real[:6], 10, *real[7:]))
    monkeypatch.setattr(Path, "stat", lambda self, **_: small)
    (row,) = ReadText(max_megabytes=0.002).apply(iter([SourceFile("grows.txt", str(path))]), ctx)
    assert row.reason == "too large"


def test_unreadable_files_are_dropped_with_the_reason(tmp_path, ctx, monkeypatch):
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "closed.txt").write_text("secret")

    real = Path.open

    def refuse(self, *args, **kwargs):
        if self.name == "closed.txt":  # root may open anything, so that chmod alone would not do
            raise PermissionError(13, "Permission denied")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    files = [SourceFile(n, str(tmp_path / n)) for n in ("gone.txt", "pipe.txt", "closed.txt")]
    rows = list(ReadText().apply(iter(files), ctx))
    assert [r.reason for r in rows] == ["unreadable"] * 3
    assert [r.detail for r in rows] == ["No such file or directory", "not a regular file", "Permission denied"]


def test_hash_and_title(read, tmp_path):
    document = read(ReadText(), "Just a line.\n", "note.txt")
    assert document.title == "note.txt"
    assert document.sha256 == hash_file(tmp_path / "note.txt")


@given(st.binary(max_size=400))
def test_decode_never_fails_otherwise(data):
    try:
        text, _ = decode(data)
    except NotRead as why:
        assert why.reason == "not text" and why.detail
    else:
        assert "\0" not in text and "\r" not in text


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])))
def test_decode_inverts_utf8(text):
    assert decode(b"\xef\xbb\xbf" + text.encode()) == (text, "utf-8")


@pytest.mark.parametrize(("text", "expected"), [
    ("a\n```\n# x\n```\nb", [(1, 4)]),
    ("```py\n~~~\n```", [(0, 3)]),
    ("````\n```\n````", [(0, 3)]),
    ("  - item\n    ```\n    code\n    ```", [(1, 4)]),
    ("```\nnever closed\n", [(0, 3)]),
    ("    ```\nnot an opening", []),
    ("a ```inline``` b\n```x``` y", []),
])
def test_fences(text, expected):
    assert fences(text.split("\n")) == expected


def test_fences_are_linear():
    lines = ["    ```x"] * 50_000
    began = time.monotonic()
    assert fences(lines) == []
    assert time.monotonic() - began < 2


def test_trim_keeps_the_first_indent():
    assert trim("\n  \n    code\n\n") == "    code"
    assert trim(" \n\t") == ""


def grams(text: str) -> set[str]:
    words = text.lower().split()
    return {" ".join(words[i:i + 5]) for i in range(len(words) - 4)}


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)


def test_near_texts_equal_brute_force():
    rng = random.Random(3)
    words = [f"w{i}" for i in range(60)]
    texts = []
    for _ in range(20):
        base = [rng.choice(words) for _ in range(60)]
        texts.append(" ".join(base))
        for edits in (1, 2, 4, 8):
            base[rng.randrange(60):][:edits] = []
            base.insert(rng.randrange(len(base)), rng.choice(words))
            texts.append(" ".join(base))
    for threshold in (0.3, 0.8, 1.0):
        near, stored = NearTexts(threshold), []
        for i, text in enumerate(texts):
            found, prepared = near.match(text)
            expected = [(jaccard(grams(text), other), name) for name, other in stored]
            expected = sorted((e for e in expected if e[0] >= threshold), key=lambda e: -e[0])
            assert sorted(found) == sorted(expected)
            assert [s for s, _ in found] == sorted((s for s, _ in found), reverse=True)
            near.add(str(i), prepared)
            stored.append((str(i), grams(text)))


def test_scripts_without_spaces_have_grams():
    assert len(shingles("これは日本語の文章です")) > 3


def test_clusters_are_transitive_and_named_by_the_first():
    words = [f"w{i}" for i in range(100)]
    chain = [" ".join(words[i:i + 60]) for i in (0, 4, 8, 12)]  # neighbours 0.87 alike, the ends 0.65
    rows = [("z", "something else entirely, said only here and nowhere again"),
            ("a", chain[0]), ("c", chain[2]), ("d", chain[3]), ("b", chain[1]), ("e", "  " + chain[3].upper())]
    assert near_clusters(rows) == {"z": "z", "a": "a", "b": "a", "c": "a", "d": "a", "e": "a"}
    assert jaccard(grams(chain[0]), grams(chain[3])) < 0.8


def test_many_rows_of_one_template_stay_fast():
    frame = " ".join(f"word{i}" for i in range(80))
    began = time.monotonic()
    found = near_clusters((str(i), f"{frame} number {i}") for i in range(1500))
    assert set(found.values()) == {"0"}
    assert time.monotonic() - began < 4
