"""Muppet against guesses among n, plain fine-tuning, gradients by hand; what a manifest can get wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from luthier.core.artifact import open_artifact, write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn, question
from luthier.core.files import read_lines
from luthier.core.kinds import Optimizer
from luthier.core.rng import Rng
from luthier.engine import guards
from luthier.engine.batches import collate
from luthier.engine.choices import NEVER, by_row, options_of
from luthier.engine.forward import Forward
from luthier.engine.loop import Loop, Plan, Task
from luthier.engine.models import add_tuned, load_base
from luthier.engine.probing import _loss_of
from luthier.engine.rendering import renderer
from luthier.engine.turns import Turns
from luthier.techniques.training.muppet import Muppet, scaled
from tests.contracts.workbench import WORDS, encode, make_batch, make_loop, short_fit


class Sgd(Optimizer, name="test-sgd"):
    """Plain descent, whose steps are as long as its gradients."""

    def make(self, groups, learning_rate):
        return torch.optim.SGD(groups, learning_rate)


def text(name: str, said: str, label: str) -> Example:
    return Example(name, (Turn("user", (Part(said, name="text"),)),), label=label, task="classify")


def labels(count: int, kinds: int, word: str = "paint") -> list[Example]:
    return [text(f"{word}{n}", f"{WORDS[n % 10]} {word} {WORDS[n % kinds]}{' again' * (n % 3)}", f"k{n % kinds}")
            for n in range(count)]


def choices(count: int, sizes=(2, 3, 5)) -> list[Example]:
    made = []
    for n in range(count):
        options = [f"the {WORDS[(n + i) % 10]}" for i in range(sizes[n % len(sizes)])]
        lettered = "\n".join(f"{'ABCDE'[i]}. {o}" for i, o in enumerate(options))
        made.append(question(f"c{n}", f"Which word {n}?\n{lettered}", options[n % len(options)], label=n % len(options),
                             meta={"options": options}))
    return made


def spans(count: int) -> list[Example]:
    return [question(f"s{n}", f"What is told of {n}?", f"a {WORDS[n % 10]} of {n}",
                     passage=f"There {'is and ' * (n % 4)}was a {WORDS[n % 10]} of {n} in the room.") for n in range(count)]


ALL = {"two": ("cls", labels(24, 2)), "seven": ("cls", labels(28, 7, "box")), "why": ("mc", choices(18)),
       "where": ("span", spans(16))}


def manifest(make_ctx, name: str = "tasks", rows=ALL):
    about = {n: {"type": kind, "rows": len(own), "options": 5} for n, (kind, own) in rows.items()}
    return write_examples(make_ctx(name).folder, {n: own for n, (_, own) in rows.items()}, tasks=about)


def stage(**changed) -> Muppet:
    return Muppet(**{"batch_rows": 4, "accumulate": 3, "learning_rate": 1e-3, "length": {"steps": 4}, "schedule": "constant",
                     "dtype": "float32", **changed})


def tasks_of(step: Muppet, base, given, make_ctx, name: str = "look"):
    """(model with heads, tasks) as the step trains them."""
    inputs = {"base": base, "manifest": given}
    ctx = make_ctx(name, inputs)
    over = step.over(given, ctx)
    model = load_base(base)
    tasks, _ = over._encoded(model, renderer(model, 256), lambda: None, inputs, ctx)
    torch.manual_seed(0)
    for task, spec in zip(tasks, over.tasks, strict=True):
        over._add_head(model, task, spec)
    return model, tasks


# --- loss scaling ------------------------------------------------------------------------------------------------------

@pytest.mark.oracle(seed=16, clause=1, against="a guess among n has the entropy log n")
def test_a_head_of_zeros_says_one_whatever_the_task(pico_encoder, make_ctx):
    model, tasks = tasks_of(stage(), pico_encoder, manifest(make_ctx), make_ctx)
    with torch.no_grad():
        for head in model.heads.values():
            for p in head.parameters():
                p.zero_()
    model.module.eval()
    run, found = Forward({"policy": model}), {}
    for task in tasks:
        for row in range(len(task.rows)):
            total, count = _loss_of(run, task, slice(row, row + 1))
            found.setdefault(task.name, []).append(task.scale * total / count)
        # All rows together are padded to the longest: nobody chooses what is not there.
        total, count = _loss_of(run, task, slice(0, len(task.rows)))
        assert task.scale * total / count == pytest.approx(1, abs=1e-5)
    assert set(found) == {f"manifest.{name}" for name in ALL} and len(found["manifest.why"]) == 18
    assert all(value == pytest.approx(1, abs=1e-5) for values in found.values() for value in values)
    plain = tasks_of(stage(scale="none"), pico_encoder, manifest(make_ctx, "again"), make_ctx, "plain")[1]
    assert all(t.scale == 1 for t in plain)


@pytest.mark.oracle(seed=16, clause=1, against="a guess among the vocabulary")
def test_written_texts_are_scaled_by_the_vocabulary(pico, make_ctx):
    rows = {"write": ("s2s", spans(8))}
    model, (task,) = tasks_of(stage(), pico, manifest(make_ctx, rows=rows), make_ctx)
    with torch.no_grad():
        model.module.get_output_embeddings().weight.zero_()
    total, count = _loss_of(Forward({"policy": model}), task, slice(0, 8))
    assert task.scale * total / count == pytest.approx(1, abs=1e-5) and not model.heads


@pytest.mark.oracle(seed=16, clause=1, against="logarithms")
def test_what_can_not_be_chosen_can_not_be_scaled():
    assert [scaled(n) * math.log(n) for n in (2, 3, 1000)] == pytest.approx([1, 1, 1], abs=1e-12)
    with pytest.raises(UserError, match=r"1 possible answer\(s\).*type: number"):
        scaled(1)


# --- plain fine-tuning -------------------------------------------------------------------------------------------------

def whole(artifact):
    return artifact.folder / "model.safetensors", artifact.folder / "heads.safetensors"


def distance(one, other) -> float:
    from safetensors.torch import load_file

    pairs = [(load_file(a), load_file(b)) for a, b in zip(whole(one), whole(other), strict=True)]
    return max(float((a[n] - b[n]).abs().max()) for a, b in pairs for n in a)


@pytest.mark.oracle(seed=16, clause=2, against="plain fine-tuning")
@pytest.mark.parametrize("kinds", [2, 7])
def test_one_task_alone_is_plain_fine_tuning_at_another_rate(pico_encoder, make_ctx, kinds):
    given = manifest(make_ctx, rows={"one": ("cls", labels(20, kinds))})
    inputs = {"base": pico_encoder, "manifest": given}
    shared = {"optimizer": "test-sgd", "clip": 0, "length": {"steps": 7}, "dtype": "float32"}
    step = stage(accumulate=1, regularizers=("r3f:lam=0",), learning_rate=0.02, **shared)
    found = step.run(inputs, make_ctx("a/fit", inputs))
    plain = [short_fit("encoder", tasks=({"data": "manifest.one", "objective": "classify", "head": "linear"},), method="full",
                       batch_rows=4, learning_rate=rate, **shared).run(inputs, make_ctx(f"{rate}/fit", inputs))
             for rate in (0.02 / math.log(kinds), 0.02)]
    assert distance(found, plain[0]) < 1e-6 and distance(found, plain[1]) > 1e-4


# --- accumulation ------------------------------------------------------------------------------------------------------

def looped(model, tasks, make_ctx, name: str, steps: int = 6, **rest) -> Loop:
    from luthier.core.step import FitCtx

    def groups():
        return [{"params": [p for m in (model.module, *model.heads.values()) for p in m.parameters()]}]

    model.module.requires_grad_(True)
    ctx = FitCtx(**make_ctx(name).__dict__)
    turns = Turns({t.name: len(t.rows) for t in tasks}, Rng(5), steps, 4)
    loop = Loop(Forward({"policy": model}), tasks, Plan(steps, 4, 2, 1e-3), groups, build("optimizer", "adamw"),
                build("schedule", "constant"), ctx, turns=turns, **rest)
    for module in (model.module, *model.heads.values()):
        module.eval()  # without dropout: what is compared draws none
    return loop


@pytest.mark.oracle(seed=16, clause=3, against="torch, one task after another")
def test_the_gradient_of_a_step_is_the_mean_of_those_of_its_tasks(pico_encoder, make_ctx):
    rows = {name: ALL[name] for name in ("two", "seven")}
    model, tasks = tasks_of(stage(), pico_encoder, manifest(make_ctx, rows=rows), make_ctx)
    loop = looped(model, tasks, make_ctx, "loop")
    step = next(s for s in range(6) if len({t.task for t in loop.turns.at(s)}) == 2 and any(t.again for t in loop.turns.at(s)))
    loop.clock.step = step
    values, _ = guards.gradients(loop)
    taken = loop.masters.taken()
    trained = [p for p, _ in loop.masters.pairs]
    wanted = [torch.zeros_like(p) for p in trained]
    lost = 0.0
    for turn in loop.turns.at(step):
        task = tasks[turn.task]
        batch = collate([task.rows[i] for i in rows_of(loop, task, turn.nth)], [""] * 4, 0)
        mask = batch["input"].mask
        states = model.module(input_ids=batch["input"].ids, attention_mask=mask).last_hidden_state
        pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        n = len(model.labels[task.name])
        loss = cross_entropy(model.heads[task.name](pooled), batch["label"]) / math.log(n)
        lost += float(loss.detach()) / 4
        for w, g in zip(wanted, torch.autograd.grad(loss, trained, allow_unused=True), strict=True):
            w += 0 if g is None else g / 4
    assert sum(values.values()) == pytest.approx(lost, abs=1e-6)
    assert max(float((w - (0 if g is None else g)).abs().max()) for w, g in zip(wanted, taken, strict=True)) < 1e-6
    assert max(float(w.abs().max()) for w in wanted) > 1e-3


def rows_of(loop: Loop, task: Task, nth: int) -> list[int]:
    """The rows of a task's batch: an epoch's order, cut from the front."""
    epoch, place = divmod(nth, math.ceil(len(task.rows) / 4))
    order = loop.rng.within(task.name)("order", epoch).permutation(len(task.rows))
    return [int(i) for i in order[4 * place:4 * place + 4]]


def test_a_second_turn_in_a_step_drops_other_units(pico_encoder, make_ctx):
    """With equal rows, equal dropout would make the two turns equal."""
    model, (task,) = tasks_of(stage(), pico_encoder, manifest(make_ctx, rows={"one": ("cls", [*labels(4, 2)])}), make_ctx)
    loop = looped(model, [task], make_ctx, "loop", steps=1)
    for module in (model.module, *model.heads.values()):
        module.train()
    seen = []
    accumulate = loop.accumulate
    loop.accumulate = lambda *a, **k: seen.append(accumulate(*a, **k)) or seen[-1]
    loop.plan = replace(loop.plan, batch_rows=4)
    guards.gradients(loop)
    assert len(seen) == 4 and len({round(sum(s.values()), 9) for s in seen}) == 4


# --- R3F ---------------------------------------------------------------------------------------------------------------

def r3f(spec: str, make_ctx, objective: str, rows, base, labelled=()):
    """(parts, units) that r3f adds to a batch of a model in training, dropout and all."""
    model, part = load_base(base), build("objective", objective)
    torch.manual_seed(1)
    model.heads["task"] = build("head", "linear").build(model, labelled)
    features = encode(part, model, rows)
    loop = make_loop(model, part, features, make_ctx("r3f"))
    loop.run.task = "task"
    for module in (model.module, *model.heads.values()):
        module.train()
    hook = build("regularizer", spec).start(model, loop.ctx)
    batch = make_batch(features, model)
    torch.manual_seed(3)
    return hook.on_loss(loop.run, batch, {}), hook.units(batch)


@pytest.mark.oracle(seed=16, clause=4, against="zero")
@pytest.mark.parametrize("objective, rows, kinds", [("classify", labels(6, 3), ["k0", "k1", "k2"]), ("choose", choices(6), [])],
                         ids=["labels", "options"])
def test_no_noise_and_shared_masks_add_nothing(pico_encoder, make_ctx, objective, rows, kinds):
    for dropout in ("shared", "none"):
        parts, units = r3f(f"r3f:s=0,where=labels,dropout={dropout}", make_ctx, objective, rows, pico_encoder, kinds)
        assert float(parts["r3f"]) == 0 and units == {"r3f": 6.0}
    noised, _ = r3f("r3f:s=0.5,where=labels", make_ctx, objective, rows, pico_encoder, kinds)
    assert float(noised["r3f"]) > 1e-6


def test_texts_without_a_label_are_left_alone(pico_encoder, make_ctx):
    parts, units = r3f("r3f:s=0.5,where=labels", make_ctx, "find-span", spans(4), pico_encoder, ["start", "end"])
    assert parts == {} and units == {}


# --- options and spans ---------------------------------------------------------------------------------------------------

@pytest.mark.oracle(seed=16, clause=1, against="each option by itself")
def test_options_are_a_soft_max_over_those_of_the_row(pico_encoder, make_ctx):
    model, objective = load_base(pico_encoder), build("objective", "choose:scale=log")
    torch.manual_seed(2)
    model.heads["task"] = build("head", "linear:dropout=0").build(model, [])
    rows = choices(6)
    features = encode(objective, model, rows)
    run = Forward({"policy": model})
    run.task = "task"
    with torch.no_grad():
        found = float(objective.loss(run, make_batch(features, model))["nll"])
        wanted = 0.0
        for row in rows:
            scores = []
            for option in row.meta["options"]:
                ids = torch.tensor([model.tokenizer(f"{row.part('question').splitlines()[0]}\n{option}")["input_ids"]])
                scores.append(float(model.heads["task"](model.module(input_ids=ids).last_hidden_state.mean(1))))
            wanted -= float(torch.tensor(scores).log_softmax(-1)[row.label]) / math.log(len(scores))
    assert found == pytest.approx(wanted, rel=1e-4)
    batch = make_batch(features, model)
    table = by_row(torch.arange(6.0 * 8)[:, None], batch)
    assert len(options_of(batch)) == 48
    assert table[0].tolist() == [0, 6, *[NEVER] * 6] and table[2, :5].tolist() == [2, 8, 14, 20, 26]


@pytest.mark.oracle(seed=16, clause=1, against="places worked by hand")
def test_a_span_is_found_at_its_tokens(pico_encoder, make_ctx):
    model, objective = load_base(pico_encoder), build("objective", "find-span")
    rows = spans(5)
    for row, feature in zip(rows, encode(objective, model, rows), strict=True):
        ids = feature["input"].ids[feature["first"]:feature["last"] + 1]
        assert model.tokenizer.decode(ids).strip() == row.answer
    squad = replace(rows[0], meta={"spans": [[0, 5]]})
    (placed,) = encode(objective, model, [squad])
    assert model.tokenizer.decode(placed["input"].ids[placed["first"]:placed["last"] + 1]).strip() == "There"
    assert not encode(objective, model, [question("x", "What?", "nowhere to be found", passage="A room.")])


# --- the stage -----------------------------------------------------------------------------------------------------------

def test_a_stage_leaves_a_body_and_its_heads_beside_it(pico_encoder, make_ctx):
    inputs = {"base": pico_encoder, "manifest": manifest(make_ctx)}
    step, ctx = stage(length={"steps": 12}, learning_rate=5e-3), make_ctx("fit", inputs)
    artifact = step.run(inputs, ctx)
    assert {f.verdict for f in step.receipts(inputs, artifact, ctx)} <= {"agrees", "not applicable"}
    assert not artifact.meta["heads"] and set(artifact.meta["training_heads"]) == {f"manifest.{name}" for name in ALL}
    assert not add_tuned(load_base(pico_encoder), open_artifact(artifact.folder)).heads
    turns = artifact.meta["fit"]["turns"]
    assert sum(t["turns"] for t in turns.values()) == 36
    assert turns["manifest.seven"]["share"] == pytest.approx(28 / 86, abs=1e-6)
    curve = read_lines(artifact.folder / "curve.jsonl")
    assert any("r3f" in row["parts"] for row in curve) and curve[-1]["loss"] < curve[0]["loss"]
    assert not read_lines(artifact.folder / "ledger.jsonl")


def test_a_stopped_stage_goes_on_as_if_it_had_not_been(pico_encoder, make_ctx):
    given = manifest(make_ctx)
    found = []
    for name, stops in (("whole", (6,)), ("parts", (2, 6))):
        for steps in stops:
            model, tasks = tasks_of(stage(), pico_encoder, given, make_ctx, f"{name}{steps}")
            loop = looped(model, tasks, make_ctx, f"{name}/loop")
            loop.plan = replace(loop.plan, steps=steps)
            loop.train()
        found.append([p.detach().clone() for p, _ in loop.masters.pairs])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_so_many_tasks_are_drawn_and_none_trains_nothing(pico_encoder, make_ctx):
    given = manifest(make_ctx)
    drawn = [[t.name for t in stage(n_tasks=2).over(given, make_ctx("x", seed=0)).tasks] for _ in range(2)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 2
    inputs = {"base": pico_encoder, "manifest": given}
    nothing = stage(n_tasks=0).run(inputs, make_ctx("none", inputs))
    base, tuned = load_base(pico_encoder), add_tuned(load_base(pico_encoder), nothing)
    assert all(torch.equal(a, b) for a, b in zip(base.module.parameters(), tuned.module.parameters(), strict=True))
    with pytest.raises(UserError, match="n_tasks = 9, but the manifest has 4 tasks"):
        stage(n_tasks=9).over(given, make_ctx("x"))


def test_what_a_stage_refuses(make_ctx, pico_encoder):
    with pytest.raises(UserError, match=r"Task 'seven' has 28 rows, fewer than a batch \(batch_rows = 32\)"):
        stage(batch_rows=32).over(manifest(make_ctx), make_ctx("x"))
    with pytest.raises(UserError, match="is none"):
        stage().over(write_examples(make_ctx("rows").folder, {"train": labels(4, 2)}), make_ctx("x"))
    with pytest.raises(UserError, match="tasks come from the manifest"):
        stage(tasks=({"data": "manifest.two"},)).check()
    with pytest.raises(UserError, match="streams are those of one task"):
        stage(streams={"validation": "manifest.two"}).check()
    given = manifest(make_ctx, "write", {"write": ("s2s", spans(8))})
    inputs = {"base": pico_encoder, "manifest": given}
    with pytest.raises(UserError, match="needs decoder or encoder-decoder; .* is an encoder"):
        stage().run(inputs, make_ctx("fit", inputs))
