"""evaluate: what is chosen on dev, what the model is shown, and numbers that can be made again from what is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luthier.core.artifact import Artifact, seal, write_examples
from luthier.core.citing import ABSTENTION
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Passage, Turn, question
from luthier.core.files import read_json, read_lines, write_lines, write_rows
from luthier.core.kinds import Prediction, Retriever
from luthier.core.step import Ctx
from luthier.engine.generation import Generated
from luthier.engine.rendering import renderer, with_answer, with_passages
from luthier.engine.steps.fit import Fit
from luthier.pipelines.showing import as_shot
from luthier.pipelines.steps.compare_arms import CompareArms
from luthier.pipelines.steps.evaluate import Evaluate

TOPICS = "clamp glue plane wood string varnish peg nut bridge scroll".split()
PASSAGES = {t: Passage(f"d:{t}", f"The {t}\nis number {i}.", "d", f"d#{t}", ("Guide", t)) for i, t in enumerate(TOPICS)}


class Planned(Retriever, name="test-planned"):
    """Finds the passage of the topic that is asked about, then the others; or nothing at all."""

    finds: bool = True

    def index(self, passages: Iterable[Passage], ctx: Ctx) -> Artifact:
        raise NotImplementedError

    def search(self, index: Artifact, queries: Sequence[str], k: int, ctx: Ctx) -> list[list[tuple[Passage, float]]]:
        assert ctx.roles["encoder"].architecture == "encoder"
        ranked = [sorted(PASSAGES.values(), key=lambda p: p.headings[-1] not in q) for q in queries]
        return [[(p, -float(i)) for i, p in enumerate(r[:k])] if self.finds else [] for r in ranked]


class Scripted:
    """An engine whose model says what `say` makes of the prompt's text; everything else is the real engine's."""

    def __init__(self, engine: Any, say: Callable[[str], str]) -> None:
        self.engine, self.say, self.asked, self.stops = engine, say, [], []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, model: Any, prompts: Sequence[list[int]], decoder: Any, *, stop: str, **rest: Any
                 ) -> list[Generated]:
        texts = [model.tokenizer.decode(p) for p in prompts]
        self.asked.append(texts)
        self.stops.append(stop)
        said = [self.say(t) for t in texts]
        return [Generated(s, len(s.split()), "\n" not in s, len(p)) for s, p in zip(said, prompts, strict=True)]


def ask(topic: str, name: str, shown: bool = True) -> Example:
    return question(f"{name}/{topic}", f"What is said of the {topic} in {name}?", f"number {TOPICS.index(topic)}",
                    passage=PASSAGES[topic].text if shown else "", cluster=f"d#{topic}",
                    references=(f"number {TOPICS.index(topic)}", "a number"), meta={"gold": [f"d:{topic}"]})


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Artifact:
    rows = {"train": [ask(t, "train", t != "glue") for t in TOPICS], "dev": [ask(t, "dev") for t in TOPICS[:5]],
            "known": [ask(t, "known", False) for t in TOPICS[:6]],
            "unseen": [ask(t, "unseen", False) for t in TOPICS[3:]],
            "unanswerable": [question("none/1", "Who plays it?", cluster="none")]}
    return write_examples(tmp_path_factory.mktemp("examples"), rows)


@pytest.fixture
def arm(make_ctx, engine, examples, pico, pico_encoder, tmp_path):
    """`arm(step, engine, finds)`: the records of an arm, its receipts agreeing; what was said is in `arm.log`."""
    def run(step: Evaluate, by: Any = None, finds: bool | None = None, rows: Artifact = examples) -> Artifact:
        name = f"arm{len(list(tmp_path.iterdir()))}"
        inputs = {"base": pico, "examples": rows}
        if finds is not None:
            (tmp_path / name / "index").mkdir(parents=True)
            index = seal("index", tmp_path / name / "index", retriever={"use": "test-planned", "finds": finds})
            inputs |= {"index": index, "encoder": pico_encoder}
        run.log, run.ctx = [], make_ctx(f"{name}/work", inputs)
        run.ctx = replace(run.ctx, log=run.log.append, engine=by or engine)
        step.check()
        made = step.run(inputs, run.ctx)
        assert [r.verdict for r in step.receipts(inputs, made, run.ctx)] == ["agrees", "agrees"]
        return made

    return run


def silent(prompt: str) -> str:
    return ""


def last(prompt: str) -> str:
    """The question that the prompt ends with."""
    return prompt.rpartition("Question: ")[2]


# --- the choice on dev -----------------------------------------------------------------------------------------------

CHOICES: dict[str, Any] = {"instructions": ("", "Be brief."), "shots": (2, 0), "stops": ("token", "newline")}


def test_the_best_way_of_asking_on_dev_is_chosen(arm, engine):
    def say(prompt: str) -> str:
        right = "Be brief." in prompt and "in train?" in prompt
        return "a number\nQuestion: and so on" if right else "nothing"

    made = arm(Evaluate(arm="base", **CHOICES), Scripted(engine, say))
    assert made.meta["prompting"] == {"instruction": "Be brief.", "shots": 2, "stop": "newline",
                                      "shot_ids": made.meta["prompting"]["shot_ids"]}
    assert [(t["instruction"], t["shots"], t["stop"]) for t in made.meta["tried"]] == [
        (i, n, s) for i in ("", "Be brief.") for n in (0, 2) for s in ("token", "newline")]
    best = [t["dev_f1"] for t in made.meta["tried"]]
    assert best[-1] == 1.0 > best[-2] > max(best[:-2]) and {t["questions"] for t in made.meta["tried"]} == {5}


@pytest.mark.parametrize("said", ["", "a number", "wrong"])
def test_of_equals_the_earlier_and_cheaper_is_chosen(arm, engine, said):
    made = arm(Evaluate(arm="base", **CHOICES), Scripted(engine, lambda prompt: said))
    assert made.meta["prompting"] == {"instruction": "", "shots": 0, "stop": "token", "shot_ids": []}


def test_another_metric_may_decide(arm, engine):
    by = Scripted(engine, lambda prompt: "a number" if "Be brief." in prompt else "number or so")
    made = arm(Evaluate(arm="base", **CHOICES, choose_by="exact-match"), by)
    assert made.meta["prompting"]["instruction"] == "Be brief." and made.meta["tried"][0]["dev_exact-match"] == 0.0


def test_the_test_sets_are_opened_after_the_choice(arm, engine):
    by = Scripted(engine, silent)
    arm(Evaluate(arm="mine", **CHOICES), by)
    assert [line.split(":")[0] for line in arm.log] == ["chosen on 5 dev questions", "test opened"]
    assert arm.log[1] == "test opened: 14 questions of known, unseen, unanswerable by arm mine"
    sets = [{last(t).partition("\n")[0].rpartition(" in ")[2] for t in texts} for texts in by.asked[:-1]]
    assert sets == [{"dev?"}] * 4
    assert len(by.asked[-1]) == 14 and by.stops == ["token"] * 5


def test_a_single_way_is_not_tried(arm, engine):
    by = Scripted(engine, silent)
    made = arm(Evaluate(arm="base", stops=("newline",)), by)
    assert made.meta["tried"] == [] and by.stops == ["newline"] and len(by.asked) == 1
    assert [line.split(":")[0] for line in arm.log] == ["test opened"]


def test_only_so_many_dev_rows_are_used(arm, engine):
    by = Scripted(engine, silent)
    made = arm(Evaluate(arm="base", shots=(0, 1), dev_rows=3), by)
    assert [len(t) for t in by.asked] == [3, 3, 14] and made.meta["tried"][0]["questions"] == 3


def test_an_empty_choice_is_refused():
    for field in ("instructions", "shots", "stops"):
        with pytest.raises(UserError, match=f"evaluate.{field} is empty"):
            Evaluate(arm="base", **{field: ()}).check()


# --- what the model is shown -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("passages", [0, 2])
def test_solved_examples_come_from_training_rows(arm, engine, examples, passages):
    by = Scripted(engine, silent)
    made = arm(Evaluate(arm="base", shots=(3,), passages=passages), by, finds=True)
    train = {e.id: e for e in examples.examples("train")}
    shots = [train[i] for i in made.meta["prompting"]["shot_ids"]]
    assert len({s.id for s in shots}) == 3
    head = "".join((f"Passage: [1] {s.part('passage')}\n" if passages else "")
                   + f"Question: {s.part('question')}\nAnswer: {s.answer}\n\n" for s in shots)
    assert all(prompt.startswith(f"<bos>{head}") and prompt.count("Answer:") == 4 for prompt in by.asked[-1])
    if passages:
        assert "train/glue" not in made.meta["prompting"]["shot_ids"], "an example without its passage shows nothing"


def test_passages_stand_best_first_on_one_line_below_their_headings(arm, engine):
    by = Scripted(engine, silent)
    made = arm(Evaluate(arm="base+retrieval", passages=2, sets=("unseen",)), by, finds=True)
    assert by.asked[-1][0] == ("<bos>Passage: [1] Guide / wood: The wood is number 3.\n"
                                 "Passage: [2] Guide / clamp: The clamp is number 0.\n"
                                 "Question: What is said of the wood in unseen?\nAnswer:")
    row = read_lines(made.folder / "predictions.jsonl")[0]
    assert row["passages"] == ["d:wood", "d:clamp"]
    assert len(row["ranked"]) == 10, "recall and ndcg see what was not shown"


@pytest.mark.oracle(seed=24, clause=4, against="limit")
@pytest.mark.parametrize("shots", [0, 2])
def test_without_passages_retrieval_changes_nothing(arm, engine, examples, pico, shots, monkeypatch):
    asked: list[Any] = []
    whole = type(engine).generate

    def listen(self, model, prompts, *args, **rest):
        asked.append([bytes(str(p), "ascii") for p in prompts])
        return whole(self, model, prompts, *args, **rest)

    monkeypatch.setattr(type(engine), "generate", listen)
    step = {"arm": "x", "shots": (shots,), "decoder": "greedy:max_new_tokens=3"}
    off, zero = arm(Evaluate(**step)), arm(Evaluate(**step, passages=0), finds=True)
    assert asked[0] == asked[1]
    answers = [[(r["id"], r["text"]) for r in read_lines(a.folder / "predictions.jsonl")] for a in (off, zero)]
    assert answers[0] == answers[1] and off.identity == zero.identity
    if not shots:
        nothing = arm(Evaluate(**step, passages=3), finds=False)
        assert asked[2] == asked[0] and nothing.meta["prompt_tokens"] == off.meta["prompt_tokens"]


@pytest.mark.oracle(seed=24, clause=3, against="limit")
def test_a_retriever_that_knows_the_passage_has_recall_one(arm, engine):
    made = arm(Evaluate(arm="x", passages=1, metrics=("recall", "ndcg:k=3"), sets=("known", "unseen")),
               Scripted(engine, silent), finds=True)
    assert {r["value"] for r in read_lines(made.folder / "scores.jsonl")} == {1.0}


def test_an_arm_with_passages_needs_an_index(arm):
    with pytest.raises(UserError, match="Arm 'x' shows passages: it needs the inputs 'index' and 'encoder'"):
        arm(Evaluate(arm="x", passages=1))


def test_a_prompt_that_is_too_long_is_refused(arm, engine, tmp_path):
    long = question("long", "word " * 4000 + "?", "a", cluster="s")
    rows = write_examples(tmp_path / "rows", {"train": [], "dev": [], "known": [ask("glue", "known"), long]})
    with pytest.raises(UserError, match=r"A prompt of arm 'x' has \d+ tokens; pico reads 4096. Show fewer passages"):
        arm(Evaluate(arm="x"), rows=rows)


def test_a_prompt_that_leaves_just_enough_room_is_asked(arm, engine, examples, pico):
    model = engine.load(pico)
    longest = max(len(renderer(model).prompt(with_passages(e, ()))) for s in ("known", "unseen", "unanswerable")
                  for e in examples.examples(s))

    class Narrow(Scripted):
        def load(self, *args, **named):
            return replace(model, limit=longest + 32)

    arm(Evaluate(arm="x"), Narrow(engine, silent))
    with pytest.raises(UserError, match=f"has {longest + 33} tokens"):
        arm(Evaluate(arm="x", decoder="greedy:max_new_tokens=33"), Narrow(engine, silent))


def test_sets_that_are_not_there_are_refused(arm):
    with pytest.raises(UserError, match="None of the sets test is in the examples: dev, known, train, "):
        arm(Evaluate(arm="x", sets=("test",)))


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_predictions_say_what_was_asked_and_answered(arm, engine):
    made = arm(Evaluate(arm="x", sets=("known",), stops=("newline",)), Scripted(engine, lambda p: "a number"))
    row = read_lines(made.folder / "predictions.jsonl")[1]
    assert row == {"id": "known/glue", "set": "known", "cluster": "d#glue", "text": "a number", "stopped": True,
                   "question": "What is said of the glue in known?", "references": ["number 1", "a number"],
                   "tokens": 2, "passages": [], "ranked": []}
    assert made.meta["metrics"] == dict.fromkeys(("exact-match", "f1", "recall", "ndcg", "stops", "abstains"), True)
    assert made.meta["new_tokens"] == 12 and made.meta["prompt_tokens"] > 0
    assert read_json(made.folder / "cost.json")["seconds"] >= 0


@pytest.mark.oracle(seed=24, clause=5,
                    against="re-scoring")
def test_every_number_is_made_again_from_the_stored_predictions(arm, engine, examples, make_ctx):
    step = Evaluate(arm="base+retrieval", passages=2, decoder="greedy:max_new_tokens=8")
    arms = {"real": arm(step, finds=True),
            "other": arm(step.model_copy(update={"arm": "other"}),
                         Scripted(engine, lambda p: f"number {len(last(p)) % 9}"), finds=True)}
    asked = {e.id: e for n in examples.subsets for e in examples.examples(n)}
    table = read_json(CompareArms().run(arms, make_ctx("table")).folder / "table.json")
    for made in arms.values():
        rows = read_lines(made.folder / "predictions.jsonl")
        said = [Prediction(r["id"], text=r["text"], stopped=r["stopped"], passages=tuple(r["ranked"])) for r in rows]
        kept = read_lines(made.folder / "scores.jsonl")
        for name in made.meta["metrics"]:
            metric = build("metric", name)
            records = metric.score([asked[r["id"]] for r in rows], said, None)
            assert [r["value"] for r in records] == [r["value"] for r in kept if r["metric"] == name]
            for subset in ("known", "unseen", "unanswerable"):
                cell = (made.meta["arm"], subset, name)
                found = [t["value"] for t in table if (t["arm"], t["set"], t["metric"]) == cell]
                value = metric.reduce([r for r, row in zip(records, rows, strict=True) if row["set"] == subset])
                assert found == [] if math.isnan(value) else found == pytest.approx([value], abs=1e-12)
    assert len({t["value"] for t in table}) > 4, "the table must hold numbers of some variety"


def test_the_receipts_see_a_lost_answer_and_a_lost_record(arm, engine, examples):
    step = Evaluate(arm="x")
    made = arm(step, Scripted(engine, silent))
    for file, verdicts in (("predictions.jsonl", ["differs", "agrees"]), ("scores.jsonl", ["differs", "differs"])):
        rows = read_lines(Path(made.folder) / file)
        write_lines(made.folder / file, rows[1:])
        assert [r.verdict for r in step.receipts({"examples": examples}, made, None)] == verdicts


def test_a_classifier_answers_with_labels_and_their_probabilities(make_ctx, pico_encoder, tmp_path):
    texts = [Example(f"t{i}", (Turn("user", (Part(f"a text of number {i}"),)),), cluster=f"c{i}", label="ab"[i % 2])
             for i in range(8)]
    rows = write_examples(tmp_path / "rows", {"train": texts[:4], "dev": [], "unseen": texts[4:]}, labels=["a", "b"])
    inputs = {"base": pico_encoder, "examples": rows}
    tuned = Fit(tasks=[{"data": "examples.train", "objective": "classify", "head": "linear"}], length={"steps": 1}).run(
        inputs, make_ctx("fit", inputs))
    step, log = Evaluate(arm="tuned", sets=("unseen",), metrics=("accuracy",)), []
    made = step.run({**inputs, "tuned": tuned}, replace(make_ctx("arm"), log=log.append))
    assert [r.verdict for r in step.receipts(inputs, made, None)] == ["agrees", "agrees"]
    assert log == ["test opened: 4 rows of unseen by arm tuned"]
    scores = {r["id"]: r["value"] for r in read_lines(made.folder / "scores.jsonl")}
    for text, row in zip(texts[4:], read_lines(made.folder / "predictions.jsonl"), strict=True):
        assert (row["id"], row["label"], row["set"]) == (text.id, text.label, "unseen")
        assert sum(row["probabilities"].values()) == pytest.approx(1) and set(row["probabilities"]) == {"a", "b"}
        assert row["text"] == max(row["probabilities"], key=row["probabilities"].get)
        assert scores[text.id] == float(row["text"] == text.label)


# --- citations, hidden sections, the oracle, options ------------------------------------------------------------------


def test_citations_are_taken_out_of_the_answer_and_kept(arm, engine):
    def say(prompt: str) -> str:
        return "a number [2]" if "glue" in last(prompt) else "a number [1, 9]" if "peg" in last(prompt) else "a number"

    metrics = ("exact-match", "citation-precision", "citation-recall")
    step = Evaluate(arm="x", passages=2, sets=("known", "unseen"), metrics=metrics)
    made = arm(step, Scripted(engine, say), finds=True)
    rows = {r["id"]: r for r in read_lines(made.folder / "predictions.jsonl")}
    assert {r["text"] for r in rows.values()} == {"a number"}
    assert rows["known/glue"]["citations"] == ["d:clamp"] and "citations" not in rows["known/wood"]
    assert rows["unseen/peg"]["citations"] == ["d:peg", "[9]"]
    scores = {(r["id"], r["metric"]): r["value"] for r in read_lines(made.folder / "scores.jsonl")}
    assert {v for (_, m), v in scores.items() if m == "exact-match"} == {1.0}
    assert [scores[i, "citation-precision"] for i in ("known/glue", "unseen/peg", "known/wood")] == [0.0, 0.5, None]
    assert [scores[i, "citation-recall"] for i in ("known/glue", "unseen/peg", "known/wood")] == [0.0, 1.0, 0.0]
    assert made.meta["details"]["citation-recall"]["unseen"] == {"where shown": 1 / 7}


def test_brackets_are_text_where_nothing_was_shown(arm, engine):
    made = arm(Evaluate(arm="x", sets=("known",)), Scripted(engine, lambda p: "a number [2]"))
    row = read_lines(made.folder / "predictions.jsonl")[0]
    assert row["text"] == "a number [2]" and "citations" not in row


def test_a_citation_before_the_line_end_counts_in_the_choice(arm, engine):
    by = Scripted(engine, lambda p: "a number [1]\nQuestion: more")
    made = arm(Evaluate(arm="x", passages=1, stops=("token", "newline"), choose_by="exact-match"), by, finds=True)
    assert [t["dev_exact-match"] for t in made.meta["tried"]] == [0.0, 1.0]


def hide(*rows: Example) -> list[Example]:
    return [replace(e, id=f"hidden/{e.id}", turns=e.turns[:1], references=(), meta={"gold": [], "hidden": [e.cluster]})
            for e in rows]


def test_a_hidden_section_is_not_found_for_its_question_alone(arm, engine, tmp_path):
    asked = ask("wood", "unseen", False)
    rows = write_examples(tmp_path / "rows", {"train": [], "dev": [], "unseen": [asked], "unanswerable": hide(asked)})
    by = Scripted(engine, silent)
    made = arm(Evaluate(arm="x", passages=10), by, finds=True, rows=rows)
    plain, hidden = read_lines(made.folder / "predictions.jsonl")
    assert plain["ranked"][0] == "d:wood" and hidden["ranked"] == plain["ranked"][1:], "the next best stand in its place"
    assert "The wood is" in by.asked[-1][0] and "The wood is" not in by.asked[-1][1]
    assert hidden["question"] == plain["question"]


@pytest.fixture
def documents(tmp_path) -> Artifact:
    (tmp_path / "documents").mkdir()
    write_rows(tmp_path / "documents" / "passages", (p.to_dict() for p in PASSAGES.values()))
    return seal("documents", tmp_path / "documents", passages=len(PASSAGES))


class Blind(Planned, name="test-blind"):
    """Finds the passages in one order, whatever is asked."""

    def search(self, index: Artifact, queries: Sequence[str], k: int, ctx: Ctx) -> list[list[tuple[Passage, float]]]:
        return [[(p, -float(i)) for i, p in enumerate(PASSAGES.values())][:k] for _ in queries]


@pytest.mark.oracle(seed=167, clause=2, against="limit")
def test_the_oracle_shows_gold_first_and_is_reported_beside_retrieval(make_ctx, engine, examples, pico, pico_encoder,
                                                                      documents, tmp_path):
    def say(prompt: str) -> str:
        topic = last(prompt).split()[5]
        return f"number {TOPICS.index(topic)}" if f"The {topic} is number" in prompt else "nothing"

    index = seal("index", make_ctx("index").folder, retriever={"use": "test-blind"})
    inputs = {"base": pico, "examples": examples, "index": index, "encoder": pico_encoder, "documents": documents}
    arms = {}
    for name in ("index", "oracle"):
        step = Evaluate(arm=name, passages=2, retriever=name, sets=("known", "unseen"), metrics=("f1", "recall", "mrr"))
        arms[name] = step.run(inputs, replace(make_ctx(name), engine=Scripted(engine, say)))
    table = {(t["arm"], t["set"], t["metric"]): t["value"] for t in
             read_json(CompareArms().run(arms, make_ctx("table")).folder / "table.json")}
    assert table["oracle", "unseen", "recall"] == table["oracle", "unseen", "mrr"] == 1.0
    assert table["oracle", "known", "f1"] == table["oracle", "unseen", "f1"] == 1.0
    assert table["index", "known", "f1"] < 1 and table["index", "unseen", "recall"] == 2 / 7
    found = read_lines(arms["oracle"].folder / "predictions.jsonl")
    assert all(r["ranked"][0] == f"d:{r['id'].partition('/')[2]}" and len(set(r["ranked"])) == 10 for r in found)
    details = arms["index"].meta["details"]["recall"]["unseen"]
    assert details == {"recall@1": 0.0, "recall@3": 0.0, "recall@5": 2 / 7, "recall@10": 1.0}


def test_an_oracle_needs_the_documents_that_hold_gold(make_ctx, engine, examples, pico, pico_encoder, documents, tmp_path):
    index = seal("index", make_ctx("index").folder, retriever={"use": "test-blind"})
    inputs = {"base": pico, "examples": examples, "index": index, "encoder": pico_encoder}
    step = Evaluate(arm="x", passages=1, retriever="oracle")
    with pytest.raises(UserError, match="it needs the input 'documents'"):
        step.run(inputs, make_ctx("none"))
    strange = write_examples(tmp_path / "strange", {"known": [replace(ask("glue", "known"), meta={"gold": ["d:lute"]})]})
    with pytest.raises(UserError, match="no passage 'd:lute', which is the gold passage"):
        step.run({**inputs, "examples": strange, "documents": documents}, make_ctx("strange"))


def choice(topic: str, name: str) -> Example:
    return replace(ask(topic, name, False), turns=ask(topic, name, False).turns[:1], task="multiple-choice",
                   label=TOPICS.index(topic) % 4, meta={"gold": [f"d:{topic}"], "options": [f"number {i}" for i in range(4)]})


@pytest.mark.oracle(seed=167, clause=1, against="limit")
def test_no_passages_give_the_scores_of_the_base(arm, engine, tmp_path):
    rows = write_examples(tmp_path / "rows", {"known": [choice(t, "known") for t in TOPICS]})
    step = {"arm": "x", "metrics": ("multiple-choice",)}
    base, zero = arm(Evaluate(**step), rows=rows), arm(Evaluate(**step, passages=0), finds=True, rows=rows)
    empty, shown = (arm(Evaluate(**step, passages=2), finds=f, rows=rows) for f in (False, True))
    told = [[r["scores"] for r in read_lines(a.folder / "scores.jsonl")] for a in (base, zero, empty, shown)]
    assert told[0] == told[1] == told[2] and told[3] != told[0]
    assert [r["passages"][0] for r in read_lines(shown.folder / "predictions.jsonl")] == [f"d:{t}" for t in TOPICS]


def test_options_are_not_answered_in_words(arm, engine, tmp_path):
    rows = write_examples(tmp_path / "rows", {"known": [choice("glue", "known")]})
    with pytest.raises(UserError, match=r"are multiple choice.*--metric multiple-choice"):
        arm(Evaluate(arm="x"), rows=rows)


def test_metrics_are_handed_the_encoder(arm, engine):
    made = arm(Evaluate(arm="x", metrics=("similarity",), sets=("known",)), Scripted(engine, lambda p: "a number"), finds=True)
    assert {round(r["value"], 4) for r in read_lines(made.folder / "scores.jsonl")} == {1.0}
    with pytest.raises(UserError, match="A metric of arm 'x' compares meanings"):
        arm(Evaluate(arm="x", metrics=("similarity",)), Scripted(engine, silent))


def test_abstention_is_told_of_all_sets_together(arm, engine):
    made = arm(Evaluate(arm="x", metrics=("abstention", "abstains")), Scripted(engine, lambda p: ABSTENTION))
    assert made.meta["details"]["abstention"]["all"] == {"precision": 1 / 14, "recall": 1.0, "f1": pytest.approx(2 / 15)}
    assert "known" not in made.meta["details"]["abstention"]


def test_a_solved_example_is_shown_as_its_arm_asks():
    trained = with_passages(with_answer(ask("glue", "train"), "number 1 [2]"), ["one", "two"])
    trained = replace(trained, meta={"answer": "number 1", "shown": ["a", "b"]})
    assert as_shot(trained, True) == trained
    bare = as_shot(trained, False)
    assert bare.answer == "number 1" and not bare.part("passage") and bare.part("question") == trained.part("question")
    lost = replace(with_answer(trained, ABSTENTION))
    assert as_shot(lost, False).answer == "number 1", "closed-book every question has its answer"


def test_examples_without_their_passage_teach_no_base_to_abstain(arm, engine, tmp_path):
    train = [replace(with_answer(ask(t, "train"), ABSTENTION if i % 2 else "a [1]"), meta={"answer": "a"})
             for i, t in enumerate(TOPICS)]
    rows = write_examples(tmp_path / "rows", {"train": train, "dev": [], "known": [ask("glue", "known", False)]})
    by = Scripted(engine, silent)
    arm(Evaluate(arm="x", shots=(4,), passages=1), by, finds=True, rows=rows)
    assert by.asked[-1][0].count("Answer: a [1]") == 4 and ABSTENTION not in by.asked[-1][0]
