"""The sections on questions that were written and on the retriever that was taken say what the files say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup

from luthier.core.artifact import Artifact, write_examples
from luthier.core.example import Dropped, question
from luthier.core.files import write_json
from luthier.core.finding import Finding
from luthier.core.run import Run
from luthier.pipelines.report import render
from luthier.pipelines.report.data import render as render_data
from luthier.pipelines.report.questions import written
from tests.pipelines.test_report import Synthetic, parsed, part, values, words

YIELDS = {"headings": {"written": 5, "parsed": 5, "distinct": 3}, "few-shot": {"written": 4, "parsed": 1, "distinct": 1}}
QUALITY = {"questions": 4, "relevance": 0.75, "coverage": 0.5, "overlap_kl_nats": 1.25,
           "by": {"relevance": "share of topic words in the passage"}}


def asked(folder: Path, quality: bool = True) -> Artifact:
    """Questions of two generators, five of them left out."""
    own = {"headings": (1.0, True), "few-shot": (0.0, False)}
    rows = [question(f"{g}/p{i}", f"What is {i}?", "it", meta={"generator": g, **({"quality": {
        "relevance": own[g][0], "self_contained": own[g][1], "fluency": 1.0, "detail": 2}} if quality else {})})
            for g, i in (("headings", 0), ("headings", 1), ("headings", 2), ("few-shot", 0))]
    dropped = [Dropped("headings/p3", "repeats a question of headings/p0"), Dropped("headings/p4", "repeats a question of x"),
               *(Dropped(f"few-shot/p{i}", "not a question and an answer", "noise") for i in (1, 2, 3))]
    if quality:
        folder.mkdir(parents=True)
        write_json(folder / "question-quality.json", QUALITY)
    return write_examples(folder, {"all": rows}, dropped, written=9, yields=YIELDS)


def test_what_is_told_of_questions_is_what_the_artifact_holds(tmp_path: Path) -> None:
    told = written(asked(tmp_path / "q"))
    assert told["yields"] == YIELDS and told["quality"] == QUALITY
    assert told["reasons"] == {"headings": {"repeats a question": 2}, "few-shot": {"not a question and an answer": 3}}
    assert told["quality_by_generator"]["headings"] == {
        "relevance": 1.0, "self_contained": 1.0, "fluency": 1.0, "detail_words": 2.0, "questions": 3}
    assert "quality" not in written(asked(tmp_path / "bare", quality=False))
    assert written(write_examples(tmp_path / "other", {"all": [question("a", "Why?", "so")]}, [])) == {}


def test_yields_and_quality_stand_in_the_report(tmp_path: Path) -> None:
    made = Synthetic(tmp_path / "run")
    made.finish("questions", "synthesize", asked(tmp_path / "run" / "steps" / "questions"))
    section = part(parsed(Run(tmp_path / "run")), "questions")
    rows = section.find("table", class_="yields").tbody.find_all("tr")
    assert [values(tr)[:3] for tr in rows] == [[5, 5, 3], [4, 1, 1]]
    assert "60% of attempts" in words(rows[0]) and words(rows[1].find_all("td")[-1]) == "3 not a question and an answer"
    assert {0.75, 0.5, 1.25} <= set(values(section.find("dl", class_="quality")))
    assert "by share of topic words in the passage" in words(section) and "Rules, not a reader" in words(section)


def test_the_page_of_a_data_set_shows_them_too(tmp_path: Path) -> None:
    found: dict[str, Any] = {"about": {"kind": "examples"}, "shown": [], **written(asked(tmp_path / "q"))}
    page = BeautifulSoup(render_data(found), "html.parser")
    assert [values(tr)[:3] for tr in part(page, "questions").find("table", class_="yields").tbody.find_all("tr")] == [
        [5, 5, 3], [4, 1, 1]]
    assert page.find("a", href="#questions")
    bare = BeautifulSoup(render_data({"about": {"kind": "examples"}, "shown": []}), "html.parser")
    assert bare.find(id="questions") is None


def test_the_choice_of_a_retriever_is_told_with_its_intervals(tmp_path: Path) -> None:
    made = Synthetic(tmp_path / "run")
    made.documents()
    found = [Finding(f"retriever/{metric}/{name}/as used", 0.5, 0.5 + gap, gap, "undecided", (gap - 0.1, gap + 0.1), extra={
        "left_arm": "base encoder", "right_arm": "tuned encoder", "metric": metric, "set": name, "way": "as used",
        "clusters": 12, "questions": 18, "needed": 30})
        for metric, name, gap in (("recall", "dev", 0.03), ("ndcg", "unseen", 0.02), ("ndcg", "dev", 0.01))]
    made.step("chosen", "choose-encoder", "records", {"findings.jsonl": [f.to_dict() for f in found]}, chosen="tuned",
              words="Take the tuned encoder: on 18 dev queries ndcg is 0.500 & better.", choice={"unit": "ndcg"})
    page = parsed(Run(tmp_path / "run"))
    section = part(page, "retriever")
    assert words(section.p).startswith("tuned encoder taken Take the tuned encoder: on 18 dev queries ndcg is 0.500 & better.")
    first, other = section.find_all("table")
    assert [(tr.th.get_text(), [round(v, 9) for v in values(tr)[:5]]) for tr in first.select("tbody tr:not(.group)")] == [
        ("dev, as used", [0.5, 0.51, 0.01, -0.09, 0.11]), ("unseen, as used", [0.5, 0.52, 0.02, -0.08, 0.12])]
    assert other.find_parent("details") and 0.03 in values(other)
    assert "retriever/ndcg" not in part(page, "receipts").get_text()  # it compares, it does not check
    assert render(Run(tmp_path / "run")) == render(Run(tmp_path / "run"))
