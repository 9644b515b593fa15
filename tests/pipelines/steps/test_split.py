"""split: no section is on two sides, nothing tested was asked in training, and every row is accounted for."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.core.artifact import Artifact, seal, write_examples
from luthier.core.citing import ABSTENTION
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Part, Passage, Turn, question
from luthier.core.files import write_rows
from luthier.core.kinds import DataStep, Retriever
from luthier.core.rng import Rng
from luthier.core.step import Ctx
from luthier.pipelines.steps.split import Split, _closest, _words
from luthier.techniques.data import (  # noqa: F401  (registered by their import)
    distractors,
    show_passage,
    unanswerable,
)


def ask(id: str, text: str, section: str, generator: str = "few-shot") -> Example:
    return question(id, text, "an answer", passage=f"About {section}.", cluster=section, meta={"generator": generator})


def sections(count: int, each: int = 2, generators: Sequence[str] = ("few-shot",)) -> list[Example]:
    """Questions that have no two words in common."""
    return [ask(f"{g}/{s}.{i}", f"{g}{s}x{i} {g}{s}y{i}?", f"s{s}", g)
            for s in range(count) for g in generators for i in range(each)]


def artifact(folder: Path, **subsets: Iterable[Example]) -> Artifact:
    (folder / "licenses").mkdir(parents=True)
    (folder / "licenses" / f"{folder.name}.txt").write_text("terms")
    return write_examples(folder, subsets, labels=["a", "b"])


@pytest.fixture
def divide(make_ctx, tmp_path):
    """`divide(rows, test, seed, **fields)`: the artifact, with every receipt agreeing; its log is in `divide.log`."""
    def run(rows: Iterable[Example], test: Mapping[str, Iterable[Example]] | None = None, seed: int = 0,
            **fields: Any) -> Artifact:
        place = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        inputs = {"questions": artifact(place / "questions", all=rows)}
        if test is not None:
            inputs["test"] = artifact(place / "test", **{"known": [], "unseen": [], "unanswerable": [], **test})
        run.log = []
        step, ctx = Split(**fields), replace(make_ctx(f"{place.name}/split"), rng=Rng(seed), log=run.log.append)
        made = step.run(inputs, ctx)
        assert {r.name: r.verdict for r in step.receipts(inputs, made, ctx)} == dict.fromkeys(
            ("split/rows", "split/leaked questions", "split/leaked sections"), "agrees")
        return made

    return run


def ids(made: Artifact) -> dict[str, list[str]]:
    return {name: [e.id for e in made.examples(name)] for name in made.subsets}


def clusters(made: Artifact, *names: str) -> set[str]:
    return {e.cluster for name in names for e in made.examples(name)}


def left_out(made: Artifact) -> dict[str, str]:
    return {r["id"]: r["reason"] for r in made.ledger()}


# --- sections ---------------------------------------------------------------------------------------------------------


def test_train_dev_and_unseen_share_no_section(divide):
    made = divide(sections(20), unseen_share=0.2, dev_share=0.25)
    sides = [clusters(made, name) for name in ("train", "dev", "unseen")]
    assert [len(s) for s in sides] == [12, 4, 4] and len(set.union(*sides)) == 20
    assert made.meta["rows"] == {"train": 24, "dev": 8, "unseen": 8} and made.meta["labels"] == ["a", "b"]
    assert divide.log == ["24 train, 8 dev, 8 unseen; 0 left out"]
    assert (made.folder / "licenses" / "questions.txt").exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5])
def test_at_least_one_section_is_unseen_unless_none_is_wanted(divide, share):
    made = divide(sections(10), unseen_share=share)
    assert len(clusters(made, "unseen")) == {0.0: 0, 0.01: 1, 0.5: 5}[share]


SENTENCES = st.lists(st.sampled_from("what is a module file name scope of the yield".split()), min_size=1, max_size=4)
ROW = st.tuples(SENTENCES, st.integers(0, 11), st.sampled_from(["headings", "few-shot"]))
ROWS = st.lists(ROW, min_size=10, max_size=40)


@given(ROWS, st.integers(0, 5), st.sampled_from([0.0, 0.2, 0.6]), st.sampled_from([0.5, 0.8, 1.0]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_whatever_the_rows_nothing_leaks_and_nothing_is_lost(divide, rows, seed, unseen_share, max_overlap):
    examples = [ask(f"q{i}", " ".join(w) + "?", f"s{s}", g) for i, (w, s, g) in enumerate(rows)]
    try:
        made = divide(examples, seed=seed, unseen_share=unseen_share, max_overlap=max_overlap)
    except UserError as error:
        assert "section" in str(error) or "No row is left" in str(error)
        return
    train, dev, unseen = (clusters(made, n) if n in made.subsets else set() for n in ("train", "dev", "unseen"))
    assert not train & dev and not train & unseen and not dev & unseen
    found = [i for part in ids(made).values() for i in part]
    assert sorted([*found, *left_out(made)]) == sorted(e.id for e in examples)
    known = list(made.examples("known"))
    assert {e.cluster for e in known} <= train
    tested = [_words(e) for n in ("known", "unseen") for e in made.examples(n)]
    for row in (e for n in ("train", "dev") for e in made.examples(n)):
        assert all(share(_words(row), t) < max_overlap for t in tested)


def share(one: frozenset[str], two: frozenset[str]) -> float:
    return len(one & two) / len(one | two) if one | two else 0.0


def test_too_few_sections_are_refused_with_what_to_do(divide):
    with pytest.raises(UserError, match=r"from 5 section.*at least 6 .*Add documents, or lower split.min_clusters"):
        divide(sections(5))
    assert clusters(divide(sections(5), min_clusters=5), "train")


def test_no_row_left_for_training_is_refused(divide):
    with pytest.raises(UserError, match="No row is left for train"):
        divide(sections(6), unseen_share=0.9)


def test_the_seed_decides_and_nothing_else(divide):
    rows = sections(20, generators=("headings", "few-shot"))
    one, again, shuffled = divide(rows, seed=1), divide(rows, seed=1), divide(rows[::-1], seed=1)
    assert one.identity == again.identity
    assert {n: set(i) for n, i in ids(one).items()} == {n: set(i) for n, i in ids(shuffled).items()}
    assert len({frozenset(ids(divide(rows, seed=s))["unseen"]) for s in range(4)}) == 4


# --- known ------------------------------------------------------------------------------------------------------------


def test_known_questions_come_from_another_generator_on_trained_sections(divide):
    made = divide(sections(20, generators=("headings", "few-shot")))
    assert {e.meta["generator"] for e in made.examples("known")} == {"few-shot"}
    assert {e.meta["generator"] for e in made.examples("train")} == {"headings"}
    assert clusters(made, "known") == clusters(made, "train")
    assert {e.meta["generator"] for n in ("dev", "unseen") for e in made.examples(n)} == {"headings", "few-shot"}
    other = divide(sections(20, generators=("headings", "few-shot")), known_generator="headings")
    assert {e.meta["generator"] for e in other.examples("known")} == {"headings"}


def test_one_generator_alone_has_no_known_questions(divide):
    assert divide(sections(20, generators=("headings",))).subsets == ["dev", "train", "unseen"]


def test_a_known_question_about_a_section_that_nothing_was_trained_on_is_left_out(divide):
    rows = [*sections(12, generators=("headings",)), ask("lonely", "lonely question?", "alone", "few-shot")]
    outcomes = {left_out(divide(rows, seed=s)).get("lonely") for s in range(3)}
    assert "known question about a section without training rows" in outcomes


# --- hand-written test sets ------------------------------------------------------------------------------------------


def test_hand_written_sets_are_taken_as_they_are(divide):
    test = {"known": [ask("k", "hand1 hand2?", "s3")], "unseen": [ask("u", "hand3 hand4?", "s5"),
                                                                 ask("v", "hand5 hand6?", "elsewhere")],
            "unanswerable": [ask("n", "hand7 hand8?", "unanswerable/n")]}
    for seed in range(5):
        made = divide(sections(12, generators=("headings", "few-shot")), test, seed=seed, dev_share=0.9)
        found = ids(made)
        assert (found["known"], found["unseen"], found["unanswerable"]) == (["k"], ["u", "v"], ["n"])
        assert "s5" not in clusters(made, "train", "dev"), "unseen sections are kept out of training"
        assert "s3" in clusters(made, "train"), "known sections are trained on, not spent on dev"
        assert {i for i, why in left_out(made).items() if why == "section kept out of training"} == {
            f"{g}/5.{i}" for g in ("headings", "few-shot") for i in range(2)}
        assert {e.meta["generator"] for e in made.examples("train")} == {"headings", "few-shot"}


def test_a_section_in_both_sets_is_refused(divide):
    test = {"known": [ask("k", "hand1?", "s3")], "unseen": [ask("u", "hand2?", "s3")]}
    with pytest.raises(UserError, match="Section 's3' has test questions of both sets"):
        divide(sections(12), test)


def test_a_hand_written_question_about_a_section_without_training_rows_is_left_out(divide):
    made = divide(sections(12), {"known": [ask("k", "hand1 hand2?", "nowhere"), ask("l", "hand3 hand4?", "s1")]})
    assert ids(made)["known"] == ["l"]
    assert left_out(made)["k"] == "known question about a section without training rows"


# --- leaks ------------------------------------------------------------------------------------------------------------


def test_a_question_too_close_to_a_test_question_is_left_out_and_counted(divide):
    rows = [*sections(12), ask("leak", "What does the module \"name\" hold now?", "s3"),
            ask("near", "what does the module name hold?", "s4"), ask("far", "Where does a module live then?", "s4")]
    test = {"known": [ask("k", "What does the module name hold now?", "s3")]}
    made = divide(rows, test)
    assert left_out(made) == {"leak": "too close to a test question", "near": "too close to a test question"}
    assert {r["id"]: r["detail"] for r in made.ledger()} == {"leak": "1.00 of k", "near": "0.86 of k"}
    assert "far" in ids(made)["train"] and made.meta["dropped"] == 2
    assert divide.log[0].endswith("2 left out")
    assert set(left_out(divide(rows, test, max_overlap=0.9))) == {"leak"}


@pytest.mark.parametrize("subset", ["known", "unseen", "unanswerable"])
def test_every_test_set_is_looked_at_and_dev_is_cleaned_too(divide, subset):
    rows = [ask(f"q{i}", f"The same question of all {i % 2}?", f"s{i}") for i in range(8)]
    rows += sections(12)
    made = divide(rows, {subset: [ask("t", "The same question of all 1?", "s1" if subset == "known" else "elsewhere")]},
                  dev_share=0.5, max_overlap=1.0)
    assert {i for i, why in left_out(made).items() if why == "too close to a test question"} == {"q1", "q3", "q5", "q7"}


def test_the_receipts_see_leaked_questions_and_sections(make_ctx, tmp_path):
    rows = [ask("a", "What is it?", "s1"), ask("b", "is it what", "s2"), ask("c", "Who?", "s1")]
    made = write_examples(tmp_path / "made", {"train": rows[:1], "unseen": rows[1:], "dev": []}, read=4)
    found = {r.name: (r.verdict, r.right) for r in Split().receipts({}, made, make_ctx("r"))}
    assert found == {"split/rows": ("differs", 3), "split/leaked questions": ("differs", 1),
                     "split/leaked sections": ("differs", 1)}


def test_texts_without_a_word_leak_only_when_they_are_the_same(divide):
    marks = ["!!!", "???", "...", "!?", "?!", "!", "word", "other"]
    texts = [Example(f"t{i}", (Turn("user", (Part(mark),)),), cluster=f"s{i}", label="a")
             for i, mark in enumerate(marks)]
    assert left_out(divide(texts)) == {}
    same = [replace(t, id=f"u{i}", cluster=f"z{i}") for i, t in enumerate(texts)]
    made = divide([*texts, *same], dev_share=0.5, unseen_share=0.5)
    assert set(left_out(made).values()) == {"too close to a test question"}


# --- overlap ---------------------------------------------------------------------------------------------------------


def test_the_overlap_report_of_a_hand_case(divide):
    test = {"known": [ask("k1", "few-shot3x0 hand1?", "s3"), ask("k2", "hand2 hand3?", "s4")],
            "unseen": [ask("u", "hand4 hand5?", "elsewhere")]}
    made = divide(sections(12, each=1), test)
    assert made.meta["overlap"] == {
        "known": {"questions": 2, "sections": 2, "share of sections trained on": 1.0,
                  "largest share of words common with a trained question": 0.333},
        "unseen": {"questions": 1, "sections": 1, "share of sections trained on": 0.0,
                   "largest share of words common with a trained question": 0.0}}


def test_the_nearest_question_is_that_of_brute_force():
    draw = random.Random(0)
    vocabulary = [f"w{i}" for i in range(30)]
    rows, others = ([ask(str(i), " ".join(draw.choices(vocabulary, k=draw.randint(0, 9))) or "?", "s")
                     for i in range(n)] for n in (700, 90))
    found = _closest(rows, others)
    assert len(found) == 700
    for row, (place, value) in zip(rows, found, strict=True):
        all_shares = [share(_words(row), _words(o)) for o in others]
        assert value == pytest.approx(max(all_shares), abs=1e-6)
        assert all_shares[place] == pytest.approx(max(all_shares), abs=1e-6)
    assert _closest(rows[:3], []) == [(0, 0.0)] * 3 and _closest([], others) == []


# --- augmentation -----------------------------------------------------------------------------------------------------


class EverySecond(DataStep, name="test-every-second"):
    """Leaves out every second row."""

    def apply(self, rows: Iterator[Any], ctx: Ctx) -> Iterator[Any]:
        for i, row in enumerate(rows):
            yield row if i % 2 else Dropped(row.id, "every second")


def test_augmentation_changes_training_rows_alone(divide):
    made = divide(sections(20), augment=("show-passage:share=0",))
    assert not any(e.part("passage") for e in made.examples("train"))
    assert all(e.part("passage") for n in ("dev", "unseen") for e in made.examples(n))


def test_what_augmentation_leaves_out_is_in_the_ledger(divide):
    made = divide(sections(20), augment=("test-every-second",))
    assert len([r for r in made.ledger() if r["reason"] == "every second"]) == made.meta["rows"]["train"] > 0


def test_drawn_test_sets_are_capped_and_what_goes_is_in_the_ledger(make_ctx):
    rows = [question(f"q{i}", f"What is thing number{i} of kind{i}?", "a thing", cluster=f"s{i % 20}",
                     meta={"generator": "headings"}) for i in range(200)]
    questions = write_examples(make_ctx("cap/rows").folder, {"all": rows})
    ctx = make_ctx("cap/split", {"questions": questions})
    step = Split(max_test_rows=5)
    made = step.run({"questions": questions}, ctx)
    gone = [r for r in made.ledger() if r["reason"].startswith("beyond max_test_rows")]
    assert made.meta["rows"]["unseen"] == 5 and len(gone) == 40 - 5
    assert all(r.verdict == "agrees" for r in step.receipts({"questions": questions}, made, ctx))


PASSAGES = [Passage(f"p{i}", f"About s{i}.", "d", f"s{i}") for i in range(20)]


class InOrder(Retriever, name="test-in-order"):
    """Finds all passages in their order, whatever is asked."""

    def index(self, passages: Iterable[Passage], ctx: Ctx) -> Artifact:
        raise NotImplementedError

    def search(self, index: Artifact, queries: Sequence[str], k: int, ctx: Ctx) -> list[list[tuple[Passage, float]]]:
        return [[(p, -float(i)) for i, p in enumerate(PASSAGES[:k])] for _ in queries]


@pytest.fixture
def shown(make_ctx, pico_encoder):
    """The split of 20 sections whose training rows show what a retriever finds, with all its receipts."""
    rows = [replace(r, source=f"p{r.cluster[1:]}", meta={**r.meta, "gold": [f"p{r.cluster[1:]}"]}) for r in sections(20)]
    folder = make_ctx("documents").folder
    write_rows(folder / "passages", (p.to_dict() for p in PASSAGES))
    inputs = {"questions": write_examples(make_ctx("rows").folder, {"all": rows}), "encoder": pico_encoder,
              "documents": seal("documents", folder, passages=20),
              "index": seal("index", make_ctx("index").folder, retriever={"use": "test-in-order"})}
    step = Split(augment=("show-passage:share=0.7", "distractors:no_gold_rate=0.3"), unanswerable="unanswerable:rows=5",
                 unseen_share=0.4)
    ctx = make_ctx("split", inputs)
    made = step.run(inputs, ctx)
    return made, step.receipts(inputs, made, ctx), step, inputs, ctx


def test_training_shows_what_is_found_but_nothing_that_is_unseen(shown):
    made, receipts, step, inputs, ctx = shown
    assert {r.name: r.verdict for r in receipts} == dict.fromkeys(
        ("split/unseen passages shown", "split/rows", "split/leaked questions", "split/leaked sections"), "agrees")
    hidden = {f"p{c[1:]}" for c in clusters(made, "unseen")}
    train = list(made.examples("train"))
    names = {name for r in train for name in r.meta.get("shown", ())}
    assert len(hidden) == 8 and names and not names & hidden
    assert 0 < sum(r.answer == ABSTENTION for r in train) < sum(bool(r.part("passage")) for r in train) < len(train)
    leak = replace(train[0], meta={**train[0].meta, "shown": sorted(hidden)})
    subsets = {n: list(made.examples(n)) for n in made.subsets}
    other = write_examples(ctx.folder / "other", {**subsets, "train": [leak, *train[1:]]}, read=made.meta["read"], made=5)
    assert step.receipts(inputs, other, ctx)[0].verdict == "differs"


def test_training_is_watched_by_rows_like_those_it_learns(shown):
    made = shown[0]
    dev, watched = (list(made.examples(n)) for n in ("dev", "validation"))
    assert [r.id for r in dev] == [r.id for r in watched] and dev != watched
    assert all(r.part("passage") == f"About {r.cluster}." and "shown" not in r.meta for r in dev), "dev is asked as it is"


def test_questions_without_an_answer_are_added_to_the_test(shown):
    made = shown[0]
    rows = list(made.examples("unanswerable"))
    assert len(rows) == made.meta["made"] == 5
    assert {r.meta["of"] for r in rows} <= {r.id for r in made.examples("unseen")}
    assert not any(r.answer or r.references for r in rows)
