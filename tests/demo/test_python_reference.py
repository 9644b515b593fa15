"""The Python reference corpus: its pages are reproducible, and its questions point at what the pages say."""

import hashlib
import importlib.util
import json
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "examples" / "python-reference"
SCRIPT = REPOSITORY / "scripts" / "make_python_reference.py"

PAGES = {path.name: path.read_text("utf-8") for path in sorted((FOLDER / "pages").glob("*.md"))}
QUESTIONS = [json.loads(line) for line in (FOLDER / "questions.jsonl").read_text("utf-8").splitlines()]
ANSWERABLE = [question for question in QUESTIONS if question["set"] != "unanswerable"]

each_question = pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question["id"])
each_answerable = pytest.mark.parametrize("question", ANSWERABLE, ids=lambda question: question["id"])


def files(folder: Path) -> dict[str, Path]:
    """Every file below a folder by its relative name."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def read_blocks(page: str) -> list[tuple[tuple[str, ...], str]]:
    """The paragraphs and code blocks of a page, each with the path of headings above it.

    A `#` inside a fence is a comment, not a heading, and a blank line there does not end the block.
    """
    blocks: list[tuple[tuple[str, ...], str]] = []
    path: list[str] = []
    lines: list[str] = []
    in_fence = False

    def close() -> None:
        if lines:
            blocks.append((tuple(path), "\n".join(lines)))
            lines.clear()

    for line in page.splitlines():
        if line.strip() == "```":
            close()
            in_fence = not in_fence
        elif in_fence:
            lines.append(line)
        elif not line.strip():
            close()
        elif heading := re.match(r"(#+) (.+)", line):
            close()
            path[len(heading[1]) - 1 :] = [heading[2]]
        else:
            lines.append(line)
    close()
    assert not in_fence, "a fence is left open"
    return blocks


BLOCKS = [(name, path, text) for name, page in PAGES.items() for path, text in read_blocks(page)]


def place(question: dict) -> tuple:
    return question["page"], *question["section"]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


@pytest.fixture(scope="module")
def maker():
    """The script as a module. It is no part of the package, so it is loaded from its path."""
    specification = importlib.util.spec_from_file_location("make_python_reference", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up here
    specification.loader.exec_module(module)
    yield module
    del sys.modules[specification.name]


# ---- the questions ------------------------------------------------------------------------------------------------


def test_there_are_enough_questions_of_each_set():
    counts = Counter(question["set"] for question in QUESTIONS)
    assert set(counts) == {"known", "unseen", "unanswerable"}
    assert counts["known"] >= 30 and counts["unseen"] >= 20 and counts["unanswerable"] >= 10


def test_identifiers_and_wordings_are_unique():
    assert len({question["id"] for question in QUESTIONS}) == len(QUESTIONS)
    assert len({tuple(words(question["question"])) for question in QUESTIONS}) == len(QUESTIONS)


def test_questions_are_spread_over_sections_and_held_out_sections_stay_apart():
    known = {place(question) for question in QUESTIONS if question["set"] == "known"}
    unseen = {place(question) for question in QUESTIONS if question["set"] == "unseen"}
    assert len(known) >= 15 and len(unseen) >= 12 and len(known | unseen) >= 25
    assert not known & unseen


@each_question
def test_a_question_has_the_fields_of_its_set(question):
    fields = {"id", "set", "question", "answers", "quote", "page", "section"}
    if question["set"] != "unanswerable":
        assert set(question) == fields
        return
    assert set(question) == fields | {"checked"} and question["checked"]
    assert question["answers"] == [] and question["quote"] == ""
    assert question["page"] is None and question["section"] is None


@each_answerable
def test_a_quote_stands_in_its_section_and_in_no_other(question):
    holders = {(name, *path) for name, path, text in BLOCKS if question["quote"] in text}
    assert holders == {place(question)}


@each_answerable
def test_answers_are_short_and_the_first_is_taken_from_the_quote(question):
    assert question["answers"]
    for answer in question["answers"]:
        assert 1 <= len(answer.split()) <= 8 and words(answer)
    first, quote = words(question["answers"][0]), words(question["quote"])
    assert sum(word in quote for word in first) >= 0.5 * len(first)


# ---- the pages ----------------------------------------------------------------------------------------------------


def test_no_text_is_in_two_pages():
    pages_of: dict[str, set[str]] = {}
    for name, _, text in BLOCKS:
        # A paragraph is the same whether or not it opens a list item; code is compared as it is.
        text = text if "\n" in text else re.sub(r"^\s*(\*|\d+\.) +", "", text).strip()
        if len(text) >= 60:
            pages_of.setdefault(text, set()).add(name)
    assert {text: pages for text, pages in pages_of.items() if len(pages) > 1} == {}


def test_headings_are_nested_and_lead_to_text():
    for name, page in PAGES.items():
        assert page.startswith("# "), name
        held = [path for page_name, path, _ in BLOCKS if page_name == name]
        fenced = re.sub(r"(?ms)^ *```\n.*?^ *```$", "", page)
        levels = [len(marks) for marks in re.findall(r"(?m)^(#+) ", fenced)]
        assert levels[0] == 1 and levels.count(1) == 1, name
        assert all(after - before <= 1 for before, after in pairwise(levels)), name
        prefixes = {path[:depth] for path in held for depth in range(1, len(path) + 1)}
        assert len(prefixes) == len(levels), f"{name}: a heading is repeated or has no text"


def test_the_folder_is_small_and_carries_its_licence():
    assert sum(path.stat().st_size for path in files(FOLDER).values()) < 2_000_000
    assert sum(len(page.encode("utf-8")) for page in PAGES.values()) < 1_200_000
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in (FOLDER / "LICENSE.PSF.txt").read_text("utf-8")
    beside = {"README.md", "LICENSE.PSF.txt", "questions.jsonl"}
    assert set(files(FOLDER)) == {*(f"pages/{name}" for name in PAGES), *beside}


def test_the_script_reproduces_the_folder(maker, tmp_path):
    if sys.version_info[:2] != maker.MINOR_VERSION:
        pytest.skip(f"the pages are those of Python 3.11, this is {sys.version_info.major}.{sys.version_info.minor}")
    from pydoc_data.topics import topics

    readme = (FOLDER / "README.md").read_text("utf-8")
    recorded = re.search(r"`([0-9a-f]{64})`", readme)[1]
    if maker.digest(topics) != recorded:
        pytest.skip("this patch release of Python 3.11 words its topics differently")
    if maker.find_license() is None:
        pytest.skip("this Python was installed without its licence file")

    maker.write(tmp_path)

    written, committed = (
        {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files(folder).items()}
        for folder in (tmp_path, FOLDER)
    )
    del committed["questions.jsonl"]  # written by hand
    if f"CPython {'.'.join(map(str, sys.version_info[:3]))}," not in readme:
        # Same topics in another patch release: README names the release, and the licence counts its years.
        for hashes in (written, committed):
            del hashes["README.md"], hashes["LICENSE.PSF.txt"]
    assert written == committed


def test_the_script_refuses_another_python(maker, tmp_path, monkeypatch):
    monkeypatch.setattr(maker, "MINOR_VERSION", (3, 99))
    with pytest.raises(SystemExit, match=r"the pages are those of 3\.99"):
        maker.write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_one_topic_becomes_one_page(maker):
    """The layout rules on a topic small enough to check by eye."""
    topic = "\n".join(
        [
            'The "spam" statement',
            "********************",
            "",
            '   spam_stmt ::= "spam"',
            "",
            "A wrapped  line with a non-",
            "breaking hyphen:",
            "",
            "   >>> spam",
            "",
            "   # not a heading",
            "",
            "* an item",
            "  of two lines",
            "",
            "Methods",
            "=======",
            "",
            "spam.eat(self)",
            "",
            "   Eat it.",
            "",
            "   Note:",
            "",
            "     Slowly.",
        ]
    )
    assert maker.make_pages({"spam": topic})["spam.md"] == "\n".join(
        [
            '# The "spam" statement',
            "",
            "```",
            'spam_stmt ::= "spam"',
            "```",
            "",
            "A wrapped line with a non-breaking hyphen:",
            "",
            "```",
            ">>> spam",
            "",
            "# not a heading",
            "```",
            "",
            "* an item of two lines",
            "",
            "## Methods",
            "",
            "### spam.eat(self)",
            "",
            "Eat it.",
            "",
            "Note: Slowly.",
            "",
        ]
    )


def test_shared_text_stays_with_the_shortest_topic(maker):
    shared = "This paragraph is shared by both topics and is long enough to be recognised by its text alone."
    topics = {"all": f"All\n***\n\nOnly here.\n\n\nOne\n===\n\n{shared}\n", "one": f"One\n***\n\n{shared}\n"}
    assert maker.make_pages(topics) == {"all.md": "# All\n\nOnly here.\n", "one.md": f"# One\n\n{shared}\n"}
