"""The tuned retriever of a recipe: pairs without leaks, an encoder that stands alone, and a choice on dev."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from luthier.core.artifact import seal, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Passage, question
from luthier.core.files import read_json, read_lines, write_lines, write_rows
from luthier.core.recipe import Recipe, load_recipe
from luthier.engine.steps.fit import Fit
from luthier.pipelines.retrieving import TRAINING, with_tuned_retriever
from luthier.pipelines.steps.choose_encoder import ChooseEncoder
from luthier.pipelines.steps.chosen_index import ChosenIndex
from luthier.pipelines.steps.index import Index
from luthier.pipelines.steps.retriever_pairs import RetrieverPairs
from luthier.pipelines.steps.whole_model import WholeModel

WORDS = "module class object list dict name scope block import yield await lambda tuple string number raise".split()


def asked(i, **meta):
    return question(f"q{i}", f"Where is the {WORDS[i]} number {i}?", "here", source=f"p{i}", cluster=f"d.md#s{i}",
                    meta={"gold": [f"p{i}"], "generator": "headings", **meta})


@pytest.fixture
def job(make_ctx, pico_encoder):
    """Documents of 16 sections with an index, and questions about each: ten to train on, three of dev, three of a test."""
    ctx = make_ctx("documents")
    passages = [Passage(f"p{i}", f"A {w} keeps the {w}s of row {i} beside the {WORDS[i - 1]}.", "d.md", f"d.md#s{i}", (w,))
                for i, w in enumerate(WORDS)]
    write_rows(ctx.folder / "passages", (p.to_dict() for p in passages))
    write_lines(ctx.folder / "ledger.jsonl", [{"id": "twin", "reason": "duplicate of p1", "detail": "same text"}])
    (ctx.folder / "licenses").mkdir()
    (ctx.folder / "licenses" / "DOCS.txt").write_text("terms of the documents")
    documents = seal("documents", ctx.folder, passages=16)
    rows = [asked(i) for i in range(16)]
    rows[1] = asked(1, gold=["twin"])
    rows[2] = asked(2, gold=["gone"])
    examples = write_examples(make_ctx("examples").folder, {"train": rows[:10], "dev": rows[10:13], "unseen": rows[13:]})
    inputs = {"documents": documents, "encoder": pico_encoder, "examples": examples}
    inputs["index"] = Index().run(inputs, make_ctx("index"))
    return inputs


def agree(step, inputs, artifact, ctx):
    findings = step.receipts(inputs, artifact, ctx)
    assert findings and all(f.verdict in ("agrees", "not applicable") for f in findings), findings


def test_pairs_of_questions_and_clicks_leak_nothing(job, make_ctx, tmp_path):
    clicks = tmp_path / "clicks.jsonl"
    rows = [("where is it", "p3", 4), ("where is it", "p5", 1), (asked(11).part("question"), "p4", 2), ("held", "p14", 2),
            ("where  is it", "p6", 0)]
    clicks.write_text("".join(json.dumps({"query": q, "doc_id": d, "clicks": c}) + "\n" for q, d, c in rows))
    step, ctx = RetrieverPairs(clicks=str(clicks), steps=("mine-negatives:margin=0",)), make_ctx("pairs")
    made = step.run(job, ctx)
    agree(step, job, made, ctx)
    train = {r.id: r for r in made.examples("train")}
    assert "q1/1" in train and train["q1/1"].source == "p1", "a repetition stands for what it repeats"
    assert {e["id"]: e["reason"] for e in made.ledger()} == {
        "q2": "no passage that answers it", "click-log/3": "asked in dev or test",
        "click-log/4": "section kept out of training", "click-log/5": "shown, not clicked"}
    assert train["click-log/1"].meta["positives"] == ["p3", "p5"] == train["click-log/2"].meta["positives"]
    assert train["click-log/2"].meta["weight"] == pytest.approx(0.4307, abs=1e-4)
    assert {r.source for r in train.values()} <= {f"p{i}" for i in range(10)} and len(list(made.examples("dev"))) == 3
    assert (made.folder / "licenses" / "DOCS.txt").exists()


def test_an_encoder_is_tuned_merged_and_chosen(job, make_ctx, engine):
    pairs = RetrieverPairs(steps=("mine-negatives:margin=0",)).run(job, make_ctx("pairs"))
    fit = Fit(**{k: v for k, v in TRAINING.items() if k != "use"} | {
        "method": "lora", "learning_rate": 1e-2, "length": {"steps": 12}, "micro_rows": 4})
    ctx = make_ctx("tuned", {"pairs": pairs})
    tuned = fit.run({"base": job["encoder"], "pairs": pairs}, ctx)
    agree(fit, {"base": job["encoder"], "pairs": pairs}, tuned, ctx)
    curve = read_lines(tuned.folder / "curve.jsonl")
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]
    whole, ctx = WholeModel(), make_ctx("whole")
    inputs = {"base": job["encoder"], "tuned": tuned}
    encoder = whole.run(inputs, ctx)
    agree(whole, inputs, encoder, ctx)
    assert encoder.meta["architecture"] == "encoder" and any((encoder.folder / "licenses").glob("*PICO*"))
    index = Index().run({**job, "encoder": encoder}, make_ctx("tuned-index"))
    both = {"base": job["encoder"], "tuned": encoder, "index": job["index"], "tuned-index": index}
    # What was trained on is asked again here, so that the tuned encoder is surely the better one.
    seen = write_examples(make_ctx("seen").folder, {"dev": list(job["examples"].examples("train")),
                                                    "unseen": list(job["examples"].examples("unseen"))})
    step, ctx = ChooseEncoder(choose_by="ndcg:k=3"), make_ctx("chosen")
    said = []
    chosen = step.run({**both, "examples": seen}, replace(ctx, log=said.append))
    agree(step, both, chosen, ctx)
    table = {(r["encoder"], r["set"], r["way"], r["metric"]): r["value"] for r in read_json(chosen.folder / "table.json")}
    assert table["tuned", "dev", "by meaning", "ndcg"] > table["base", "dev", "by meaning", "ndcg"] + 0.1
    better = table["tuned", "dev", "as used", "ndcg"] > table["base", "dev", "as used", "ndcg"]
    assert chosen.meta["chosen"] == ("tuned" if better else "base")
    assert said[0] == chosen.meta["words"] and "test opened" in said[1], "the choice comes before the test"
    assert engine.load(chosen).identity == both[chosen.meta["chosen"]].identity
    kept = ChooseEncoder(least_gain=1.0).run({**both, "examples": seen}, make_ctx("kept"))
    assert kept.meta["chosen"] == "base" and kept.meta["words"].startswith("Keep the base encoder: on 10 dev queries")
    for name, encoder_ in (("kept", kept), ("taken", encoder)):
        found = ChosenIndex().run({"encoder": encoder_, "index": job["index"], "tuned-index": index}, make_ctx(f"i-{name}"))
        assert found.identity == (job["index"] if encoder_ is kept else index).identity


def test_the_recipe_reads_the_chosen_encoder_everywhere_and_is_valid():
    made = with_tuned_retriever(load_recipe("adapt"), clicks=None)
    assert Recipe(made.fill()).identity == made.identity
    wiring = {n.name: n.inputs for n in made.nodes}
    for arm in ("arm-base-retrieval", "arm-tuned-retrieval"):
        assert wiring[arm]["index"] == "chosen-index" and wiring[arm]["encoder"] == "chosen-encoder"
    assert wiring["split"].get("index", "index") == "index", "what pairs are made of can't wait for what they train"
    assert wiring["index"]["encoder"] == "encoder" and wiring["tuned-index"]["encoder"] == "tuned-encoder"
    with pytest.raises(UserError, match="has no 'documents'"):
        with_tuned_retriever(load_recipe("tune"))
    with pytest.raises(UserError, match="there is no file nowhere.jsonl"):
        RetrieverPairs(clicks="nowhere.jsonl").check()
