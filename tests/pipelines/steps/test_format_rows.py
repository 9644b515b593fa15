"""format-rows: each format of the sections that may be learned, none of those that are tested; the recipe that compares."""

from __future__ import annotations

import pytest

from luthier.core.artifact import Artifact, seal, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Passage, question
from luthier.core.files import write_rows
from luthier.pipelines import jobs
from luthier.pipelines.steps.format_rows import FormatRows

TOPICS = "clamp glue plane wood string varnish peg nut bridge scroll".split()
PASSAGES = [Passage(f"d:{t}", f"The {t} of the maker is kept on shelf {i}.\nIt was made in the year {1700 + i}.", "d", f"d#{t}",
                    ("Guide", t)) for i, t in enumerate(TOPICS)]


@pytest.fixture
def inputs(tmp_path) -> dict[str, Artifact]:
    """Documents of ten sections, and questions that keep two of them unseen and one for dev."""
    folder = tmp_path / "documents"
    write_rows(folder / "passages", (p.to_dict() for p in PASSAGES))
    (folder / "licenses").mkdir()
    asked = {t: question(t, f"Where is the {t}?", "on a shelf", cluster=f"d#{t}") for t in TOPICS}
    rows = {"train": [asked["clamp"]], "dev": [asked["glue"]], "unseen": [asked["peg"], asked["nut"]]}
    return {"documents": seal("documents", folder, passages=len(PASSAGES)), "examples": write_examples(tmp_path / "rows", rows)}


@pytest.mark.parametrize("name", ["paragraphs", "keywords-paragraph"])
def test_rows_are_of_the_sections_that_may_be_learned(inputs, make_ctx, name):
    step, ctx = FormatRows(format=name), make_ctx("made", inputs)
    made = step.run(inputs, ctx)
    assert {n: {e.cluster for e in made.examples(n)} for n in made.subsets} == {
        "dev": {"d#glue"}, "train": {f"d#{t}" for t in TOPICS} - {"d#glue", "d#peg", "d#nut"}}
    assert {e.meta["generator"] for e in made.examples("train")} == {name}
    assert [r.verdict for r in step.receipts(inputs, made, ctx)] == ["agrees", "agrees"]
    tested = {"unseen": [question("q", "?", "a", cluster="d#clamp")]}
    leaky = {**inputs, "examples": write_examples(ctx.folder / "other", tested)}
    assert [r.verdict for r in step.receipts(leaky, made, ctx)] == ["agrees", "differs"]


def test_words_of_unseen_sections_are_not_even_counted(inputs, make_ctx):
    """A word is common or rare among the passages that are learned: with the two hidden ones `shelf 3` would weigh more."""
    (row,) = (r for r in FormatRows(format="keywords-paragraph").run(inputs, make_ctx("k")).examples("train")
              if r.cluster == "d#wood")
    assert row.turns[0].text == "Section: Guide / wood\nKeywords: wood\nParagraph:"
    alone = [Passage("d:x", "Peg and nut are words of the unseen sections: peg, nut.", "d", "d#x", ("Guide",)), *PASSAGES]
    write_rows(make_ctx("more").folder / "passages", (p.to_dict() for p in alone))
    more = {**inputs, "documents": seal("documents", make_ctx("more").folder, passages=11)}
    made = FormatRows(format="keywords-paragraph").run(more, make_ctx("l"))
    rows = {r.cluster: r.turns[0].text for r in made.examples("train")}
    assert "Keywords: peg, nut, " in rows["d#x"], "they are as rare as if their own sections were not there"


def test_a_format_without_its_writer_or_without_rows_is_refused(inputs, make_ctx):
    with pytest.raises(UserError, match=r"The format few-shot needs a writer: .*\{writer: base\}"):
        FormatRows(format="few-shot").run(inputs, make_ctx("a"))
    with pytest.raises(UserError, match="code-summaries makes no training row of these documents; the first reason: no whole"):
        FormatRows(format="code-summaries").run(inputs, make_ctx("b"))


def test_the_recipe_compares_the_formats_at_equal_steps():
    made = jobs.adapt(["docs"], recipe="enterprise", questions="mine.jsonl")
    steps = {n.name: n for n in made.nodes}
    fits = {n: node.step for n, node in steps.items() if node.step.info.name == "fit"}
    assert {n: [(t.data, t.objective.info.name) for t in f.tasks] for n, f in fits.items()} == {
        "tuned-paragraphs": [("paragraphs.train", "pretrain")], "tuned": [("examples.train", "supervised")],
        "tuned-keywords": [("keywords.train", "supervised")],
        "tuned-both": [("examples.train", "supervised"), ("paragraphs.train", "pretrain")]}
    assert {f.length.steps for f in fits.values()} == {60} and len({f.batch_rows for f in fits.values()}) == 1
    arms = {node.step.arm: node.inputs for node in steps.values() if node.step.info.name == "evaluate"}
    assert {a: i.get("tuned") for a, i in arms.items()} == {
        "base": None, "paragraphs": "tuned-paragraphs", "questions": "tuned", "keywords": "tuned-keywords",
        "paragraphs+questions": "tuned-both"}
    assert {i["examples"] for i in arms.values()} == {"split"} and steps["split"].inputs["test"] == "test"
    assert len(steps["comparison"].inputs) == 5


@pytest.mark.slow
def test_the_recipe_runs_from_documents_to_its_comparison(tmp_path):
    from luthier.core.files import read_json
    from tests.cli.conftest import write_manual

    recipe = jobs.adapt([str(write_manual(tmp_path / "manual"))], recipe="enterprise").edit(**{
        "base.model": "pico", "questions.sources": ["headings"], "questions.filters": ["self-contained", "distinct"],
        **{f"{n}.length": {"steps": 2} for n in ("tuned", "tuned-paragraphs", "tuned-keywords", "tuned-both")}})
    run = jobs.run(recipe, tmp_path / "run", exact=True)
    table = read_json(run.step("comparison").folder / "table.json")
    assert {t["arm"] for t in table} == {"base", "paragraphs", "questions", "keywords", "paragraphs+questions"}
    assert {"f1", "exact-match"} <= {t["metric"] for t in table} and (run.folder / "report.html").exists()
