"""question-writer: layouts of question sets, the form that few-shot asks in, and the tuned model as a writer."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from luthier.core.artifact import open_artifact, seal
from luthier.core.errors import UserError
from luthier.core.example import Passage
from luthier.core.files import write_rows
from luthier.core.recipe import load_recipe
from luthier.pipelines import jobs
from luthier.pipelines.steps.synthesize import Synthesize
from luthier.pipelines.steps.writer_rows import WriterRows
from luthier.techniques.data.few_shot import _WRITTEN, asking

FLAT = [{"context": f"The valve {i} stops the water.", "question": f"What does valve {i} stop?", "answer": "the water"}
        for i in range(30)]
NESTED = {"data": [{"paragraphs": [{"context": r["context"], "qas": [
    {"question": r["question"], "answers": [{"text": r["answer"], "answer_start": 0}]}]} for r in FLAT]}]}


def lines(rows: list[dict]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


LAYOUTS = {
    "rows.jsonl": lines(FLAT), "list.json": json.dumps(FLAT).encode(), "squad.json": json.dumps(NESTED).encode(),
    "list.json.gz": gzip.compress(json.dumps(FLAT).encode()),
    "sets.jsonl": lines([{"passage": r["context"], "question": r["question"], "answers": {"text": [r["answer"]],
                          "answer_start": [0]}} for r in FLAT]),
}


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_every_layout_gives_the_same_rows_in_the_form_that_few_shot_asks(name, tmp_path, make_ctx):
    (tmp_path / name).write_bytes(LAYOUTS[name])
    step = WriterRows(path=str(tmp_path / name))
    step.check()
    made = step.run({}, make_ctx("rows"))
    rows = list(made.examples("all"))
    assert len(rows) == 30 and len({r.cluster for r in rows}) == 30
    assert rows[3].turns[0].text == asking(Passage("", FLAT[3]["context"], "", ""))
    match = _WRITTEN.match(rows[3].answer)
    assert (match["question"].strip(), match["answer"]) == (FLAT[3]["question"], "the water")
    assert step.receipts({}, made, None)[0].verdict == "agrees"


@pytest.mark.parametrize(("name", "content"), [
    ("a.jsonl", b'{"question": "x?"}\n'), ("a.json", b"[1]"), ("a.json", b"{"), ("a.json.gz", b"no"), ("a.jsonl", b"")])
def test_bad_files_are_refused_with_the_layouts(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="A question set is rows with question"):
        WriterRows(path=str(tmp_path / name)).check()


def test_the_recipe_tunes_a_writer_that_synthesize_uses(tmp_path: Path, make_ctx, pico):
    (tmp_path / "rows.jsonl").write_bytes(LAYOUTS["rows.jsonl"])
    recipe = load_recipe("question-writer").edit(**{
        "base.model": "pico", "rows.path": str(tmp_path / "rows.jsonl"), "tuned.length": {"steps": 2}})
    jobs.run(recipe, tmp_path / "run", exact=True)
    tuned = open_artifact(tmp_path / "run" / "steps" / "tuned")
    page = Passage("d:0", FLAT[0]["context"], "d", "s")
    write_rows(tmp_path / "documents" / "passages", [page.to_dict()])
    documents = seal("documents", tmp_path / "documents")
    step = Synthesize(sources=("few-shot:shots=0,min_words=1",), filters=())
    with pytest.raises(UserError, match="No question is left"):  # two steps teach pico nothing
        step.run({"documents": documents, "writer": pico, "tuned-writer": tuned}, make_ctx("with"))
    with pytest.raises(UserError, match="tuned-writer needs its base"):
        step.run({"documents": documents, "tuned-writer": tuned}, make_ctx("without"))
