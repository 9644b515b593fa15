"""CLEAR against hand cases, its own limits, and planted wrong answers."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Dropped, question
from luthier.engine.models import load_base
from luthier.techniques.data import _confidence as confidence
from luthier.techniques.data._confidence import chances, consistency, reflected

RIGHT = {"q0": "red", "q1": "blue", "q2": "green", "q3": "white", "q4": "black", "q5": "pink"}


def rows(wrong: tuple[str, ...] = ()):
    """Six questions; the answers of `wrong` are those of the next one."""
    names = list(RIGHT)
    return [question(n, f"Which colour is {n}?", RIGHT[names[(i + 1) % 6]] if n in wrong else RIGHT[n])
            for i, n in enumerate(names)]


class Told:
    """An engine whose models know the colours: samples are right four times in five, and options follow."""

    def __init__(self, tuned: str = "") -> None:
        self.tuned = tuned

    def generate(self, model, prompts, decoder, **options):
        names = [next(n for n in RIGHT if n in prompt) for prompt in prompts]
        return [SimpleNamespace(text=self.tuned if model == "m1" else RIGHT[n] if i % 5 else "grey")
                for i, n in enumerate(names)]

    def score(self, model, pairs):
        found = []
        for prompt, option in pairs:
            text, letter = "".join(prompt), "".join(option).strip()
            name = next((n for n in RIGHT if n in text), None)
            if name is None:
                good = None
            elif "Response A" in text:
                first, second = (text.split(f"Response {side}: ")[1].split("\n")[0] for side in "AB")
                good = "A" if first == RIGHT[name] else "B" if second == RIGHT[name] else "C"
            else:
                good = "A" if RIGHT[name] in text.replace(" is better", "") else "B"
            found.append((0.0 if letter == good else -3.0 if good else -1.0, 1))
        return found

    def embed(self, model, texts):
        """Equal texts are alike; others are not at all."""
        codes = {t: i for i, t in enumerate(dict.fromkeys(texts))}
        return torch.eye(max(2, len(codes)))[[codes[t] for t in texts]].numpy()


@pytest.fixture
def told(make_ctx, monkeypatch):
    """`told(spec, rows, tuned)`: what CLEAR makes of rows, and what it logs."""
    render = SimpleNamespace(_start=lambda: [], encode=list, prompt=lambda row: list(row.part("question")), stop_ids=())
    render.prompt = lambda row: row.part("question")
    monkeypatch.setattr("luthier.engine.rendering.renderer", lambda model, *given: render)

    def run(spec, given, tuned: str | None = None, name: str = "clear"):
        said: list[str] = []
        roles = {"writer": "m0", "encoder": "e", **({"tuned": "m1"} if tuned is not None else {})}
        ctx = make_ctx(name, roles=roles)
        ctx.engine, ctx.log = Told(tuned or ""), said.append
        return list(build("data_step", spec).apply(iter(given), ctx)), said

    return run


def kept(found):
    return [r.id for r in found if not isinstance(r, Dropped)]


@pytest.mark.oracle(seed=93, clause=1, against="hand case")
def test_samples_that_are_the_answer_make_full_consistency(told, monkeypatch):
    assert consistency([True] * 5, [1.0] * 5, 0.8) == pytest.approx(1.0)
    assert consistency([False, True], [0.5, 1.0], 0.8) == pytest.approx((0.4 + 1.0) / 2)
    monkeypatch.setattr(Told, "generate", lambda self, model, prompts, decoder, **options: [
        SimpleNamespace(text=RIGHT[next(n for n in RIGHT if n in p)]) for p in prompts])
    found, said = told("clear:beta=1,filter_below=1", rows())
    assert all(r.meta["clear"]["confidence"] == r.meta["clear"]["consistency"] == 1 for r in found)
    assert kept(found) == list(RIGHT) and "all 6 confidences are 1" in said[0]


@pytest.mark.oracle(seed=93, clause=2, against="hand case")
def test_reflection_is_worked_by_hand():
    assert reflected([0.6, 0.2, 0.2]) == pytest.approx(0.7)
    assert chances([0.0, 0.0, 0.0]) == pytest.approx([1 / 3] * 3)
    assert chances([-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0]) == pytest.approx([1 / 3] * 3), "relative to nothing asked"


@pytest.mark.oracle(seed=93, clause=3, against="Auto-Filter alone")
def test_eta_of_one_corrects_nothing(told):
    wrong = ("q1", "q4")
    alone, _ = told("clear", rows(wrong))
    with_tuned, _ = told("clear:eta=1", rows(wrong), tuned="blue", name="eta")
    assert [r if isinstance(r, Dropped) else r.to_dict() for r in alone] == [
        r if isinstance(r, Dropped) else r.to_dict() for r in with_tuned]
    some, _ = told("clear:eta=0.5", rows(wrong), tuned="blue", name="some")
    changed = {r.id: r for r in some if not isinstance(r, Dropped) and r.meta["clear"]["action"] == "corrected"}
    assert set(changed) == {"q1"} and changed["q1"].answer == "blue", "q1 is blue, the others are not"
    assert changed["q1"].meta["clear"]["original_target"] == "green"


@pytest.mark.oracle(seed=93, clause=4, against="the rows themselves")
def test_a_threshold_of_zero_changes_nothing(told):
    found, _ = told("clear:filter_below=0", rows(("q2",)))
    assert [(r.id, r.answer) for r in found] == [(r.id, r.answer) for r in rows(("q2",))]


@pytest.mark.oracle(seed=93, clause=5, against="planted wrong answers")
def test_planted_wrong_answers_have_less_confidence(told):
    wrong = ("q1", "q3", "q5")
    found, said = told("clear:filter_below=0", rows(wrong))
    scores = {r.id: r.meta["clear"]["confidence"] for r in found}
    pairs = [scores[good] > scores[bad] for good in RIGHT if good not in wrong for bad in wrong]
    assert sum(pairs) / len(pairs) == 1
    dropped, said = told("clear", rows(wrong), name="median")
    assert {d.id for d in dropped if isinstance(d, Dropped)} == set(wrong) and said[-1] == "clear: 3 keep, 3 drop, 0 corrected"
    first = next(d for d in dropped if isinstance(d, Dropped))
    assert first.reason == "low confidence" and "consistency 0.000, reflection" in first.detail


def test_a_real_model_is_asked_and_the_journal_keeps_what_it_said(pico, pico_encoder, engine, make_ctx):
    ctx = make_ctx("real", roles={"writer": load_base(pico), "encoder": load_base(pico_encoder), "tuned": load_base(pico)})
    step = build("data_step", "clear:samples=2,filter_below=0,decoder={use: sample, max_new_tokens: 3}")
    first = list(step.apply(iter(rows()), ctx))
    assert len(first) == 6 and all(0 <= r.meta["clear"]["confidence"] <= 1 for r in first)
    again = make_ctx("real", roles={**ctx.roles, "writer": ctx.roles["writer"]})
    again.engine = SimpleNamespace(generate=engine.generate, embed=engine.embed, score=None)
    assert [r.to_dict() for r in step.apply(iter(rows()), again)] == [r.to_dict() for r in first]
    assert confidence.OPTIONS == ("A", "B", "C")


@pytest.mark.parametrize("spec, said", [
    ("clear:samples=1", "samples = 1: Input should be greater than or equal to 2"),
    ("clear:eta=2", "eta = 2: Input should be less than or equal to 1"),
])
def test_a_setting_that_is_none_is_refused(spec, said):
    with pytest.raises(UserError, match=said):
        build("data_step", spec)


def test_what_is_missing_is_named(told, make_ctx):
    with pytest.raises(UserError, match=r"eta = 0.8 corrects with a tuned model, and none is there: inputs: \{tuned: FIT\}"):
        told("clear:eta=0.8", rows())
    with pytest.raises(UserError, match="row q9 has an empty target"):
        told("clear", [*rows(), question("q9", "Which colour?")])
    with pytest.raises(UserError, match="clear needs the model that will be tuned"):
        list(build("data_step", "clear").apply(iter(rows()), make_ctx("none")))
    with pytest.raises(UserError, match="needs an encoder.*similarity=same"):
        list(build("data_step", "clear").apply(iter(rows()), make_ctx("half", roles={"writer": "m0"})))


def test_the_recipe_chains_filter_training_correction_and_training():
    from luthier.core.recipe import load_recipe

    steps = {node.name: node for node in load_recipe("clear").nodes}
    assert {"filtered", "first", "corrected", "tuned", "noisy", "comparison"} <= set(steps)
    assert steps["corrected"].inputs == {"rows": "split", "writer": "base", "encoder": "encoder", "tuned": "first"}
