"""Source code: joined sections are the file, headings the path, marks the lines; damaged files neither crash nor hang."""

import random
import time

import pytest

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Document, Dropped, SourceFile
from luthier.techniques.data import _trees
from luthier.techniques.data.read_code import ReadCode

pytest.importorskip("tree_sitter", reason="pip install 'luthier[code]'")

PYTHON = '''#!/usr/bin/env python
"""A shop of books."""

import os  # said

# What a shelf is made of.
WOOD = "oak"


class Shelf(Base):
    """Holds books."""

    size = 3

    # Books come here.
    @cached
    def add(self, book: str,  # its title
            where: int = 3) -> int:
        """Put a book on the shelf."""
        def inner():
            return "Käthe"
        return inner()

    class Row:
        pass


async def main(): pass
'''
FILES = {
    "p.py": PYTHON,
    "p.js": "/** doc */\nexport class A extends B {\n  f(a) { return a }\n}\nconst g = async (x) => { return x };\nlet n = 1;\n"
            "export default function h(a=1) {}\n",
    "p.ts": "interface A { b: string }\nexport abstract class Q<T> extends B {\n  f(a: T): void { return }\n}\n"
            "namespace N { export function z() {} }\n",
    "p.tsx": "export function App(): JSX.Element {\n  return <b>x</b>;\n}\n",
    "p.java": "/** d */\npublic class A extends B {\n  /** m */\n"
              "  @Override\n  public int f(int a) throws E { return a; }\n  A() {}\n}\n",
    "p.go": "package p\n\n// F doubles.\nfunc F(a int) int { return 2 * a }\n\nfunc (s *S) G() {}\n\ntype S struct { a int }\n",
    "p.rs": "//! top\n\n"
            "/// doc\n#[inline]\npub fn f(a: i32) -> i32 { a }\nimpl A for B {\n    fn g(&self) {}\n}\nmod m { fn h() {} }\n",
    "p.c": "#include <a.h>\n/* doc */\nint f(int a) {\n  return a;\n}\nstruct S { int a; };\nint x;\n",
    "p.cpp": "template<class T> class A : B {\npublic:\n  int f(int a) { return a; }\n};\nint A::g() { return 1; }\n"
             "namespace n {\nvoid h() {}\n}\n",
    "p.rb": "# doc\nclass A < B\n  # x\n  def f(a, b=1)\n    1\n  end\n  def self.g; end\nend\n",
    "p.sh": "#!/bin/sh\n# doc\nf() { echo 1; }\nfunction g { echo; }\necho 2\n",
    "p.sql": "-- doc\nCREATE TABLE a (b int);\nSELECT 1;\n"
             "CREATE FUNCTION f(a int) RETURNS int AS $$ SELECT a $$ LANGUAGE sql;\n",
}
HEADINGS = {
    "p.py": ["p", "p", "class Shelf(Base)", "add(self, book: str, where: int = 3) -> int", "class Row", "main()"],
    "p.js": ["class A extends B", "f(a)", "const g = async (x)", "p.js", "h(a=1)"],
    "p.ts": ["interface A", "abstract class Q<T> extends B", "f(a: T): void", "namespace N"],
    "p.tsx": ["App(): JSX.Element"],
    "p.java": ["public class A extends B", "@Override public int f(int a) throws E", "A()"],
    "p.go": ["p.go", "F(a int) int", "(s *S) G()", "type S struct"],
    "p.rs": ["p.rs", "pub f(a: i32) -> i32", "impl A for B", "g(&self)", "mod m"],
    "p.c": ["p.c", "int f(int a)", "struct S", "p.c"],
    "p.cpp": ["class A : B", "int f(int a)", "int A::g()", "namespace n", "void h()"],
    "p.rb": ["class A < B", "f(a, b=1)", "self.g"],
    "p.sh": ["f()", "g", "p.sh"],
    "p.sql": ["CREATE TABLE a (b int)", "p.sql", "CREATE FUNCTION f(a int) RETURNS int"],
}


def joined(document: Document) -> str:
    return "".join("".join(s.text.split()) for s in document.sections)


def right_lines(document: Document, text: str) -> bool:
    """Every marked line of every section is that line of the file."""
    lines = text.split("\n")
    return all(s.text[character - 1:].split("\n")[0] in lines[line - 1]
               for s in document.sections for character, _, line in s.marks)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.oracle(seed=126, clause=1, against="the file's own letters")
def test_joined_sections_are_the_file(read, name):
    for class_lines in (1, 3, 400):
        document = read(ReadCode(class_lines=class_lines), FILES[name], name)
        assert joined(document) == "".join(FILES[name].split())
        assert right_lines(document, FILES[name])


@pytest.mark.parametrize("name", FILES)
def test_headings_are_the_path_of_signatures(read, name):
    document = read(ReadCode(class_lines=1), FILES[name], name)
    assert [s.headings[-1] for s in document.sections] == HEADINGS[name]
    assert {s.headings[0] for s in document.sections} == {document.title}


def test_python_by_hand(read):
    document = read(ReadCode(class_lines=5), PYTHON, "shop/books/__init__.py".replace("/", "_"))
    assert [len(s.headings) for s in document.sections] == [1, 1, 2, 3, 3, 2]
    doc, code, head, method, row, main = document.sections
    assert doc.text == '#!/usr/bin/env python\n"""A shop of books."""'
    assert code.text.startswith("import os") and code.text.endswith('WOOD = "oak"') and code.marks[0] == (1, 0, 4)
    assert head.text.endswith("size = 3") and head.marks[0] == (1, 0, 10)
    assert method.text.startswith("    # Books come here.\n    @cached") and method.marks[3] == (78, 0, 18)
    assert row.text == "    class Row:\n        pass" and main.text == "async def main(): pass"
    whole = read(ReadCode(), PYTHON, "p.py")
    assert [s.headings[1:] for s in whole.sections] == [(), (), ("class Shelf(Base)",), ("main()",)]


def test_modules_are_named_by_their_folders():
    from luthier.techniques.data._languages import BY_SUFFIX
    from luthier.techniques.data.read_code import module_name

    assert module_name("shop/shelf.py", BY_SUFFIX[".py"]) == "shop.shelf"
    assert module_name("shop/__init__.py", BY_SUFFIX[".py"]) == "shop"
    assert module_name("__init__.py", BY_SUFFIX[".py"]) == "__init__"
    assert module_name("web/a.js", BY_SUFFIX[".js"]) == "web/a.js"


def test_broken_syntax_is_counted_and_kept_or_named(read, log):
    document = read(ReadCode(), PYTHON + "\ndef broken(:\n    return ]\n\ndef good(a):\n    return a\n", "p.py")
    assert joined(document).endswith("defgood(a):returna")
    assert len(log) == 1 and "p.py: " in log[0] and "syntax errors" in log[0]
    row = read(ReadCode(), "%%% {{{ ((( ]]] @@@ === !!! ??? \n" * 30, "p.go")
    assert isinstance(row, Dropped) and row.reason == "syntax errors" and "read as go" in row.detail


@pytest.mark.parametrize(("content", "reason"), [
    ("x = '" + "a" * 3000 + "'\n", "generated or minified"),
    ("// Code generated by protoc. DO NOT EDIT.\npackage p\n", "generated or minified"),
    ("# @generated\nx = 1\n", "generated or minified"),
    (b"\x7fELF\0\0\0\1", "not text"),
    ("# K\xe4the\nx = 1\n".encode("latin-1"), "not text"),
    ("\n \n", "empty"),
    (b"x = 1\n" * 400_000, "too large"),
])
def test_what_is_left_out(read, content, reason):
    row = read(ReadCode(), content, "p.py")
    assert isinstance(row, Dropped) and row.reason == reason, row


def test_without_the_grammars_the_extra_is_named(read, monkeypatch):
    def no_module(name: str):
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    _trees.parser.cache_clear()
    monkeypatch.setattr(_trees, "import_module", no_module)
    with pytest.raises(UserError, match=r"python files need tree_sitter_python.*pip install 'luthier\[code\]'"):
        read(ReadCode(), "x = 1", "p.py")
    monkeypatch.setattr("luthier.techniques.data.read_code.find_spec", lambda name: None)
    assert ReadCode().missing(".py") == "pip install 'luthier[code]'"


def test_fields():
    assert build("data_step", "read-code:class_lines=9").class_lines == 9
    with pytest.raises(UserError, match="broken"):
        build("data_step", "read-code:broken=2")


def damage(data: bytes, rng: random.Random) -> bytes:
    """A file cut off, with bytes changed, pieces doubled, moved or nested."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        a, b = sorted(rng.randrange(len(made) + 1) for _ in range(2))
        kind = rng.randrange(6)
        if kind == 0:
            made = made[:b]
        elif kind == 1:
            made[a:a + 1] = bytes([rng.randrange(256)])
        elif kind == 2:
            made[b:b] = made[a:b]
        elif kind == 3:
            del made[a:b]
        elif kind == 4:
            made[a:a] = rng.choice([b"(", b"{", b'"""', b"class A:\n ", b"/*", b"\\", b"<", b"'", b"#{"]) * rng.randint(1, 300)
        else:
            made = made[b:] + made[:b]
    return bytes(made)


def fuzz(read, number: int) -> None:
    rng = random.Random(number)
    name = rng.choice(sorted(FILES))
    data = damage(FILES[name].encode(), rng)
    began = time.monotonic()
    row = read(ReadCode(class_lines=2, broken=1), data, name)
    assert time.monotonic() - began < 10, (number, name)
    if isinstance(row, Document):
        text = data.decode().removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        assert joined(row) == "".join(text.split()), (number, name)
        assert right_lines(row, text), (number, name)


def test_damaged_files(read):
    for number in range(60):
        fuzz(read, number)


@pytest.mark.slow
def test_ten_thousand_damaged_files(read):
    for number in range(10_000):
        fuzz(read, number)


@pytest.mark.parametrize("text", ["(" * 200_000, "class A:\n class B:\n  pass\n" * 20_000, "{[" * 100_000, "a\n" * 300_000])
@pytest.mark.parametrize("name", ["p.py", "p.cpp", "p.rb", "p.ts"])
@pytest.mark.slow
def test_depth_and_size_do_not_matter(tmp_path, ctx, name, text):
    (tmp_path / name).write_text(text)
    began = time.monotonic()
    (row,) = ReadCode(line_letters=1_000_000).apply(iter([SourceFile(name, str(tmp_path / name))]), ctx)
    assert time.monotonic() - began < 10
    assert isinstance(row, (Document, Dropped))
