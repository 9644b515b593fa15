"""The report says what the files say, escapes what it is given, asks nothing of the network and copes with gaps."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup, Tag

from luthier.core.artifact import Artifact, seal, write_examples
from luthier.core.example import Dropped, Passage, question
from luthier.core.files import read_json, read_lines, write_json, write_lines, write_rows
from luthier.core.finding import Finding, not_applicable, receipt
from luthier.core.rng import Rng
from luthier.core.run import Run
from luthier.pipelines.report import render, write
from luthier.pipelines.report.plots import Scale, curve, thinned, ticks
from luthier.pipelines.report.words import group_of, metric_gloss, metric_words

ARMS = ("base", "base+retrieval", "tuned", "tuned+retrieval")
SETS = {"known": 24, "unseen": 23, "unanswerable": 10}
METRICS = ("f1", "exact-match", "recall@5", "stops", "abstains")
SKILL = {"base": 0.15, "base+retrieval": 0.5, "tuned": 0.3, "tuned+retrieval": 0.6}
HOSTILE = '<script>alert("1")</script> & <b>bold</b> \x00 \u202eabc'
VOID = {"br", "hr", "meta", "link", "input", "img", "wbr"}


class Synthetic:
    """Writes a run folder step by step in the shapes that the steps leave."""

    def __init__(self, folder: Path, **record: Any) -> None:
        self.folder, self.clock, self.rng = folder, 0, Rng(7)
        write_json(folder / "run.json", {
            "format": 1, "name": "adapt", "recipe": "c0ffee" * 5, "seed": 3, "started": "2026-03-04T10:11:12+00:00",
            "versions": {"python": "3.11.7", "luthier": "0.1.0", "torch": "2.9.0"}, "machine": "Linux-6.1-x86_64",
            "argv": ["luthier", "adapt", "my docs", "--base", "gemma3-270m"], "state": "finished",
            "openings": [{"arm": a, "when": "2026-03-04T10:20:00+00:00", "step": f"evaluate-{a}"} for a in ARMS],
            **record,
        })

    def step(self, name: str, use: str, kind: str, rows: dict[str, Iterable[dict[str, Any]]] | None = None,
             found: Iterable[Finding] = (), **meta: Any) -> Artifact:
        """One finished step: files, licences, `luthier.json`, `step.json`, receipts."""
        folder = self.folder / "steps" / name
        for file, lines in (rows or {}).items():
            write_lines(folder / file, lines)
        if kind in ("adapter", "documents"):
            (folder / "licenses").mkdir(parents=True)
            (folder / "licenses" / f"LICENSE-{kind}").write_text("terms", encoding="utf-8")
        return self.finish(name, use, seal(kind, folder, **meta), found)

    def finish(self, name: str, use: str, artifact: Artifact, found: Iterable[Finding] = ()) -> Artifact:
        self.clock += 1
        write_lines(artifact.folder / "receipts.jsonl", (f.to_dict() for f in found))
        write_json(artifact.folder / "step.json", {
            "name": name, "use": use, "kind": artifact.kind, "key": f"{self.clock:032x}", "identity": artifact.identity,
            "seconds": 12.5 * self.clock, "started": self.clock, "finished": self.clock + 1, "inputs": {},
        })
        return artifact

    def documents(self) -> Artifact:
        folder = self.folder / "steps" / "documents"
        paths = [("Guide", f"Chapter {i % 7}", f"Part {i}") for i in range(40)]
        passages = (Passage(f"p{i}", f"Passage {i}. " * 30, "guide.md", f"s{i}", h) for i, h in enumerate(paths))
        write_rows(folder / "passages", (p.to_dict() for p in passages))
        reasons = ["duplicate paragraph" if i % 4 else "unreadable" for i in range(30)]
        ledger = [{"id": f"f{i}.pdf", "reason": r, "detail": f"row {i} {HOSTILE}"} for i, r in enumerate(reasons)]
        checks = [receipt("rows-in-out/documents", 70, 70), not_applicable("packed/documents", "nothing is packed")]
        return self.step("documents", "ingest", "documents", {"ledger.jsonl": ledger}, checks, files=12, documents=11,
                         passages=40, dropped=30, tokens=123456)

    def examples(self) -> Artifact:
        subsets = {n: [question(f"{n}{i}", f"What is {i}?", "it") for i in range(count)] for n, count in SETS.items()}
        dropped = [Dropped(f"q{i}", "same question as train", "near-duplicate") for i in range(3)]
        overlap = {"method": "13-gram", "known": {"same question": 0, "same wording": 2, "share": 0.0125}}
        artifact = write_examples(self.folder / "steps" / "split", subsets, dropped, overlap=overlap)
        return self.finish("split", "split", artifact)

    def fit(self, name: str = "tuned", failing: bool = False) -> Artifact:
        curve_rows = [{"step": s, "epoch": s / 100, "tokens": s * 900, "learning_rate": 2e-4,
                       "loss": 0.9 + 2.2 * 0.985**s + 0.1 * self.rng("loss", s).random()} for s in range(1, 301)]
        curve_rows += [{"step": s, "dev_loss": 1.2 + 1.8 * 0.98**s} for s in range(50, 301, 50)]
        merged = 1.5 if failing else 1.0
        checks = [receipt("merged/logits", 1.0, merged, 1e-5, detail="first row: model.layers.3 " + HOSTILE),
                  receipt("stop-token-trained", 210, 210)]
        return self.step(name, "fit", "adapter", {"curve.jsonl": curve_rows}, checks, fit={
            "method": {"use": "lora", "rank": 16, "targets": ["q_proj", "v_proj"]}, "trained_parameters": 1_474_560,
            "total_parameters": 268_098_176, "artifact_bytes": 5_912_345, "seconds": 412.75, "tokens": 270_000,
            "tokens_per_second": 654.2, "peak_mb": 2310.5, "steps": 300, "epochs": 3,
            "learning_rate": {"value": 2e-4, "source": "swept on dev"},
            "decisions": {"dtype": "bfloat16", "compile": False, "micro-batch": {"rows": 8, "why": "fits"}},
        }, base={"name": "gemma3-270m", "note": "dequantised from Q4_K_M", "identity": "ab" * 16})

    def arm(self, arm: str) -> Artifact:
        predictions, scores = [], []
        for name, count in SETS.items():
            for i in range(count):
                row = self._prediction(arm, name, i)
                predictions.append(row)
                scores += [{**{k: row[k] for k in ("id", "set", "cluster")}, "metric": m, "value": v}
                           for m, v in self._scores(arm, row).items()]
        prompt = {"stop": "newline", "instruction": "Answer briefly."}
        tried = [{"shots": s, **prompt, "dev_f1": 0.1 + s / 16} for s in (0, 2, 4)]
        return self.step(f"evaluate-{arm}", "evaluate", "records",
                         {"predictions.jsonl": predictions, "scores.jsonl": scores}, [receipt(f"rows/{arm}", 57, 57)],
                         arm=arm, prompting={"shots": 2, **prompt}, tried=tried, seconds=61.25, prompt_tokens=48_211,
                         new_tokens=1_733)

    def _prediction(self, arm: str, name: str, i: int) -> dict[str, Any]:
        good = self.rng(arm + name, i).random() < SKILL[arm]
        text = f"the answer {i}" if good else f"I believe it is {HOSTILE} number {i}"
        row = {"id": f"{name}-{i}", "set": name, "cluster": f"{name}/s{i % 12}",
               "question": f"What is {i} in {HOSTILE}?",
               "references": [] if name == "unanswerable" else [f"the answer {i}"], "text": text if i % 9 else "",
               "stopped": i % 5 > 0, "tokens": 5 + i}
        return {**row, "passages": [f"p{(i + j) % 40}" for j in range(3)]} if "retrieval" in arm else row

    def _scores(self, arm: str, row: dict[str, Any]) -> dict[str, float]:
        if row["set"] == "unanswerable":
            return {"abstains": float(not row["text"]), "stops": float(row["stopped"])}
        right = float(row["text"] in row["references"])
        both = {"f1": right or 0.25, "exact-match": right, "stops": float(row["stopped"])}
        return {**both, "recall@5": right} if "retrieval" in arm else both

    def compare(self) -> Artifact:
        folder = self.folder / "steps" / "compare"
        table, findings = [], []
        for name, count in SETS.items():
            for metric in ("abstains", "stops") if name == "unanswerable" else ("f1", "exact-match", "stops"):
                values = {a: SKILL[a] + 0.2 * float(self.rng(name + metric, a).random()) for a in ARMS}
                table += [{"arm": a, "set": name, "metric": metric, "value": v, "low": v - 0.11, "high": v + 0.12,
                           "questions": count, "clusters": 12} for a, v in values.items()]
                for left, right in combinations(ARMS, 2):
                    gap, verdict = values[right] - values[left], _verdict(values[right] - values[left])
                    findings.append(Finding(
                        f"compare/{metric}/{name}/{left}|{right}", values[left], values[right], gap, verdict,
                        (gap - 0.1, gap + 0.1), unit=metric, detail="this model, over sections", extra={
                            "test": "sign flip", "p": 0.0123, "p_holm": 0.0456, "clusters": 12, "questions": count,
                            "needed": 140 if verdict == "undecided" else None, "left_arm": left, "right_arm": right,
                            "metric": metric, "set": name}))
        write_json(folder / "table.json", table)
        return self.step("compare", "compare-arms", "records", {"findings.jsonl": [f.to_dict() for f in findings]})


def _verdict(gap: float) -> Any:
    decided = "better" if gap > 0 else "worse"
    return decided if abs(gap) > 0.1 else "no difference" if abs(gap) < 0.02 else "undecided"


def adapted(folder: Path, failing: bool = False) -> Run:
    """A full run with four arms."""
    made = Synthetic(folder)
    plan = ["documents", "split", "tuned", *(f"evaluate-{a}" for a in ARMS), "compare"]
    about = "documents in & <em>evidence</em> out"
    write_json(folder / "recipe.yaml", {"about": about, "steps": {n: {"use": "x"} for n in plan}})  # JSON is YAML
    made.documents()
    made.examples()
    made.fit(failing=failing)
    for arm in ARMS:
        made.arm(arm)
    made.compare()
    return Run(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return adapted(tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture(scope="module")
def text(run: Run) -> str:
    return render(run)


@pytest.fixture(scope="module")
def soup(text: str) -> BeautifulSoup:
    return BeautifulSoup(text, "html.parser")


def parsed(run: Run) -> BeautifulSoup:
    return BeautifulSoup(render(run), "html.parser")


def part(soup: BeautifulSoup, id: str) -> Tag:
    found = soup.find(id=id)
    assert isinstance(found, Tag), f"no section '{id}'"
    return found


def values(tag: Tag) -> list[float]:
    """The exact numbers behind the ones that are shown."""
    return [float(d["value"]) for d in tag.find_all("data")]


def words(tag: Tag) -> str:
    """The text as read: any white space is one space."""
    return " ".join(tag.get_text().split())


class Balanced(HTMLParser):
    """Fails on an element that is closed out of turn; what was never closed stays in `open`."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open += [tag] if tag not in VOID else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_well_formed(text: str, soup: BeautifulSoup) -> None:
    parser = Balanced()
    parser.feed(text)
    ids = [tag["id"] for tag in soup.find_all(id=True)]
    assert parser.open == [] and len(ids) == len(set(ids))


def test_self_contained_and_small(text: str, soup: BeautifulSoup) -> None:
    assert len(text.encode()) < 2_000_000
    for tag in soup.find_all(True):
        assert tag.name not in ("script", "img", "iframe", "object", "embed")
        for name in ("src", "href", "xlink:href", "action"):
            assert not str(tag.get(name, "")).startswith(("http", "//")), tag
    assert "url(" not in text and "@import" not in text


def test_everything_is_escaped(text: str, soup: BeautifulSoup) -> None:
    assert "<script>" not in text and "<b>bold</b>" not in text and "<em>evidence</em>" not in text
    assert "\x00" not in text and "&lt;data" not in text and "&lt;span" not in text
    assert 'alert("1")' in part(soup, "examples").get_text()  # as words, not as markup


def test_headings_links_and_boxes(soup: BeautifulSoup) -> None:
    levels = [int(h.name[1]) for h in soup.find_all(["h1", "h2", "h3", "h4"])]
    assert levels[0] == 1 and levels.count(1) == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    for link in soup.find_all("a"):
        assert soup.find(id=str(link["href"]).removeprefix("#")), link
    for table in soup.find_all("table"):
        box = table.parent
        assert box["class"] == ["scroll"] and box["tabindex"] == "0" and box["aria-label"]


def cells(table: Tag) -> dict[tuple[str, str], list[float]]:
    """The numbers of a table of scores by what is measured and arm; a cell names the arm it belongs to."""
    return {(tr.th.find(string=True), td["data-label"]): values(td) for tr in table.find_all("tr", class_=False)
            for td in tr.find_all("td")}


def test_scores_are_those_of_the_table(run: Run, soup: BeautifulSoup) -> None:
    rows = read_json(run.step("compare").folder / "table.json")
    for name in SETS:
        shown = cells(part(soup, "scores").find("table", attrs={"data-set": name}))
        mine = [r for r in rows if r["set"] == name]
        assert len(shown) == len(mine) + 2 * len(ARMS)
        for row in mine:
            assert shown[metric_words(row["metric"]), row["arm"]] == [row["value"], row["low"], row["high"]]
            assert shown["questions", row["arm"]] == [row["questions"]]
            assert shown["sections", row["arm"]] == [row["clusters"]]
    for shown in part(soup, "scores").find_all("data"):  # what is read is what is meant
        assert abs(float(shown.get_text().replace("−", "-")) - float(shown["value"])) <= 5.01e-4


def test_scores_stand_in_groups_and_what_matters_comes_first(soup: BeautifulSoup) -> None:
    def read(name: str) -> list[str]:
        table = part(soup, "scores").find("table", attrs={"data-set": name})
        return [tr.th.find(string=True) for tr in table.find_all("tr") if tr.th.find(string=True)]

    assert read("known") == ["Answers", "F1", "exact match", "Form", "share that stops by itself", "Asked",
                             "questions", "sections"]
    assert read("unanswerable")[:2] == ["Knowing when not to answer", "share of abstentions"]


def test_each_registered_metric_belongs_to_a_group_and_is_explained() -> None:
    from luthier.core.index import rows

    names = {r["name"] for r in rows() if r["kind"] == "metric"}
    assert {n for n in names if group_of(n) == "Other"} == set()
    assert set(metric_gloss()) == names and all(metric_gloss().values())


def test_every_comparison_has_a_row_and_one_mark(run: Run, soup: BeautifulSoup) -> None:
    findings = {f["name"]: f for f in read_lines(run.step("compare").folder / "findings.jsonl")}
    section = part(soup, "comparisons")
    assert sorted(c["data-name"] for c in section.find_all("circle")) == sorted(findings)
    for block in section.find_all("details"):  # within a plot, marks stand in the order of the differences
        marks = sorted(block.find_all("circle"), key=lambda c: float(c["cx"].rstrip("%")))
        differences = [findings[c["data-name"]]["difference"] for c in marks]
        assert differences == sorted(differences)
    shown = [values(tr) for table in section.find_all("table") for tr in table.select("tbody tr:not(.group)")]
    assert len(shown) == len(findings)
    for f in findings.values():
        numbers = next(v for v in shown if v[2] == f["difference"])
        assert numbers[:5] == [f["left"], f["right"], f["difference"], *f["interval"]]
        assert f["extra"]["p"] in numbers and f["extra"]["p_holm"] in numbers


def test_verdicts_in_words(soup: BeautifulSoup, tmp_path: Path) -> None:
    section = part(soup, "answer")
    assert len(section.find_all("li")) == 6 * len(SETS)
    for told in ("On unseen sections, the base with retrieval", "12 sections", "about 140 more questions would decide"):
        assert told in words(section)
    made = Synthetic(tmp_path / "run")
    made.documents()
    name = "compare/f1/unseen/base|base+retrieval"
    finding = Finding(name, 0.2, 0.51, 0.31, "better", (0.2, 0.42), extra={"clusters": 23})
    made.step("compare", "compare-arms", "records", {"findings.jsonl": [finding.to_dict()]})
    said = part(parsed(Run(tmp_path / "run")), "answer").li
    assert words(said).endswith("On unseen sections, the base with retrieval is better than the base by +0.31 F1 "
                                "(95 % interval +0.20 to +0.42, 23 sections).")


def alike(left: str, right: str, asked: int, verdict: Any = "undecided", needed: int | None = 134) -> Finding:
    """A comparison of two arms that score nothing on any question."""
    return Finding(f"compare/f1/unseen/{left}|{right}", 0.0, 0.0, 0.0, verdict, (0.0, 0.0), unit="f1", extra={
        "clusters": asked, "questions": asked, "alike": asked, "needed": needed, "left_arm": left, "right_arm": right,
        "metric": "f1", "set": "unseen"})


def test_scores_that_never_differ_are_told_as_such(tmp_path: Path) -> None:
    def told(name: str, *found: Finding) -> str:
        made = Synthetic(tmp_path / name)
        made.documents()
        made.step("compare", "compare-arms", "records", {"findings.jsonl": [f.to_dict() for f in found]})
        return "; ".join(words(li) for li in part(parsed(Run(tmp_path / name)), "answer").find_all("li"))

    assert told("pair", alike("base", "tuned", 15)) == (
        "? undecided On unseen sections, the base and the tuned model score alike on all 15 questions (mean 0.00 F1), so it is "
        "undecided whether they differ; about 134 more questions would decide.").replace("? undecided On", "? undecidedOn")
    every = [alike(left, right, 15) for left, right in combinations(ARMS, 2)]
    assert told("all", *every).startswith("? undecidedOn unseen sections, all 4 arms score alike on all 15 questions")
    many = told("many", alike("base", "tuned", 400, "no difference", None))
    assert "score alike on all 400 questions (mean 0.00 F1)." in many and "undecided" not in many
    mixed = told("mixed", every[0], Finding("compare/f1/unseen/base|x", 0.0, 0.5, 0.5, "better", (0.3, 0.7)))
    assert "x is better than the base" in mixed and "score alike" in mixed


def test_costs_and_losses(run: Run, soup: BeautifulSoup) -> None:
    section = part(soup, "cost")
    assert values(section.find("table", class_="cost").tbody.tr)[:3] == [61.25, 48_211, 1_733]
    trained = set(values(section.find("dl", class_="fit")))
    assert {1_474_560, 1_474_560 / 268_098_176, 5_912_345, 412.75, 654.2, 2310.5, 2e-4} <= trained
    dev = [r["dev_loss"] for r in read_lines(run.step("tuned").folder / "curve.jsonl") if "dev_loss" in r]
    section = part(soup, "learning")
    assert [float(c["data-value"]) for c in section.find_all("circle")] == dev
    assert min(dev) in values(section)


def test_examples_disagree_and_are_marked_in_words(run: Run, soup: BeautifulSoup) -> None:
    section = part(soup, "examples")
    asked = [article.select(".answers > li") for article in section.find_all("article")]
    assert [len(answers) for answers in asked] == [len(ARMS)] * 8 * len(SETS)
    judged = {li.find(class_="chip").get_text().split()[1].rstrip(",") for li in asked[0]}
    assert judged >= {"right", "partly"}
    assert "Guide › Chapter" in section.find(attrs={"data-passage": True}).get_text()
    assert render(run) == render(run)


def test_prompts_data_and_receipts(soup: BeautifulSoup) -> None:
    chosen = part(soup, "prompts").find("span", class_="agrees").find_parent("tr")
    assert 0.1 + 2 / 16 in values(chosen)
    assert len(part(soup, "prompts").find("table", class_="openings").tbody.find_all("tr")) == len(ARMS)
    data = part(soup, "data")
    assert {12, 11, 40, 123456, *SETS.values(), 0.0125} <= set(values(data))
    reasons = {d.summary.b.get_text(): values(d.summary)[0] for d in data.find_all("details", class_="reason")}
    assert reasons == {"duplicate paragraph": 22, "unreadable": 8, "same question as train": 3}
    assert max(len(t.tbody.find_all("tr")) for t in data.find_all("table")) == 10
    table = part(soup, "receipts").find("table")
    assert not table.find_parent("details").has_attr("open"), "receipts that agree need no reading"
    assert len(table.tbody.find_all("tr")) == 8 and "compare/" not in table.get_text()


def test_how_to_run_it_again(soup: BeautifulSoup) -> None:
    said = part(soup, "again").get_text()
    for word in ("luthier adapt 'my docs' --base gemma3-270m", "3.11.7", "x86_64", "LICENSE-adapter", "bfloat16"):
        assert word in said
    head = soup.header.get_text()
    assert "gemma3-270m, dequantised from Q4_K_M" in head and "4 March 2026" in head


def test_a_failed_receipt_is_loud_and_first(tmp_path: Path) -> None:
    page = parsed(adapted(tmp_path / "run", failing=True))
    assert "1 receipt differs" in words(page.find(class_="alarm"))
    section = part(page, "receipts")
    assert "merged/logits" in section.find(class_="alarm").get_text()
    assert section.find("table").tbody.tr.th.get_text() == "merged/logits"
    assert section.find("table").find_parent("details").has_attr("open")


def test_a_plan_stands_beside_what_happened(tmp_path: Path) -> None:
    made = Synthetic(tmp_path / "run")
    made.step("tuned", "fit", "adapter", fit={"seconds": 90.0, "peak_mb": 1100, "planned": {
        "peak_mb": 1000.0, "seconds": 60.0, "floor_mb": 700.0, "memory_mb": {"weights": 300.0, "adapter": 0.0}}})
    table = part(parsed(Run(tmp_path / "run")), "cost").find("table", class_="plan")
    assert [values(tr) for tr in table.tbody.find_all("tr")] == [[1000, 1100, 1.1], [60, 90, 1.5]]
    made.step("other", "fit", "adapter", fit={"seconds": 1.0, "planned": {"note": "no weights are there yet"}})
    assert "no weights are there yet" in words(part(parsed(Run(tmp_path / "run")), "cost"))


def test_openings_are_read_from_the_log(tmp_path: Path) -> None:
    made = Synthetic(tmp_path / "run", openings=None)
    made.arm("base")
    (tmp_path / "run" / "log.txt").write_text(
        "2026-03-04T10:11:12+00:00 [arm-base] chosen on 16 dev questions\n"
        "2026-03-04T10:12:12+00:00 [arm-base] test opened: 61 questions of known by arm base\n")
    rows = part(parsed(Run(tmp_path / "run")), "prompts").find("table", class_="openings").tbody.find_all("tr")
    assert [words(tr) for tr in rows] == ["14 March 2026, 10:12 UTCarm-base61 questions of known by arm base"]


def test_the_command_is_shown_as_it_is_typed(tmp_path: Path) -> None:
    made = Synthetic(tmp_path / "run", argv=["__main__.py", "adapt", "my docs"])
    made.documents()
    assert words(part(parsed(Run(tmp_path / "run")), "again").pre) == "luthier adapt 'my docs'"


def test_reasons_that_name_a_row_are_counted_together(tmp_path: Path) -> None:
    made = Synthetic(tmp_path / "run")
    ledger = [{"id": f"p{i}", "reason": f"duplicate of guide.md:{i}", "detail": ""} for i in range(3)]
    made.step("documents", "ingest", "documents", {"ledger.jsonl": ledger}, files=1)
    reason, = part(parsed(Run(tmp_path / "run")), "data").find_all("details", class_="reason")
    assert (words(reason.summary), words(reason.tbody.tr)) == ("duplicate 3", "p0of guide.md:0")


def test_bare_tune_run(tmp_path: Path) -> None:
    made = Synthetic(tmp_path / "run", name="tune", openings=None)
    made.fit()
    page = parsed(Run(tmp_path / "run"))
    assert part(page, "learning") and part(page, "cost").find("dl", class_="fit")
    assert page.find(attrs={"data-missing": "answer"}) and not page.find(class_="alarm")
    assert "Nothing was compared" in page.find(class_="note").get_text()


def test_half_finished_run_says_what_is_missing(tmp_path: Path) -> None:
    made = Synthetic(tmp_path / "run", state="failed", error="disk full")
    steps = {n: {"use": "x"} for n in ("documents", "evaluate-base", "evaluate-tuned", "compare")}
    write_json(tmp_path / "run" / "recipe.yaml", {"about": "half", "steps": {**steps, "report": {"use": "report"}}})
    made.documents()
    made.arm("base")
    page = parsed(Run(tmp_path / "run"))
    notice = page.find(class_="alarm")
    assert "failed" in notice.get_text() and "disk full" in notice.get_text()
    assert [c.get_text() for c in notice.find_all("code")] == ["evaluate-tuned", "compare"]
    assert [t["data-missing"] for t in page.select("[data-missing]")] == [
        "answer", "advice", "comparisons", "gains", "retriever", "audits", "learning", "questions"]
    scores = read_lines(made.folder / "steps" / "evaluate-base" / "scores.jsonl")
    f1 = [s["value"] for s in scores if s["metric"] == "f1" and s["set"] == "known"]
    assert sum(f1) / len(f1) in values(part(page, "scores").find("table", attrs={"data-set": "known"}))
    assert "Means without intervals" in part(page, "scores").get_text()


def test_an_empty_run_and_odd_values(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_json(folder / "run.json", {"name": HOSTILE, "state": "started", "openings": 2, "started": "yesterday"})
    page = parsed(Run(folder))
    assert len(page.select("[data-missing]")) == 14 and "2 openings" in words(page)
    made = Synthetic(folder, openings=["once"])
    curve_rows = [{"step": 1, "loss": float("nan")}]
    made.step("tuned", "fit", "adapter", {"curve.jsonl": curve_rows}, fit={"seconds": float("inf")})
    arm = made.step("arm", "evaluate", "records")
    half = {"id": 1, "set": "x", "text": "\ud800" * 5000}  # of a surrogate pair: legal in JSON, not in UTF-8
    (arm.folder / "predictions.jsonl").write_text(json.dumps(half), encoding="ascii")
    odd = Finding("compare/f1/x/a|b", None, None, float("nan"), "undecided")
    made.step("compare", "compare-arms", "records", {"findings.jsonl": [odd.to_dict()]})
    assert write(Run(folder)) == folder / "report.html"
    assert "4,000 more characters" in (folder / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("low", "high"), [(-0.31, 0.62), (0, 1), (1e-5, 3e-5), (0.9, 3.2), (1, 30_000), (-5, -4.9)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 6 and all(low - 1e-9 <= t <= high + 1e-9 for t in found)


def test_scale_and_thinning() -> None:
    scale = Scale([2.0, 4.0], pad=0.0)
    assert [scale.at(v) for v in (2.0, 3.0, 4.0)] == [0.0, 50.0, 100.0]
    points, width = thinned([(float(i), 2.0 * i) for i in range(1000)])
    assert width == 3 and len(points) == 334 and points[0] == (1.0, 2.0)
    assert curve([]) is None and curve([{"step": 1, "loss": 2.0}]) is not None
