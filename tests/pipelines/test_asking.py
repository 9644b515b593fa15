"""asking: the arm answers as it was evaluated, and says which passages it was shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.citing import ABSTENTION
from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.core.recipe import Recipe
from luthier.core.run import Run
from luthier.engine import generation
from luthier.engine.executor import execute
from luthier.engine.generation import Generated
from luthier.pipelines.asking import Asker, arms, ask

PARTS = "clamp glue plane wood string varnish peg nut bridge scroll".split()
ARM = {"use": "evaluate", "shots": [2], "decoder": "greedy:max_new_tokens=6", "sets": ["unseen"]}
STEPS: dict[str, Any] = {
    "base": {"use": "base", "model": "pico"}, "encoder": {"use": "base", "model": "pico-encoder"},
    "documents": {"use": "ingest", "paths": []},
    "index": {"use": "index", "inputs": {"documents": "documents", "encoder": "encoder"}},
    "questions": {"use": "synthesize", "sources": ["headings"], "inputs": {"documents": "documents"}},
    "split": {"use": "split", "inputs": {"questions": "questions"}},
    "plain": {**ARM, "arm": "base", "inputs": {"base": "base", "examples": "split"}},
    "reads": {**ARM, "arm": "base+retrieval", "passages": 2, "stops": ["newline"],
              "instructions": ["Answer from the passages."],
              "inputs": {"base": "base", "examples": "split", "index": "index", "encoder": "encoder"}},
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """An engine of its own sets the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(engine, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("asking")
    (folder / "docs").mkdir()
    for part in PARTS:
        text = (f"# Parts\n\n## The {part}\n\nThe use of it is told in the book of the {part}.\n\n"
                f"A {part} is a thing that {part}s of old makers have.\n")
        (folder / "docs" / f"{part}.md").write_text(text)
    steps = {**STEPS, "documents": {**STEPS["documents"], "paths": [str(folder / "docs")]}}
    return execute(Recipe({"name": "asking", "seed": 3, "steps": steps}), folder / "run", engine)


@pytest.fixture
def prompts(monkeypatch) -> list[str]:
    """The prompts that a model was given, as text."""
    heard, whole = [], generation.generate

    def listen(models: Any, asked: Any, *args: Any, **rest: Any) -> Any:
        heard.extend(models["policy"].tokenizer.decode(p) for p in asked)
        return whole(models, asked, *args, **rest)

    monkeypatch.setattr(generation, "generate", listen)
    return heard


@pytest.mark.parametrize(("arm", "step"), [("base", "plain"), ("base+retrieval", "reads")])
def test_an_arm_answers_as_it_was_evaluated(run, arm, step):
    rows = read_lines(run.step(step).folder / "predictions.jsonl")
    for row in rows:
        said = ask(run, row["question"], arm=arm)
        assert (said["answer"], said["stopped"]) == (row["text"], row["stopped"])
        assert [p["id"] for p in said["passages"]] == row["passages"]
    assert len(rows) >= 2 and len(arms(run)) == 2


def test_solved_examples_are_shown_as_in_the_evaluation(run, prompts):
    ask(run, "What is a peg?", arm="base")
    ask(run, "What is a peg?", arm="base+retrieval")
    plain, reads = prompts
    assert plain.count("Question: ") == reads.count("Question: ") == 3
    assert plain.endswith("Question: What is a peg?\nAnswer:") and reads.endswith("Question: What is a peg?\nAnswer:")
    assert "Passage: " not in plain and reads.count("Passage: ") == 4
    assert reads.startswith("<bos>Answer from the passages.\n\nPassage: ")


def test_passages_are_cited_with_document_headings_and_excerpt(run):
    said = ask(run, "What is said in the book of the varnish?")
    assert said["arm"] == "base+retrieval" and len(said["passages"]) == 2 and said["seconds"] > 0
    found = {p.id: p for p in run.step("documents").passages()}
    for cited in said["passages"]:
        passage = found[cited["id"]]
        assert (cited["document"], tuple(cited["headings"])) == (passage.document, passage.headings)
        assert cited["excerpt"] == " ".join(passage.text.split())
        assert passage.line and cited["place"] == f"{passage.document}, line {passage.line}"


def test_fewer_and_no_passages_may_be_shown(run, prompts):
    assert len(ask(run, "What is a peg?", passages=1)["passages"]) == 1
    assert ask(run, "What is a peg?", passages=0)["passages"] == []
    assert [p.rpartition("Answer: ")[2].count("Passage: ") for p in prompts] == [1, 0]


def test_another_decoder_may_answer(run):
    assert ask(run, "What is a peg?", arm="base", decoder="greedy:max_new_tokens=1")["answer"] != \
        ask(run, "What is a peg?", arm="base", decoder="greedy:max_new_tokens=9")["answer"]


def test_an_unknown_arm_is_refused_with_the_nearest(run):
    with pytest.raises(UserError, match=r"no arm 'base\+retreival'. Did you mean 'base\+retrieval'\?"):
        ask(run, "Who?", arm="base+retreival")


def test_passages_of_an_arm_that_shows_none_are_refused(run):
    with pytest.raises(UserError, match="Arm 'base' shows no passages"):
        ask(run, "Who?", arm="base", passages=2)


def test_a_run_without_a_finished_arm_is_refused(run, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("recipe.yaml", "run.json"):
        (tmp_path / "run" / name).write_text((Path(run.folder) / name).read_text())
    with pytest.raises(UserError, match="no finished arm yet"):
        ask(Run.open(tmp_path / "run"), "Who?")


def test_what_is_cited_is_shown_with_its_sentence_and_place(run, monkeypatch):
    monkeypatch.setattr(generation, "generate", lambda models, asked, *args, **rest: [
        Generated("a thing that pegs of old makers [1, 7]", 9, True, len(p)) for p in asked])
    said = ask(run, "What is a peg of old makers?")
    assert said["answer"] == "a thing that pegs of old makers"
    (cited,) = said["citations"]  # no passage has the number 7
    shown = said["passages"][0]
    assert (cited["number"], cited["id"], cited["document"]) == (1, shown["id"], shown["document"])
    assert cited["sentence"] and cited["sentence"] in shown["excerpt"] and {"page", "line"} <= cited.keys()


def test_where_nothing_is_found_the_answer_says_so_without_a_model(run, prompts, monkeypatch):
    monkeypatch.setattr(Asker, "_search", lambda self, step, text, inputs, ctx: [])
    said = ask(run, "What is a peg?", arm="base+retrieval")
    assert said["answer"] == ABSTENTION and said["passages"] == said["citations"] == [] and prompts == []
