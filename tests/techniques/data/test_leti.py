"""LeTI: golden texts, what is learned of them, binary feedback as reward-conditioned tuning, and pass@k by enumeration."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Dropped, question
from luthier.core.kinds import DroppedRow
from luthier.core.rng import Rng
from luthier.engine.forward import Forward
from luthier.engine.generation import Generated
from luthier.engine.models import load_base
from luthier.engine.rendering import renderer
from luthier.techniques.data.leti import first_function
from luthier.techniques.evaluation.pass_at_k import estimate
from tests.contracts.workbench import make_batch

PROBLEM = "# Add one to x.\n"
TESTS = "assert f(1) == 2\nassert f(-1) == 0"
RIGHT, WRONG = "def f(x):\n    return x + 1", "def f(x):\n    return x + y"
TRACEBACK = """Traceback (most recent call last):
  File "<program>", line 5, in <module>
    assert f(1) == 2
           ^^^^
  File "<program>", line 3, in f
    return x + y
               ^
NameError: name 'y' is not defined"""


class Writer:
    """An engine that writes what it is told, and runs programs as any engine does."""

    def __init__(self, engine, model, *texts: str, stopped: bool = True) -> None:
        self.engine, self.model, self.texts, self.stopped = engine, model, texts, stopped
        self.asked: list[str] = []

    def generate(self, model, prompts, decoder, **rest):
        self.asked = [self.model.tokenizer.decode(p, skip_special_tokens=True) for p in prompts]
        ids = [tuple(self.model.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in self.texts]
        return [Generated("", len(i), self.stopped, 0, i) for i in ids]

    def execute(self, programs, limits=None):
        return self.engine.execute(programs, limits)


def told(make_ctx, engine, pico, *texts: str, spec: str = "", problem=None, stopped: bool = True, log=None):
    """(Texts, what was dropped, what was asked) of one problem with as many programs as there are texts."""
    model = load_base(pico)
    ctx = make_ctx("leti", roles={"writer": model})
    ctx.engine = writer = Writer(engine, model, *texts, stopped=stopped)
    ctx.log = (log if log is not None else []).append
    step = build("data_step", f"leti:samples={len(texts)}{spec}")
    made = list(step.apply(iter([problem or question("p", PROBLEM, meta={"tests": TESTS})]), ctx))
    return [m for m in made if not isinstance(m, Dropped)], [m for m in made if isinstance(m, Dropped)], writer.asked


@pytest.mark.oracle(seed=47, clause=1, against="golden strings")
def test_a_success_and_a_failure_are_told_as_they_must_be(make_ctx, engine, pico):
    made, _, asked = told(make_ctx, engine, pico, RIGHT, WRONG)
    assert asked == [f"<|good|>{PROBLEM}"] * 2
    assert [e.answer for e in made] == [
        f"<|good|># Add one to x.\n{RIGHT}", f"<|bad|><|lang_feedback|>{TRACEBACK}<|/lang_feedback|># Add one to x.\n{WRONG}"]
    assert [(e.id, e.task, e.cluster, e.meta) for e in made] == [
        ("p/1", "text", "p", {"passed": True, "ended": "ok"}), ("p/2", "text", "p", {"passed": False, "ended": "NameError"})]


@pytest.mark.oracle(seed=47, clause=1, against="golden strings")
def test_other_ways_to_tell(make_ctx, engine, pico):
    more = f"{RIGHT}\n\ndef g(x):\n    return f(x)\nprint(f(1))"
    made, _, _ = told(make_ctx, engine, pico, more, spec=",cut_feedback=true")
    said = "Only the first function is wanted, without: def g(x):\n    return f(x)\nprint(f(1))"
    assert made[0].answer == f"<|good|><|lang_feedback|>{said}<|/lang_feedback|>{PROBLEM}{RIGHT}"
    binary, _, _ = told(make_ctx, engine, pico, RIGHT, WRONG, spec=",feedback=binary")
    assert [e.answer for e in binary] == [f"<|good|>{PROBLEM}{RIGHT}", f"<|bad|>{PROBLEM}{WRONG}"]
    only, _, asked = told(make_ctx, engine, pico, WRONG, RIGHT, spec=",feedback=successes")
    assert [e.answer for e in only] == [f"{PROBLEM}{RIGHT}"] and asked == [PROBLEM] * 2
    endless, _, _ = told(make_ctx, engine, pico, "def f(x):\n    while True: pass", spec=",seconds=0.3")
    assert endless[0].answer.startswith("<|bad|><|lang_feedback|>timeout<|/lang_feedback|>")


def test_shuffled_feedback_is_that_of_other_programs(make_ctx, engine, pico):
    wrong = [f"def f(x):\n    return {name}" for name in ("a", "b", "c", "d", "e")]
    made, _, _ = told(make_ctx, engine, pico, RIGHT, *wrong, spec=",feedback=shuffled")
    own, _, _ = told(make_ctx, engine, pico, RIGHT, *wrong)

    def named(rows):
        return [e.answer.partition("NameError: ")[2][:8] for e in rows[1:]]

    assert sorted(named(made)) == sorted(named(own)) and named(made) != named(own) and made[0].answer == own[0].answer


def test_programs_are_cut_to_their_first_function():
    body = "    return 1\n"
    assert first_function("def f():\n", f"{body}\ndef g():\n{body}") == ("    return 1", "def g():\n    return 1\n")
    assert first_function("Write f.\n", f"def f():\n{body}def g():\n{body}")[0] == "def f():\n    return 1"
    for word in ("\nclass A: pass", "\nassert f()", "\nprint(1)", "\nif True: pass", '"""doc"""'):
        kept, cut = first_function("def f():\n", f"    return 1{word}")
        assert kept == "    return 1" and cut == word
    assert first_function("def f():\n", body) == ("    return 1", "")


@pytest.mark.oracle(seed=47, clause=2, against="the ids themselves")
def test_all_but_padding_is_learned(pico):
    model = load_base(pico)
    render, objective = renderer(model, 256), build("objective", "leti")
    texts = ["<|good|>x", "<|bad|><|lang_feedback|>no<|/lang_feedback|># y\ndef f(): pass"]
    from luthier.core.example import Example, Part, Turn

    rows = [objective.encode(Example(f"{n}", (Turn("assistant", (Part(t),), target=True),), task="text"), render, Rng(0))
            for n, t in enumerate(texts)]
    batch = make_batch(rows, model)["input"]
    for n, text in enumerate(texts):
        ids = [model.tokenizer.bos_token_id, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]
        assert rows[n]["input"].ids == ids, "nothing is added at the end"
        wanted = [0 < i < len(ids) for i in range(batch.ids.shape[1])]
        assert batch.targets[n].tolist() == wanted
    # The loss is transformers' own with padding left out.
    labels = batch.ids.masked_fill(batch.mask == 0, -100)
    with torch.no_grad():
        theirs = model.module(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
        ours = objective.loss(Forward({"policy": model}), {"input": batch})["nll"] / objective.count({"input": batch})["nll"]
    assert float(ours) == pytest.approx(float(theirs), abs=1e-5)
    long = Example("long", (Turn("assistant", (Part("x " * 400),), target=True),), task="text")
    with pytest.raises(DroppedRow, match="too long"):
        objective.encode(long, render, Rng(0))


@pytest.mark.oracle(seed=47, clause=3, against="reward-conditioned tuning written by hand")
def test_binary_feedback_is_reward_conditioned_tuning(make_ctx, engine, pico):
    made, _, _ = told(make_ctx, engine, pico, RIGHT, WRONG, spec=",feedback=binary")
    model = load_base(pico)
    render, objective, run = renderer(model, 256), build("objective", "leti"), Forward({"policy": model})
    rows = [objective.encode(e, render, Rng(0)) for e in made]
    with torch.no_grad():
        ours = float(objective.loss(run, make_batch(rows, model))["nll"])
        hand = 0.0
        for token, program in (("<|good|>", RIGHT), ("<|bad|>", WRONG)):
            ids = torch.tensor([[model.tokenizer.bos_token_id,
                                 *model.tokenizer(token + PROBLEM + program, add_special_tokens=False)["input_ids"]]])
            logs = model.module(input_ids=ids).logits[0, :-1].log_softmax(-1)
            hand -= float(logs.gather(1, ids[0, 1:, None]).sum())
    assert ours == pytest.approx(hand, rel=1e-5)


@pytest.mark.oracle(seed=47, clause=4, against="brute force")
def test_pass_at_k_is_the_share_of_draws_that_hold_a_success():
    for n in range(1, 7):
        for passed in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([1] * passed + [0] * (n - passed), k))
                assert estimate(n, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_k_runs_what_the_model_writes(make_ctx, engine, pico):
    model = load_base(pico)
    ctx = make_ctx("pass", roles={"policy": model})
    ctx.engine = writer = Writer(engine, model, RIGHT, WRONG, f"{RIGHT}\nassert False", "")
    metric = build("metric", "pass-at-k:n=4,k=2,prefix=<|good|>")
    (found,) = metric.score([question("p", PROBLEM, meta={"tests": TESTS})], [None], ctx)
    assert found["value"] == pytest.approx(1 - 1 / 6) and found["passed"] == 2
    assert metric.details([found]) == {"NameError": 0.5, "ok": 0.5} and writer.asked == [f"<|good|>{PROBLEM}"] * 4
    with pytest.raises(UserError, match="row q has none"):
        metric.score([question("q", PROBLEM)], [None], ctx)
    with pytest.raises(UserError, match="give n at least k"):
        build("metric", "pass-at-k:n=2,k=3")


def test_what_cannot_be_tried_is_said(make_ctx, engine, pico):
    with pytest.raises(UserError, match="leti needs tests, and problem p has none"):
        told(make_ctx, engine, pico, RIGHT, problem=question("p", PROBLEM))
    with pytest.raises(UserError, match="needs the model that writes"):
        list(build("data_step", "leti").apply(iter([]), make_ctx("none")))
    log: list[str] = []
    missing = question("p", PROBLEM, meta={"tests": "import not_there\nassert f(1) == 2"})
    dropped = list(build("data_step", "leti:samples=1").apply(iter([missing]), _ctx(make_ctx, engine, pico, log)))
    assert dropped[0].reason == "tests can't be run" and "No module named 'not_there'" in dropped[0].detail
    assert any("tests of 1 of 1 problems import what is not there" in line for line in log)
    for texts, said in (((RIGHT, RIGHT), "every program passes"), ((WRONG, WRONG), "no program passes")):
        log.clear()
        told(make_ctx, engine, pico, *texts, log=log)
        assert any(f"{said}: nothing sets good and bad apart" in line for line in log)
    _, dropped, _ = told(make_ctx, engine, pico, RIGHT, stopped=False)
    assert dropped[0].reason == "too long" and "max_new_tokens=256" in dropped[0].detail


def _ctx(make_ctx, engine, pico, log):
    model = load_base(pico)
    ctx = make_ctx("broken", roles={"writer": model})
    ctx.engine, ctx.log = Writer(engine, model), log.append
    return ctx


def test_a_metric_may_judge_where_there_are_no_tests(make_ctx, engine, pico, monkeypatch):
    from luthier.techniques.evaluation.exact_match import ExactMatch

    problem = question("e", "Who arrived? ", "Anna")
    made, _, _ = told(make_ctx, engine, pico, "Anna", "Ben", spec=",verifier=exact-match", problem=problem)
    assert [e.answer for e in made] == [
        "<|good|>Who arrived? Anna", "<|bad|><|lang_feedback|>error<|/lang_feedback|>Who arrived? Ben"]
    own = ExactMatch.score
    monkeypatch.setattr(ExactMatch, "score", lambda self, *given: [
        {**r, "feedback": "" if r["value"] else "Ben is nobody here."} for r in own(self, *given)])
    made, _, _ = told(make_ctx, engine, pico, "Anna", "Ben", spec=",verifier=exact-match", problem=problem)
    assert made[1].answer == "<|bad|><|lang_feedback|>Ben is nobody here.<|/lang_feedback|>Who arrived? Ben"
    with pytest.raises(UserError, match="Give tests, or a verifier"):
        told(make_ctx, engine, pico, "Anna", problem=problem)
