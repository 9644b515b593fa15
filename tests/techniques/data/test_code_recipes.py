"""Rows from code: what is to be written is the function that was read, and every answer stands in its passage."""

import ast
import inspect
import textwrap

import pytest

from luthier.core.example import Dropped, Example, Passage
from luthier.techniques.data.code_summaries import CodeSummaries
from luthier.techniques.data.signature_questions import SignatureQuestions

SHELF = '''\
class Shelf(Base):
    """Holds books."""

    @cached
    def add(self, book: str, *, where: int = 3) -> "Slot | None":
        """Put a book on the shelf.

        More words.
        """
        note = """kept
  as it is"""  # said
        if not book:
            raise ValueError("no book")
        return self.slots[where]

    def _hidden(self, a, b=1): "Says one short thing."; return b
'''
METHOD = SHELF[SHELF.index("    @cached"):SHELF.index("    def _hidden")].rstrip()


def passage(text: str, *headings: str) -> Passage:
    return Passage("s.py#a:0", text, "s.py", "s.py#a", headings or ("s",), 10)


def made(step, *passages):
    return list(step.apply(iter(passages), None))


def bare(function: ast.AST) -> str:
    """The tree as Python's own parser sees it, without the docstring."""
    if ast.get_docstring(function) is not None:
        function.body = function.body[1:]
    return ast.dump(function)


def in_standard_library():
    """Whole functions of modules that nobody here wrote, as passages, indented where they are methods."""
    for module in (textwrap, inspect, ast):
        text = inspect.getsource(module)
        lines = text.split("\n")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                yield node, passage("\n".join(lines[first - 1:node.end_lineno]), module.__name__)


@pytest.mark.oracle(seed=126, clause=3, against="Python's parser on the module the function came from")
@pytest.mark.parametrize("keep", [False, True])
def test_the_function_to_be_written_is_the_function_that_was_read(keep):
    rows = 0
    for node, code in in_standard_library():
        for row in made(CodeSummaries(keep_docstring=keep), code):
            # The function itself is the first; those within it are not asked for.
            if isinstance(row, Dropped):
                assert row.reason in ("no summary", "nothing but a docstring")
                continue
            rows += 1
            wanted = ast.dump(node) if keep else bare(node)
            assert ast.dump(ast.parse(row.references[0]).body[0]) == wanted
    assert rows > 80


def test_summary_and_target_by_hand():
    (row,) = made(CodeSummaries(), passage(METHOD, "s", "class Shelf(Base)"))
    assert row.part("question") == "Write the Python function Shelf.add: Put a book on the shelf."
    assert row.references[0] == textwrap.dedent('''\
        @cached
        def add(self, book: str, *, where: int = 3) -> "Slot | None":
            note = """kept
          as it is"""  # said
            if not book:
                raise ValueError("no book")
            return self.slots[where]''')
    assert (row.source, row.cluster, row.task) == ("s.py#a:0", "s.py#a", "code")
    rows = made(CodeSummaries(), passage(SHELF, "s", "class Shelf(Base)"))
    assert [r.part("question").split(":")[0] for r in rows] == [
        "Write the Python function Shelf.add", "Write the Python function Shelf._hidden"]
    assert rows[1].references[0] == "def _hidden(self, a, b=1): return b"


def test_summaries_that_are_given_and_what_is_left_out():
    plain = passage("def f(a):\n    return a\n")
    assert [r.reason for r in made(CodeSummaries(), plain)] == ["no summary"]
    (row,) = made(CodeSummaries(summaries={"f": "Gives back what came.\n\nMore."}), plain)
    assert row.part("question").endswith("f: Gives back what came.")
    assert [r.reason for r in made(CodeSummaries(), passage("fn main() {}"), passage('def f():\n    """Only these words."""'))
            ] == ["no whole Python code", "nothing but a docstring"]


@pytest.mark.oracle(seed=126, clause=2, against="string search in passages of the standard library")
def test_every_answer_is_a_substring_of_its_passage():
    rows = 0
    for _, code in in_standard_library():
        for row in made(SignatureQuestions(private=True), code):
            assert isinstance(row, Example) and row.references[0] in code.text
            rows += 1
    assert rows > 200


def test_signature_questions_by_hand():
    rows = made(SignatureQuestions(private=True), passage(SHELF, "s", "class Shelf(Base)"))
    assert [(r.part("question"), r.references[0]) for r in rows] == [
        ("What is the type of the parameter book of Shelf.add?", "str"),
        ("What is the type of the parameter where of Shelf.add?", "int"),
        ("What is the default of the parameter where of Shelf.add?", "3"),
        ("What type does Shelf.add return?", '"Slot | None"'),
        ("Which error does Shelf.add raise?", "ValueError"),
        ("Which parameters does Shelf._hidden take?", "a, b=1"),
        ("What is the default of the parameter b of Shelf._hidden?", "1"),
    ]
    assert len(made(SignatureQuestions(), passage(SHELF))) == 5
    assert [r.reason for r in made(SignatureQuestions(), passage("a b c"))] == ["no whole Python code"]


def test_a_signature_in_other_letters():
    (one, two) = made(SignatureQuestions(), passage('def f(name="Käthe", größe: "mäßig" = 1): pass'))[1:3]
    assert (one.references[0], two.references[0]) == ('"Käthe"', '"mäßig"')
