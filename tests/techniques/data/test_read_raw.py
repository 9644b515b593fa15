"""Raw files: nothing lost, cut at blank lines only."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import UserError
from luthier.core.example import SourceFile
from luthier.techniques.data.read_raw import ReadRaw


def texts(path, **fields):
    return ReadRaw(**fields).texts(SourceFile(path.name, str(path)))


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.text("ab c\t", min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=12),
       size=st.integers(1, 60))
def test_the_texts_joined_are_the_file(tmp_path_factory, parts, size):
    path = tmp_path_factory.mktemp("raw") / "a.txt"
    path.write_text("\n\n".join(parts))
    found = texts(path, text_characters=size)
    assert "\n\n".join(found) == "\n\n".join(parts)
    assert all(len(t) >= size for t in found[:-1])
    reader = ReadRaw(text_characters=size)
    assert reader.count(SourceFile("a.txt", str(path))) == sum(len("".join(t.split())) for t in found)


def test_a_heading_stays_with_what_follows(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("# One\n\nfirst text\n\n# Two\n\n    indented\n")
    assert texts(path, text_characters=5) == ["# One\n\nfirst text", "# Two\n\n    indented"]


def test_texts_are_examples_to_be_read_on(tmp_path, ctx):
    path = tmp_path / "a.txt"
    path.write_text("one\n\ntwo")
    one, two = ReadRaw(text_characters=1).apply(iter([SourceFile("a.txt", str(path))]), ctx)
    assert (one.id, one.task, one.part("text"), one.source) == ("a.txt:1", "text", "one", "a.txt")
    assert one.cluster != two.cluster and not any(t.target for t in one.turns)


@pytest.mark.parametrize(("data", "said"), [(b" \n", "can't be read as text: empty"), (b"a\0b", "not text")])
def test_files_without_text_are_refused(tmp_path, data, said):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    with pytest.raises(UserError, match=said):
        texts(path)
