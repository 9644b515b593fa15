"""rquge: both published texts byte for byte, SQuAD's normaliser, batches, windows, and what is refused."""

from __future__ import annotations

import os
import re
import string
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Dropped, question
from luthier.core.kinds import DroppedRow, Prediction
from luthier.core.rng import Rng
from luthier.engine.generation import Generated
from luthier.techniques.evaluation.rquge import reader_input, scored_row
from luthier.techniques.objectives.span_scorer import squad_normal, written
from tests.contracts.workbench import encode, make_batch, short_fit

CONTEXT = "The peg of a violin is turned from ebony. The scroll is of maple!"
# question, context, intended answer, the reader's answer, and both texts as the paper's code writes them
HAND = [
    ("What is the peg turned from?", CONTEXT, "ebony", "ebony", "What is the peg turned from? \\n " + CONTEXT,
     "what is peg turned from <q> ebony <r> ebony <c> peg of violin is turned from ebony scroll is of maple"),
    ("Who made it?", "An  old man.", "An old man", "The MAN!", "Who made it? \\n An  old man.",
     "who made it <q> old man <r> man <c> old man"),
    ("Why?", "Because: it's cold.", "it's cold", "", "Why? \\n Because: it's cold.",
     "why <q> its cold <r>  <c> because its cold"),
    ("Where — in Cremona?", "In Cremona\n(Italy).", "Cremona", "Italy", "Where — in Cremona? \\n In Cremona\n(Italy).",
     "where — in cremona <q> cremona <r> italy <c> in cremona italy"),
    ("Is <q> a sign?", "It is a \\n sign.", "a sign", "the", "Is <q> a sign? \\n It is a \\n sign.",
     "is q sign <q> sign <r>  <c> it is n sign"),
]


def rated(name, asked, reference, context, candidate, rating):
    return question(name, asked, reference, passage=context, label=rating, meta={"candidate": candidate})


@pytest.fixture(scope="module")
def scorer(engine, pico_encoder, tmp_path_factory):
    """A scorer of random weights, moved a little."""
    from luthier.core.files import write_json
    from tests.conftest import new_ctx

    rows = [rated(f"r{i}", q, a, d, c, 1 + i) for i, (q, d, a, c, *_) in enumerate(HAND)]
    run = tmp_path_factory.mktemp("scorer")
    examples = write_examples(new_ctx(run / "rows", engine).folder, {"train": rows})
    inputs = {"base": pico_encoder, "examples": examples}
    fit = short_fit("encoder", tasks=({"data": "examples.train", "objective": "span-scorer", "head": "linear:dropout=0"},),
                    method="full", length={"steps": 40})
    tuned = fit.run(inputs, new_ctx(run / "tuned", engine, inputs))
    (run / tuned.meta["base"]["step"]).symlink_to(pico_encoder.folder)
    write_json(run / "note.json", {})
    return tuned


class Reader:
    """An engine whose reader answers from a table and notes what it was asked."""

    def __init__(self, engine, said):
        self.engine, self.said, self.asked = engine, said, []

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def generate(self, model, prompts, decoder, **options):
        assert decoder.max_new_tokens == 30 and decoder.info.name == "greedy"
        self.asked += [model.tokenizer.decode(p, skip_special_tokens=True) for p in prompts]
        return [Generated(t, 1, True, len(p)) for t, p in zip(self.said, prompts, strict=True)]


def asking(rows=HAND):
    return [question(f"q{i}", q, a, passage=d) for i, (q, d, a, *_) in enumerate(rows)]


def measured(scorer, ctx, rows, said=None, **options):
    answers = [Prediction(r.id, text=t) for r, t in zip(rows, said or ["x"] * len(rows), strict=True)]
    return build("metric", {"use": "rquge", "scorer": str(scorer.folder), **options}).score(rows, answers, ctx)


@pytest.mark.oracle(seed=106, clause=1, against="the published strings, by hand")
@pytest.mark.parametrize("case", range(5))
def test_both_texts_are_the_published_ones(case):
    asked, context, answer, candidate, to_reader, to_scorer = HAND[case]
    assert reader_input(asked, context) == to_reader and "\\n" in to_reader
    row = scored_row(question("q", asked, answer, passage=context), candidate)
    assert written(row).turns[0].text == to_scorer


@pytest.mark.oracle(seed=106, clause=1, against="what a stub reader and a stub scorer were given")
def test_the_reader_and_the_scorer_are_given_these_texts(scorer, make_ctx, engine, pico, monkeypatch):
    from luthier.engine.models import load_base
    from luthier.techniques.evaluation.rquge import Rquge

    ctx = make_ctx("metric")
    ctx.engine = Reader(engine, [c for *_, c, _, _ in HAND])
    opened = Rquge._opened
    monkeypatch.setattr(Rquge, "_opened", lambda self, field, c: load_base(pico) if field == "qa" else opened(self, field, c))
    seen = []
    encoded = type(build("objective", "span-scorer")).encode
    monkeypatch.setattr("luthier.techniques.objectives.span_scorer.SpanScorer.encode",
                        lambda self, e, r, g: seen.append(written(e).turns[0].text) or encoded(self, e, r, g))
    records = measured(scorer, ctx, asking(), qa="reader")
    # pico's own tokenizer reads words alone; which characters stood there is checked above.
    assert len(ctx.engine.asked) == 5 and [r["predicted"] for r in records] == [c for *_, c, _, _ in HAND]
    assert set(seen) == {t for *_, t in HAND}


@pytest.mark.oracle(seed=106, clause=2, against="SQuAD's published normalize_answer, written out here")
def test_the_normaliser_is_that_of_squad():
    def normalize_answer(s):
        s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())

    draw = np.random.default_rng(0)
    pieces = ["The", "a", "an", "Than", "it's", "--", "x.y", " ", "\n", "THE", "Ärger", "3.5", "(a)", "“q”", ""]
    for _ in range(500):
        text = " ".join(draw.choice(pieces, size=draw.integers(0, 9)))
        assert squad_normal(text) == normalize_answer(text)


@pytest.mark.oracle(seed=106, clause=3, against="each row alone, and another order")
def test_scores_depend_on_no_other_row(scorer, make_ctx, monkeypatch):
    rows = asking() + [question("long", "Which wood is it?", "ebony", passage=CONTEXT * 4)]
    said = ["ebony", "a man", "cold", "Italy", "sign", "maple of the scroll"]
    together = [r["value"] for r in measured(scorer, make_ctx("a"), rows, said)]
    alone = [measured(scorer, make_ctx("b"), [r], [s])[0]["value"] for r, s in zip(rows, said, strict=True)]
    back = [r["value"] for r in measured(scorer, make_ctx("c"), rows[::-1], said[::-1])][::-1]
    assert together == pytest.approx(alone, abs=1e-5) and together == pytest.approx(back, abs=1e-5)
    assert len({round(v, 4) for v in together}) == len(rows), "the rows are told apart"


def test_the_loss_is_the_squared_error_of_the_scorer(scorer, engine, pico_encoder):
    from luthier.engine.forward import Forward

    objective, model = build("objective", "span-scorer"), engine.load(pico_encoder, scorer)
    rows = [rated(f"r{i}", q, a, d, c, 5 - i) for i, (q, d, a, c, *_) in enumerate(HAND)]
    batch = make_batch(encode(objective, model, rows), model)
    run = Forward({"policy": model})
    run.task = "examples.train"
    with torch.no_grad():
        states = model.module(input_ids=batch["input"].ids, attention_mask=batch["input"].mask).last_hidden_state
        mask = batch["input"].mask[:, :, None]
        layer = model.heads["examples.train"][-1]
        scores = ((states * mask).sum(1) / mask.sum(1)) @ layer.weight[0] + layer.bias
        wanted = sum((float(s) - r) ** 2 for s, r in zip(scores, [5, 4, 3, 2, 1], strict=True))
        assert float(objective.loss(run, batch)["squared_error"]) == pytest.approx(wanted, rel=1e-4)
    assert objective.count(batch) == {"squared_error": 5}


def test_ratings_that_are_none_and_heads_that_do_not_fit_are_refused(pico_encoder, make_ctx):
    from luthier.engine.models import load_base
    from luthier.engine.rendering import renderer

    objective, render = build("objective", "span-scorer"), renderer(load_base(pico_encoder))
    for row, reason in ((question("q", "a?", "b"), "no candidate"), (rated("q", "a?", "b", "c", "d", 6), "no rating"),
                        (rated("q", "a?", "b", "c", "d", "good"), "no rating")):
        with pytest.raises(DroppedRow) as caught:
            objective.encode(row, render, Rng(0))
        assert caught.value.dropped.reason == reason
    rows = write_examples(make_ctx("rows").folder, {"train": [rated(f"r{i}", "a?", "b", "c", "d", 1 + i) for i in range(4)]})
    for head, said in ((None, "needs a head of one output: tasks:"), ):
        fit = short_fit("encoder", tasks=({"data": "examples.train", "objective": "span-scorer", "head": head},), method="full")
        with pytest.raises(UserError, match=said):
            fit.run({"base": pico_encoder, "examples": rows}, make_ctx("fit"))


def test_what_has_no_answer_no_question_or_no_place_in_its_context(scorer, make_ctx):
    lines = []
    ctx = make_ctx("m", log=lines.append)
    rows = [question("none", "What?", passage=CONTEXT), question("empty", " ", "ebony", passage=CONTEXT),
            question("away", "Which metal?", "gold", passage=CONTEXT)]
    records = measured(scorer, ctx, rows, ["x", "y", "z"])
    assert [r["value"] for r in records[:2]] == [None, 1.0] and records[2]["value"] is not None
    assert [r["answer_in_context"] for r in records] == [False, False, False]
    assert any("the answers of 1 questions are not in their contexts: away" in line for line in lines)


def test_a_context_that_is_too_long_keeps_the_part_around_the_answer(scorer, make_ctx, monkeypatch):
    lines, seen = [], []
    ctx = make_ctx("m", log=lines.append)
    monkeypatch.setattr("luthier.techniques.evaluation.rquge.MOST_TOKENS", 60)
    template = dict(scorer.meta["template"])
    scorer.meta["template"].pop("max_tokens", None)
    engine_model = ctx.engine.load(__import__("luthier.engine.models", fromlist=["base_of"]).base_of(scorer), scorer)
    monkeypatch.setattr(engine_model, "template", {})
    encoded = type(build("objective", "span-scorer")).encode
    monkeypatch.setattr("luthier.techniques.objectives.span_scorer.SpanScorer.encode",
                        lambda self, e, r, g: seen.append((r.max_tokens, e)) or encoded(self, e, r, g))
    long = " ".join(["word"] * 200) + " the peg is of ebony here " + " ".join(["other"] * 200)
    row = question("q", "Which wood?", "ebony", passage=long)
    measured(scorer, ctx, [row], ["ebony"])
    kept = [e for limit, e in seen if limit == 60][-1].part("passage")
    assert "ebony" in kept and kept.startswith("word") and len(kept.split()) < 60
    assert any("of 406 words of the context are left out" in line for line in lines)
    seen.clear()
    measured(scorer, ctx, [row], ["ebony"], long="cut")
    assert "ebony" not in [e for limit, e in seen if limit == 60][-1].part("passage")
    scorer.meta["template"].update(template)


def test_a_missing_scorer_a_wrong_head_and_no_answers_are_refused(scorer, make_ctx, engine, pico_encoder, tmp_path):
    ctx = make_ctx("m")
    with pytest.raises(UserError, match=r"rquge needs a scorer: tune one with --objective span-scorer"):
        build("metric", "rquge").score(asking(), [Prediction(f"q{i}") for i in range(5)], ctx)
    with pytest.raises(UserError, match=r"rquge has no answers to rate: name a reader"):
        measured(scorer, ctx, asking(), [""] * 5)
    from tests.contracts.workbench import training_data

    inputs = {"base": pico_encoder, "examples": training_data(make_ctx("rows"))}
    classifier = short_fit("encoder", method="full", length={"steps": 1}).run(inputs, make_ctx("run/tuned", inputs))
    (classifier.folder.parent / classifier.meta["base"]["step"]).symlink_to(pico_encoder.folder)
    with pytest.raises(UserError, match="has a head of 2 outputs; a scorer has one"):
        measured(classifier, ctx, asking(), ["x"] * 5)


def official(qa, scorer, rows):
    """The published module's computation, written out: T5 answers, the classifier rates, padded to 512 tokens."""
    from transformers import AutoModelForSeq2SeqLM, AutoModelForSequenceClassification, AutoTokenizer

    def normal(s):
        s = "".join(ch for ch in s.lower() if ch not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", s).split())

    reader, rater = AutoModelForSeq2SeqLM.from_pretrained(qa), AutoModelForSequenceClassification.from_pretrained(scorer).eval()
    spoken, read = AutoTokenizer.from_pretrained(qa), AutoTokenizer.from_pretrained(scorer)
    answers, scores = [], []
    for asked, context, gold in rows:
        with torch.no_grad():
            ids = spoken(asked + " \\n " + context, return_tensors="pt")["input_ids"]
            said = reader.generate(ids, max_new_tokens=30, do_sample=False, num_beams=1)
            answers.append(spoken.batch_decode(said, skip_special_tokens=True)[0])
            text = f"{normal(asked)} <q> {normal(gold)} <r> {normal(answers[-1])} <c> {normal(context)}"
            batch = read(text, max_length=512, truncation=True, padding="max_length", return_tensors="pt")
            scores.append(float(rater(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[0, 0]))
    return answers, scores


def published(qa, scorer, ctx):
    rows = asking()
    found = build("metric", {"use": "rquge", "qa": str(qa), "scorer": str(scorer)}).score(
        rows, [Prediction(r.id) for r in rows], ctx)
    return [r["predicted"] for r in found], [r["value"] for r in found]


@pytest.mark.oracle(seed=106, clause=5, against="transformers, with checkpoints of random weights")
def test_checkpoints_of_the_published_kind_are_read_as_they_are(make_ctx, pico_encoder, pico_encoder_decoder, tmp_path):
    from transformers import AutoTokenizer, RobertaConfig, RobertaForSequenceClassification

    from luthier.engine.models import folder_of

    tokenizer = AutoTokenizer.from_pretrained(folder_of(pico_encoder))
    torch.manual_seed(0)
    RobertaForSequenceClassification(RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=514, num_labels=1, initializer_range=0.5, pad_token_id=tokenizer.pad_token_id)
    ).save_pretrained(tmp_path / "scorer")
    tokenizer.save_pretrained(tmp_path / "scorer")
    qa = folder_of(pico_encoder_decoder)
    answers, scores = official(qa, tmp_path / "scorer", [(q, d, a) for q, d, a, *_ in HAND])
    found, values = published(qa, tmp_path / "scorer", make_ctx("m"))
    assert found == [a.strip() for a in answers]
    assert values == pytest.approx(scores, abs=1e-4) and len({round(v, 3) for v in values}) == 5


@pytest.mark.skipif(not os.environ.get("LUTHIER_RQUGE"), reason="LUTHIER_RQUGE names no folder with the official qa and scorer")
@pytest.mark.oracle(seed=106, clause=5, against="rquge_score with the official checkpoints")
def test_official_checkpoints_give_the_official_scores(make_ctx):
    folder = Path(os.environ["LUTHIER_RQUGE"])
    module = pytest.importorskip("rquge_score")
    theirs = module.RQUGE(sp_scorer_path=str(folder / "scorer"), qa_model_path=str(folder / "qa"))
    wanted = [theirs.scorer(d, q, a) for q, d, a, *_ in HAND]
    assert published(folder / "qa", folder / "scorer", make_ctx("m"))[1] == pytest.approx(wanted, abs=1e-3)


def reranked(rows, ctx, **options):
    step = build("data_step", {"use": "rerank", "metric": "dummy-length", **options})
    return list(step.apply(iter(rows), ctx))


@pytest.mark.oracle(seed=106, clause=1, against="sorting by hand")
def test_the_best_of_each_answer_is_kept(make_ctx, monkeypatch):
    from luthier.core.kinds import Metric

    class Stub(Metric, name="dummy-length"):
        """The number in the question."""

        def score(self, examples, predictions, ctx):
            return [{"id": e.id, "value": float(e.part("question")) if e.part("question") != "-" else None} for e in examples]

    rows = [question(n, q, a, passage=d) for n, q, a, d in (
        ("a", "2", "x", "D"), ("b", "4", "x", "D"), ("c", "3", "x", "D"), ("d", "1", "y", "D"), ("e", "5", "x", "E"),
        ("f", "-", "x", "E"))]
    found = reranked(rows, make_ctx("r"))
    assert [r.id for r in found if not isinstance(r, Dropped)] == ["b", "d", "e"]
    assert Counter(r.reason for r in found if isinstance(r, Dropped)) == {"a better candidate": 2, "no score": 1}
    assert next(r for r in found if r.id == "b").meta["score"] == 4.0
    found = reranked(rows, make_ctx("r"), keep_best=2, min_score=3)
    assert [r.id for r in found if not isinstance(r, Dropped)] == ["b", "c", "e"]
    monkeypatch.setattr(Stub, "higher_is_better", False)
    found = reranked(rows, make_ctx("r"), min_score=3)
    assert [r.id for r in found if not isinstance(r, Dropped)] == ["a", "d"]
    assert reranked([], make_ctx("r")) == []


@pytest.mark.slow
@pytest.mark.oracle(seed=106, clause=4, against="the paper's bounds, on answers of the tested passages of the study")
def test_a_trained_scorer_knows_right_answers_from_unrelated_ones(engine, tmp_path):
    from luthier.core.files import read_lines
    from luthier.core.recipe import Recipe
    from luthier.engine.executor import execute
    from luthier.studies.rquge import RqugeStudy

    run = execute(Recipe(RqugeStudy().arms()["answers"]), tmp_path / "run", engine)
    rated = read_lines(run.folder / "steps/score/scores.jsonl")
    means = {on: np.mean([r["value"] for r in rated if r["set"] == on][:50]) for on in ("right", "unrelated")}
    assert means["right"] >= 4.5 and means["unrelated"] <= 2
