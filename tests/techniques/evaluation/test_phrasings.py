"""Phrasings: a scorer that ignores them, planted effects, option order, hand counts, and what a bank may not hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import question
from luthier.core.files import read_lines
from luthier.core.rng import Rng
from luthier.engine.models import load_base
from luthier.engine.rendering import renderer, with_answer
from luthier.engine.subjects import Subject
from luthier.techniques.evaluation._agreement import consistency, fleiss_kappa, micro_f1, variance_parts
from luthier.techniques.evaluation._phrasings import Item, Phrasing, check, perturbed, preferred, shown
from luthier.techniques.evaluation.instruction_robustness import parsed, summary

OPTIONS = ("good", "very bad", "so so")
ITEMS = [Item(f"i{n}", {"input": f"Film number {n}."}, OPTIONS, n % 3) for n in range(12)]
TEMPLATES = ("Review: {input}\nVerdict:", "{input}\nWhat is it: {options}?", "Judge this film. {input}",
             "Say what holds: {input}")
PHRASINGS = [Phrasing(f"p{n}", "observed" if n < 2 else "unobserved", t) for n, t in enumerate(TEMPLATES)]


class Blind(Subject):
    """A model that sees the item's number, the option, and only of one phrasing (`sees`) that it is asked so."""

    sees = ""

    def token_scores(self, ctx, role, sides):
        found = []
        for prompt, answer in sides:
            text, option = self.text(prompt), self.text(answer)
            number = int("".join(c for c in text if c.isdigit()) or 0)
            right = OPTIONS[number % 3] == option
            if self.sees and self.sees in text and number % 2:
                right = OPTIONS[(number + 1) % 3] == option
            found.append([-0.1 if right else -1.0] * len(answer))
        return found

    def text(self, ids):
        return self.engine.tokenizer(self.base).decode(ids, skip_special_tokens=True).strip()


class Spelled:
    """Renders into letters, so that a stub model can read its prompt."""

    stop_ids = frozenset({0})

    def whole(self, row):
        from luthier.core.kinds import Tokens

        prompt, answer = [ord(c) for c in row.part("question")], [ord(c) for c in row.answer]
        return Tokens([*prompt, *answer, 0], [False] * len(prompt) + [True] * (len(answer) + 1))


@pytest.fixture
def blind(engine, pico):
    subject = Blind(engine, pico)
    subject.render = lambda role, rows=(): Spelled()
    subject.text = lambda ids: "".join(map(chr, ids))
    return subject


def bank(folder, phrasings=PHRASINGS, items=ITEMS):
    """The files of both audits."""
    lines = [json.dumps({"id": i.id, **i.fields, "options": list(i.options), "label": i.options[i.right]}) for i in items]
    (folder / "items.jsonl").write_text("\n".join(lines))
    task = {"task": "films", "items": "items.jsonl",
            "instructions": [{"id": p.id, "kind": p.kind, "template": p.template} for p in phrasings]}
    (folder / "tasks.yaml").write_text(yaml.safe_dump([task]))
    for kind in ("observed", "unobserved"):
        told = [p.template.replace("\n", "\\n") for p in phrasings if p.kind == kind]
        (folder / f"{kind}.txt").write_text("\n".join(told))
    return folder


def robustness(folder, **options):
    return build("audit", {"use": "instruction-robustness", "task": str(folder / "items.jsonl"),
                           "observed": str(folder / "observed.txt"), "unobserved": str(folder / "unobserved.txt"), **options})


@pytest.mark.oracle(seed=81, clause=1, against="a scorer that ignores the instruction")
@pytest.mark.oracle(seed=163, clause=1, against="a scorer that ignores the instruction")
def test_a_scorer_that_ignores_the_instruction_shows_no_spread(blind, make_ctx, tmp_path, monkeypatch):
    place = bank(tmp_path)
    changes = ["typo", "delimiter", "position", "distractor", "order"]
    (finding,) = robustness(place, perturb=changes).measure(make_ctx("robust"), blind)
    own = finding.extra["numbers"]["after"]
    assert (own["sd"], own["drop"], own["consistency"], own["kappa"]) == (0, 0, 1, 1)
    assert own["observed"] == own["micro_f1"] == 1 and set(own["changes"].values()) == {0} and len(own["changes"]) == 5
    assert own["variance"]["phrasings"] == 0 and finding.verdict == "pass"
    assert len(read_lines(make_ctx("robust").folder / "answers.jsonl")) == 4 + 2 * 5
    monkeypatch.setattr("luthier.techniques.evaluation.phrasing.nearest", lambda *a: ([], None))
    monkeypatch.setattr(blind, "model", lambda role: None, raising=False)
    (found,) = build("audit", f"phrasing:tasks={place / 'tasks.yaml'}").measure(make_ctx("phrasing"), blind)
    assert (found.left, found.right, found.difference, found.extra["spread"]) == (1, 1, 0, 0) and found.verdict == "pass"


@pytest.mark.oracle(seed=163, clause=1, against="shares by hand")
def test_what_one_phrasing_costs_is_the_share_of_its_items(blind, make_ctx, tmp_path, monkeypatch):
    """Under `Say what holds` every second item is answered wrongly: 0.5 there, 0.75 over unobserved phrasings."""
    place, blind.sees = bank(tmp_path), "Say what"
    monkeypatch.setattr("luthier.techniques.evaluation.phrasing.nearest", lambda *a: ([], None))
    monkeypatch.setattr(blind, "model", lambda role: None, raising=False)
    (found,) = build("audit", f"phrasing:tasks={place / 'tasks.yaml'}").measure(make_ctx("phrasing"), blind)
    assert (found.left, found.right, found.verdict) == (1, 0.75, "fail") and "worst: p3, 0.5" in found.detail
    assert found.extra["spread"] == pytest.approx(np.std([1, 1, 1, 0.5], ddof=1)) and found.interval[1] < 0
    (finding,) = robustness(place).measure(make_ctx("robust"), blind)
    own = finding.extra["numbers"]["after"]
    assert (own["drop"], own["worst"], own["consistency"], finding.verdict) == (0.25, "u2", 0.5, "fail")
    assert own["drop_above_chance"] == pytest.approx(0.25 / (1 - 1 / 3)) and "say" in own["words"]
    assert robustness(place, hard=True).hard


@pytest.mark.oracle(seed=81, clause=2, against="planted effects")
def test_planted_effects_are_recovered():
    """Crossed effects: with many phrasings and items the estimates are the variances that were drawn."""
    draw = np.random.default_rng(0)
    table = 0.5 + 0.3 * draw.standard_normal((300, 1)) + 0.2 * draw.standard_normal((1, 400)) + \
        0.1 * draw.standard_normal((300, 400))
    parts = variance_parts(table)
    assert (parts.phrasings, parts.items, parts.rest) == pytest.approx((0.09, 0.04, 0.01), rel=0.2)
    # Exact effects without chance: rows 0 and 1 apart by 1 have variance 1/2, columns 0, 2 have 2.
    exact = variance_parts([[0.0, 2.0], [1.0, 3.0]])
    assert (exact.phrasings, exact.items, exact.rest) == pytest.approx((0.5, 2.0, 0.0))
    alone = variance_parts(draw.standard_normal((40, 60)))
    assert alone.phrasings < 0.02 and alone.items < 0.05 and alone.rest == pytest.approx(1, rel=0.1)
    few = [variance_parts(draw.standard_normal((4, 5))).phrasings for _ in range(300)]
    noisy = [variance_parts(0.8 * draw.standard_normal((4, 1)) + draw.standard_normal((4, 5))).phrasings for _ in range(600)]
    assert np.mean(noisy) == pytest.approx(0.64, abs=0.12) and np.median(few) < 0.05
    with pytest.raises(ValueError, match="at least 2 phrasings and 2 items"):
        variance_parts([[1.0, 2.0]])


@pytest.mark.oracle(seed=81, clause=3, against="six items by hand")
def test_micro_f1_leaves_no_relation_out():
    right = ["born in", "born in", "founder", "none", "none", "founder"]
    said = ["born in", "none", "born in", "founder", "none", None]
    # Said and not none: 3 (born in, born in, founder); wanted and not none: 4; both: 1. P = 1/3, R = 1/4, F1 = 2/7.
    assert micro_f1(right, said, "none") == pytest.approx(2 / 7)
    assert micro_f1(right, right, "none") == 1 and micro_f1(right, ["none"] * 6, "none") == 0


@pytest.mark.oracle(seed=81, clause=4, against="reading the shown list by hand")
def test_a_shuffled_list_maps_back_to_the_options():
    rng, seen = Rng(0), set()
    for change in ("order", "letters"):
        phrasing = perturbed(Phrasing("p", "observed", "{input} {options}"), change, rng)
        both = perturbed(phrasing, "order", rng)
        for item in ITEMS:
            row = shown(both, item, rng)
            text, answers = row.part("question"), row.meta["options"]
            listed = dict(line.split(". ") for line in text.split("\n")[1:]) if change == "letters" else None
            if listed:
                assert [listed[a] for a in answers] == list(item.options)
            else:
                order = text.removeprefix(item.fields["input"] + " ").split(", ")
                assert sorted(order) == sorted(item.options) and answers == list(item.options)
                seen.add(tuple(order))
            assert int(row.label) == item.right
    assert len(seen) > 2


@pytest.mark.oracle(seed=81, clause=4, against="the same answers in the given order")
def test_a_scorer_of_texts_chooses_the_same_option_in_any_order(blind, make_ctx):
    ctx = make_ctx("m")
    straight = preferred(ctx, blind, "after", PHRASINGS, ITEMS)
    mixed = preferred(ctx, blind, "after", [perturbed(p, "order", ctx.rng) for p in PHRASINGS], ITEMS)
    assert straight == mixed == [[i.right for i in ITEMS]] * 4


def test_kappa_and_consistency_by_hand():
    """Fleiss' own form: 2 items x 3 raters, {a a b} and {a a a}: P = (1/3 + 1) / 2, P_e = (5/6)² + (1/6)²."""
    answers = [["a", "a"], ["a", "a"], ["b", "a"]]
    chance = (5 / 6) ** 2 + (1 / 6) ** 2
    assert fleiss_kappa(answers) == pytest.approx((2 / 3 - chance) / (1 - chance)) and consistency(answers) == 0.5
    from statsmodels.stats.inter_rater import aggregate_raters
    from statsmodels.stats.inter_rater import fleiss_kappa as reference

    drawn = np.random.default_rng(1).integers(0, 3, size=(5, 40))
    assert fleiss_kappa(drawn.tolist()) == pytest.approx(reference(aggregate_raters(drawn.T)[0]))


@pytest.mark.parametrize("by", ["sum", "token"])
def test_options_are_weighed_by_the_models_own_log_probabilities(by, engine, pico, make_ctx):
    model = load_base(pico)
    render, ctx = renderer(model), make_ctx(f"m{by}")
    options = ("a peg", "dark red oak of the scroll", "ebony")
    items = [Item(f"i{n}", {"input": f"What is the {w}?"}, options, 0) for n, w in enumerate(("peg", "scroll", "glue", "wood"))]
    found = preferred(ctx, Subject(engine, pico), "after", PHRASINGS[:1], items, by)
    for item, choice in zip(items, found[0], strict=True):
        row = shown(PHRASINGS[0], item, ctx.rng)
        told = []
        for option in options:
            prompt, answer = render.prompt(with_answer(row, option)), render.encode(f" {option}")
            with torch.no_grad():
                scores = model.module(input_ids=torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
            values = [float(scores[len(prompt) + k - 1, t]) for k, t in enumerate(answer)]
            told.append(sum(values) if by == "sum" else sum(values) / len(values))
        assert max(told) - told[choice] < 2e-3


@pytest.mark.oracle(seed=163, clause=1, against="a sum that prefers short options")
def test_long_options_are_not_worse_for_being_long(blind, make_ctx):
    """Equal log-probabilities a token: the longest option has the lowest sum and an equal mean."""
    blind.token_scores = lambda ctx, role, sides: [[-0.5 if len(a) == 8 else -0.6] * len(a) for _, a in sides]
    assert preferred(make_ctx("m"), blind, "after", PHRASINGS[:1], ITEMS[:2], "token") == [[1, 1]]
    assert preferred(make_ctx("m"), blind, "after", PHRASINGS[:1], ITEMS[:2], "sum") == [[0, 0]]


def test_written_answers_are_read_or_counted_as_failures(blind, make_ctx, tmp_path):
    assert [parsed(t, OPTIONS) for t in ("Good.", "very bad, I think", "It is so so", "good or very bad", "", "a film")] == \
        [0, 1, 2, 0, None, None]
    assert parsed("either very bad or good", OPTIONS) is None and parsed("B", ["A", "B", "C"]) == 1
    from luthier.core.kinds import Prediction

    for text, share in (("good", 0.0), ("a film", 1.0)):
        blind.answers = lambda ctx, role, rows, decoder, text=text: [[Prediction(r.id, text=text)] for r in rows]
        (finding,) = robustness(bank(tmp_path), answer="written").measure(make_ctx(f"w{share}"), blind)
        if share:
            assert (finding.name, finding.verdict, finding.right) == ("audit/instruction-robustness/parsed", "fail", 1.0)
        else:
            assert finding.extra["parse_failures"]["after"] == 0
            assert finding.extra["numbers"]["after"]["observed"] == pytest.approx(1 / 3)


def test_a_failed_answer_is_no_class():
    items = [Item("a", {"input": "x"}, ("y", "n"), 0), Item("b", {"input": "x"}, ("y", "n"), 1)]
    found = summary(PHRASINGS[:3], items, [[0, None], [0, 1], [None, 1]])
    assert found["observed"] == 0.75 and found["unobserved"] == 0.5 and found["consistency"] == 0


def test_changes_leave_slots_and_meaning():
    rng, text = Rng(0), "Please judge this review: {input}\nVerdict:"
    changed = {c: perturbed(Phrasing("p", "observed", text), c, rng).template for c in
               ("typo", "delimiter", "position", "distractor")}
    assert changed["delimiter"] == "Please judge this review - {input} | Verdict -"
    assert changed["distractor"].endswith(text) and all("{input}" in t for t in changed.values())
    typo = changed["typo"]
    assert typo != text and sorted(typo) == sorted(text) and sum(a != b for a, b in zip(typo, text, strict=True)) == 2
    two = perturbed(Phrasing("p", "observed", "Judge it.\n{input}\nVerdict:"), "position", rng).template
    assert two == "{input}\nVerdict:\nJudge it."


@pytest.mark.parametrize(("phrasings", "said"), [
    ([Phrasing("a", "observed", "{input}")], r"1 phrasing\(s\): at least 3"),
    ([*PHRASINGS, Phrasing("x", "observed", "Judge it")], r"Phrasing x has no \{input\}"),
    ([*PHRASINGS, Phrasing("x", "unobserved", TEMPLATES[0])], "Phrasings p0 and x are the same text, observed and unobserved"),
    ([*PHRASINGS, Phrasing("x", "observed", "{input} {place}")], r"the slot \{place\}, and items have only: input"),
    ([*PHRASINGS, Phrasing("x", "observed", "{input} Is it good?")], "Phrasing x names the answer 'good' and not the others"),
])
def test_phrasings_that_would_mislead_are_refused(phrasings, said):
    with pytest.raises(UserError, match=said):
        check(phrasings, ITEMS, least=3)


def test_banks_that_can_not_be_read_are_refused(tmp_path):
    with pytest.raises(UserError, match="needs 'task'"):
        build("audit", "instruction-robustness").check()
    with pytest.raises(UserError, match="can't be read"):
        build("audit", f"phrasing:tasks={tmp_path / 'none.yaml'}").check()
    place = bank(tmp_path, PHRASINGS[:2])
    with pytest.raises(UserError, match="No phrasing is unobserved"):
        build("audit", f"phrasing:tasks={place / 'tasks.yaml'}").check()
    (tmp_path / "items.jsonl").write_text('{"input": "x", "options": ["a", "b"], "label": "c"}')
    with pytest.raises(UserError, match="line 1: label 'c' must be one of its options"):
        build("audit", f"phrasing:tasks={place / 'tasks.yaml'}").check()
    before = build("audit", f"phrasing:tasks={place / 'tasks.yaml'}").content()
    (tmp_path / "items.jsonl").write_text('{"input": "y", "options": ["a", "b"], "label": "b"}')
    assert build("audit", f"phrasing:tasks={place / 'tasks.yaml'}").content() != before and len(before) == 2


def test_a_run_is_asked_in_its_own_words_and_in_general_ones(engine, pico, make_ctx):
    rows = [question(f"q{n}", f"Which wood is peg {n}?", label=("ebony", "maple")[n % 2]) for n in range(8)]
    examples = write_examples(make_ctx("rows").folder, {"test": rows})
    ctx = make_ctx("audit")
    (finding,) = build("audit", "phrasing:items=6").measure(ctx, Subject(engine, pico, examples=examples))
    lines = read_lines(ctx.folder / "answers.jsonl")
    assert [r["kind"] for r in lines] == ["observed"] + 7 * ["unobserved"] and len(lines[0]["after"]) == 6
    assert finding.name == "audit/phrasing/held-out rows" and len(finding.extra["distances"]) == 7
    (none,) = build("audit", "phrasing").measure(make_ctx("bare"), Subject(engine, pico))
    assert none.verdict == "not applicable" and "Name tasks" in none.detail


def test_answers_without_options_are_weighed_by_their_tokens(engine, pico, make_ctx):
    """The mean log-probability of the answer and its end, from all scores of the whole model, under each wording."""
    from luthier.techniques.evaluation._banks import GENERAL

    rows = [question(f"q{n}", f"What is the {w}?", "a class of the module") for n, w in enumerate(("list", "block", "name"))]
    examples = write_examples(make_ctx("rows").folder, {"test": rows})
    ctx = make_ctx("audit")
    (finding,) = build("audit", "phrasing").measure(ctx, Subject(engine, pico, examples=examples))
    model = load_base(pico)
    render, wanted = renderer(model), []
    for template in GENERAL:
        told = []
        for row in rows:
            asked = question(row.id, template.replace("{input}", row.part("question")), row.answer)
            tokens = render.tokens(asked)
            with torch.no_grad():
                scores = model.module(input_ids=torch.tensor([tokens.ids])).logits[0].double().log_softmax(-1)
            places = [k for k, learned in enumerate(tokens.targets) if learned]
            told.append(np.mean([float(scores[k - 1, tokens.ids[k]]) for k in places]))
        wanted.append(np.mean(told))
    assert (finding.left, finding.right) == pytest.approx((wanted[0], np.mean(wanted[1:])), abs=1e-3)
    assert len(read_lines(ctx.folder / "answers.jsonl")) == 8 and finding.name == "audit/phrasing/answers"
