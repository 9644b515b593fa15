"""Recall, K-precision and their kin: cases by hand, SQuAD's script written out again, and the wrong-passage test."""

from __future__ import annotations

import re
import string
from collections import Counter

import numpy as np
import pytest

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Part, Turn, question
from luthier.core.kinds import Prediction
from luthier.engine.subjects import Subject
from luthier.techniques.evaluation.faithfulness import swapped


def value(metric, said, gold="", shown=(), references=(), asked="?", ctx=None):
    row = question("q", asked, gold, references=references)
    return build("metric", metric).score([row], [Prediction("q", text=said, shown=tuple(shown))], ctx)[0]["value"]


@pytest.mark.oracle(seed=49, clause=1, against="by hand")
def test_a_verbose_answer():
    said = "The capital of France is Paris"
    assert value("token-recall", said, "Paris") == 1
    assert value("f1", said, "Paris") == pytest.approx(2 * (1 / 5) * 1 / (1 / 5 + 1)) == pytest.approx(1 / 3)
    assert value("exact-match", said, "Paris") == 0 and value("recall-em", said, "Paris") == 1
    assert value("recall-em", "It is Parisian.", "Paris") == 0 and value("recall-em", "New York City", "the york city!") == 1
    # 2 of 3 words of the reference; the better of two references counts, and words count as often as they stand there
    assert value("token-recall", "a red oak", "dark red oak") == pytest.approx(2 / 3)
    assert value("token-recall", "red", "dark red oak", references=("red maple",)) == 0.5
    assert value("token-recall", "go", "go go go") == pytest.approx(1 / 3)
    assert value("token-recall", "x") is None and value("recall-em", "x") is None
    assert value("token-recall", "", "Paris") == 0


@pytest.mark.oracle(seed=49, clause=2, against="the passage itself")
def test_a_copied_passage_is_faithful():
    passages = ["The peg is of ebony.", "Glue is kept warm, and warm again."]
    for text in (passages[0], passages[1], "glue of ebony", "warm warm"):
        assert value("k-precision", text, shown=passages) == 1
    assert value("k-precision", "warm warm warm", shown=passages) == pytest.approx(2 / 3), "more often than it stands there"
    record = build("metric", "k-precision").score([question("q", "?")], [Prediction("q", text="ebony glue gold", shown=(
        "ebony peg", "glue"))], None)
    # 2 of 3 words said, 2 of 3 words known
    assert record[0]["value"] == record[0]["k_recall"] == record[0]["k_f1"] == pytest.approx(2 / 3)
    assert build("metric", "k-precision").details(record)["k_recall"] == pytest.approx(2 / 3)


@pytest.mark.oracle(seed=49, clause=3, against="zero")
@pytest.mark.parametrize("metric", ["token-recall", "k-precision", "k-precision-pp", "f1", "recall-em"])
def test_disjoint_words_are_nothing(metric):
    assert value(metric, "a violin bow", "glass door", shown=["glass door"]) == 0
    assert value(metric, "", "glass door", shown=["glass door"]) == 0


@pytest.mark.oracle(seed=49, clause=4, against="shuffled words")
def test_order_does_not_matter():
    draw, words = np.random.default_rng(0), "peg of ebony in the scroll of maple".split()
    passages = ["The scroll of Cremona.", "Maple and a peg"]
    for metric in ("token-recall", "k-precision", "k-precision-pp", "f1"):
        wanted = value(metric, " ".join(words), "maple peg", shown=passages, asked="Which peg?")
        for _ in range(5):
            mixed = " ".join(draw.permutation(words))
            assert value(metric, mixed, "peg maple", shown=passages[::-1], asked="Which peg?") == pytest.approx(wanted)


def official(said, gold):
    """Recall, precision and F1 of SQuAD's script, in lines of its own."""
    def words(text):
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    left, right = words(said), words(gold)
    same = sum((Counter(left) & Counter(right)).values())
    if not same:
        return 0.0, 0.0, 0.0
    p, r = same / len(left), same / len(right)
    return r, p, 2 * p * r / (p + r)


@pytest.mark.oracle(seed=49, clause=5, against="SQuAD's script, written out")
def test_a_thousand_random_texts():
    draw = np.random.default_rng(1)
    vocabulary = ["peg", "Peg!", "ebony", "the", "a", "an", "x-y", "of", "3.5", "maple,", "Ärger", "(scroll)", "bow", "BOW"]
    for _ in range(1000):
        said, gold = (" ".join(draw.choice(vocabulary, size=draw.integers(1, 9))) + " bridge" for _ in range(2))
        recall, precision, f1 = official(said, gold)
        assert value("token-recall", said, gold) == pytest.approx(recall)
        assert value("k-precision", said, shown=[gold]) == pytest.approx(precision)
        assert value("f1", said, gold) == pytest.approx(f1)


@pytest.mark.oracle(seed=49, clause=1, against="by hand")
def test_words_of_the_question_are_left_out():
    asked = "What is the peg of?"
    assert value("k-precision-pp", "The peg is of ebony", asked=asked, shown=["ebony wood"]) == 1
    assert value("k-precision", "The peg is of ebony", asked=asked, shown=["ebony wood"]) == 0.25
    assert value("k-precision-pp", "the peg is of gold and ebony", asked=asked, shown=["ebony wood"]) == pytest.approx(1 / 3)
    assert value("k-precision-pp", "the peg of peg", asked=asked, shown=["ebony"]) == 1, "nothing was added"
    # Turns before count as asked; the passages in the prompt do not.
    row = question("q", "And now?", passage="gold")
    row = type(row)("q", (Turn("user", (Part("What of maple?"),)), *row.turns))
    metric = build("metric", "k-precision-pp")
    assert metric.score([row], [Prediction("q", text="maple gold", shown=("gold",))], None)[0]["added"] == "gold"


def test_without_passages_faithfulness_is_undefined_and_kanji_are_words():
    for metric in ("k-precision", "k-precision-pp"):
        assert value(metric, "anything") is None
    assert build("metric", "k-precision").details([{"id": "q", "value": None}]) == {}
    assert value("k-precision", "東京", shown=["東大"]) == 0.5


class Answering:
    """An endpoint that answers from a list and keeps what it was asked."""

    def __init__(self, answers):
        self.answers, self.asked, self.url = answers, [], "stub"

    def ask(self, prompts, journal, progress):
        self.asked += prompts
        return self.answers[:len(prompts)]


@pytest.mark.oracle(seed=49, clause=1, against="answers by hand")
def test_a_judge_says_yes_or_no_or_is_not_read(make_ctx, monkeypatch):
    ctx = make_ctx("m")
    rows = [question(f"q{n}", "Which wood?", "ebony") for n in range(4)] + [question("none", "Why?")]
    said = [Prediction(r.id, text="maple", shown=("a maple scroll",)) for r in rows]
    for about, count, asked in (("correctness", 4, "- ebony\nCandidate answer: maple\nIs the candidate answer correct?"),
                                ("faithfulness", 5, "- a maple scroll\nResponse: maple\nDoes the evidence contain all")):
        judge = build("metric", {"use": "judge", "about": about})
        stub = Answering(["Yes.", "no", "NO, it is not", "perhaps", "yes"])
        object.__setattr__(judge, "endpoint", stub)
        records = judge.score(rows, said, ctx)
        assert [r["value"] for r in records][:4] == [1, 0, 0, None] and len(stub.asked) == count
        assert records[4]["value"] == (None if about == "correctness" else 1) and asked in stub.asked[0]
        assert judge.reduce(records[:4]) == pytest.approx(1 / 3)
        assert judge.details(records)["unread"] == pytest.approx(1 / count)


@pytest.mark.oracle(seed=49, clause=1, against="the model's own scores")
@pytest.mark.parametrize("about", ["correctness", "faithfulness"])
def test_a_model_here_judges_by_what_it_would_say(about, pico, make_ctx):
    """p(yes) / (p(yes) + p(no)) from all scores of the whole model, read from the prompt that an endpoint would get."""
    import torch

    from luthier.engine.models import load_base
    from luthier.engine.rendering import renderer

    rows = [question(f"q{n}", "Which wood?", "ebony") for n in range(2)] + [question("none", "Why?")]
    said = [Prediction(r.id, text=t, shown=("a maple scroll",) if r.id != "q1" else ()) for r, t in
            zip(rows, ("maple", "ebony it is", "x"), strict=True)]
    judge = build("metric", {"use": "judge", "about": about, "model": str(pico.folder)})
    records = judge.score(rows, said, make_ctx("m"))
    model = load_base(pico)
    render, asked = renderer(model), "none" if about == "correctness" else "q1"
    assert [r["id"] for r in records if r["value"] is None] == [asked]
    for row, answer, record in zip(rows, said, records, strict=True):
        if record["value"] is None:
            continue
        prompt = render.prompt(question("j", judge._prompt(row, answer)))
        chance = {}
        for word in ("yes", "Yes", "no", "No"):
            ids = render.encode(f" {word}")
            with torch.no_grad():
                scores = model.module(input_ids=torch.tensor([prompt + ids])).logits[0].double().log_softmax(-1)
            chance[word] = float(sum(scores[len(prompt) + i - 1, t] for i, t in enumerate(ids)).exp())
        yes, no = chance["yes"] + chance["Yes"], chance["no"] + chance["No"]
        assert record["value"] == pytest.approx(yes / (yes + no), abs=1e-4)
        assert record["said"] == ("yes" if yes > no else "no")


def test_judges_that_can_not_be_asked_are_refused(make_ctx, pico, pico_encoder):
    row, said = [question("q", "?", "x")], [Prediction("q", text="y")]
    both = build("metric", {"use": "judge", "endpoint": {"url": "http://localhost:1/v1"}, "model": str(pico.folder)})
    with pytest.raises(UserError, match="judge has two models that judge"):
        both.score(row, said, make_ctx("m"))
    with pytest.raises(UserError, match="no decoder .encoder."):
        build("metric", {"use": "judge", "model": str(pico_encoder.folder)}).score(row, said, make_ctx("m"))


def test_a_judge_sends_nothing_without_consent(make_ctx):
    with pytest.raises(UserError, match="judge needs a model that judges"):
        build("metric", "judge").score([question("q", "?", "x")], [Prediction("q", text="y")], make_ctx("m"))
    judge = build("metric", {"use": "judge", "endpoint": {"url": "http://localhost:1/v1", "model": "m"}})
    with pytest.raises(UserError, match="Nothing was sent"):
        judge.score([question("q", "?", "x")], [Prediction("q", text="y")], make_ctx("m"))


class Reader(Subject):
    """Says the last word of the passage it is shown, or abstains beside a wrong one when `careful`."""

    careful = True

    def answers(self, ctx, role, rows, decoder, repeats=1):
        from luthier.engine.rendering import passages_of

        found = []
        for row in rows:
            text = " ".join(passages_of(row))
            word = row.part("question").split()[-1].strip("?")
            known = "not found in the documents" if self.careful else f"{word} is of iron"
            found.append([Prediction(row.id, text=f"{word} is of wood{word}" if word in text else known)])
        return found


@pytest.mark.oracle(seed=49, clause=2, against="a reader by hand")
@pytest.mark.parametrize("careful", [True, False])
def test_wrong_passages_should_be_refused(engine, pico, make_ctx, careful):
    rows = [question(f"q{n}", f"What is item{n}?", f"wooditem{n}", passage=f"The item{n} is of wooditem{n}.") for n in range(8)]
    subject = Reader(engine, pico, examples=write_examples(make_ctx("rows").folder, {"test": rows}))
    subject.careful = careful
    found = {f.name.rsplit("/", 1)[1]: f for f in build("audit", "faithfulness").measure(make_ctx(f"a{careful}"), subject)}
    assert found["k-precision"].right == 1 and found["k-precision"].difference == 0
    assert found["wrong-refusals"].right == 0
    answered = found["answered-anyway"]
    assert answered.right == (0 if careful else 1) and answered.verdict == ("pass" if careful else "fail")
    if not careful:  # item, is, of stand in the original passage; of the wrong one is and of
        assert answered.extra["k_precision_original"] == pytest.approx(3 / 4)
        assert answered.extra["k_precision_shown"] == pytest.approx(2 / 4)


def test_a_question_is_swapped_with_one_that_does_not_hold_its_answer(engine, pico, make_ctx):
    from luthier.engine.rendering import passages_of

    rows = [question("a", "x?", "oak", passage="oak"), question("b", "y?", "elm", passage="elm and oak"),
            question("c", "z?", "fir", passage="fir")]
    assert [passages_of(r) for r in swapped(rows)] == [["fir"], ["fir"], ["oak"]]
    (none,) = build("audit", "faithfulness").measure(make_ctx("m"), Subject(engine, pico))
    assert none.verdict == "not applicable"
