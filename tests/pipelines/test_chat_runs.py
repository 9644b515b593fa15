"""Chats and raw texts from a file to compared arms, on a base with a chat template of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.core.run import Run
from luthier.engine.models import add_tuned, load_base
from luthier.engine.rendering import renderer
from luthier.engine.steps.base import Base
from luthier.engine.steps.fit import Fit
from luthier.pipelines import jobs
from luthier.pipelines.asking import ask
from luthier.pipelines.inspecting import inspect_data
from luthier.pipelines.steps.evaluate import Evaluate
from tests.conftest import new_ctx
from tests.engine.chat_templates import CASES, FORGETFUL, IM, TALK, said

WORDS = "module class object list dict name scope block import yield".split()


@pytest.fixture(scope="module")
def folder(pico, tmp_path_factory) -> Path:
    """A pico model whose tokenizer knows ChatML and has its template."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, folder = Path(pico.meta["path"]), tmp_path_factory.mktemp("chatty") / "chatty"
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": list(IM)})
    tokenizer.chat_template = CASES["chatml"].jinja
    model = AutoModelForCausalLM.from_pretrained(source)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chatty(folder, engine, tmp_path_factory):
    return Base(model=str(folder)).run({}, new_ctx(tmp_path_factory.mktemp("base") / "base", engine))


def chat_rows(count: int) -> list[dict]:
    found = []
    for i in range(count):
        one, two = WORDS[i % 10], WORDS[(7 * i + 3) % 10]
        found.append({"messages": [
            {"role": "user", "content": f"What of {one} {i} and {i * i}?"}, {"role": "assistant", "content": f"the {one}"},
            {"role": "user", "content": f"And {two} {i * 3}?"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {"word": two}}}]}]})
    return found


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory) -> Run:
    root = tmp_path_factory.mktemp("run")
    recipe = jobs.tune(write(root / "chats.jsonl", chat_rows(30))).edit(**{
        "base.model": str(folder), "tuned.length": {"steps": 4}, "split.dev_share": 0.1})
    return jobs.run(recipe, root / "run", exact=True)


def test_chats_are_tuned_evaluated_and_asked_with_the_template_of_the_base(run, folder):
    assert not [f for f in run.findings() if f.verdict == "differs"]
    kept = run.step("tuned").meta["template"]
    assert kept["name"] == "chat" and kept["chat"]["jinja"] == CASES["chatml"].jinja and len(kept["stop_ids"]) == 2
    asked = read_lines(run.step("arm-tuned").folder / "predictions.jsonl")
    assert all(a["question"].startswith("And ") for a in asked), "the last message is what is asked"
    assert all(json.loads(a["references"][0].removeprefix("<tool_call>").removesuffix("</tool_call>"))["name"] == "look"
               for a in asked), "a tool call is judged as the template shows it"
    assert ask(run, "What of the module?", arm="tuned")["arm"] == "tuned"


def test_further_chats_are_evaluated_and_trained_ones_and_other_formats_refused(run, tmp_path):
    rows = chat_rows(34)
    done = jobs.run(jobs.evaluate(run, write(tmp_path / "new.jsonl", rows[30:])), tmp_path / "e", exact=True)
    assert done.has("comparison")
    with pytest.raises(UserError, match="were trained on"):
        jobs.run(jobs.evaluate(run, write(tmp_path / "old.jsonl", rows)), tmp_path / "f", exact=True)
    with pytest.raises(UserError, match="holds raw-text rows"):
        jobs.evaluate(run, write(tmp_path / "raw.jsonl", [{"text": "x"}]))


def test_another_template_than_the_trained_one_is_refused_unless_said_so(run, chatty, tmp_path):
    model = add_tuned(load_base(chatty), run.step("tuned"))
    other = tmp_path / "other.jinja"
    other.write_text(FORGETFUL)
    for template in (str(other), "plain"):
        with pytest.raises(UserError, match="was trained with 'the tokenizer's own chat template'"):
            renderer(model, template=template)
    changed = Evaluate(arm="a", template=str(other), other_template=True)
    changed.check()
    assert changed._render(model, [TALK]).chat.jinja == FORGETFUL
    assert renderer(model).chat.jinja == CASES["chatml"].jinja, "whatever the rows are"
    before = changed.content()
    other.write_text(FORGETFUL + " ")
    assert changed.content() != before, "a changed template is another evaluation"
    with pytest.raises(UserError, match="no such file"):
        Evaluate(arm="a", template="nowhere.jinja").check()


def test_inspect_shows_what_is_learned_of_a_chat(folder, tmp_path):
    found = inspect_data(write(tmp_path / "chats.jsonl", chat_rows(2)), str(folder), 1, 256)
    (row,) = found["shown"]
    assert found["about"]["template"] == "the tokenizer's own chat template"
    assert [s["text"] for s in row["segments"] if s["learned"]] == [
        "the module<|im_end|>",
        '<tool_call>\n{"name": "look", "arguments": {"word": "list"}}\n</tool_call><|im_end|>']
    plain = inspect_data(str(tmp_path / "chats.jsonl"), str(folder), 1, 256, "plain")
    assert plain["about"]["template"] == "plain" and "User: What of" in plain["shown"][0]["segments"][0]["text"]


def fit_on(chatty, make_ctx, rows, **fields):
    from luthier.core.artifact import write_examples

    inputs = {"base": chatty, "examples": write_examples(make_ctx("data").folder, {"train": rows})}
    step = Fit(**{"length": {"steps": 2}, "batch_rows": 4, **fields})
    step.check()
    said_: list[str] = []
    ctx = make_ctx("fit", inputs, log=said_.append)
    artifact = step.run(inputs, ctx)
    receipts = step.receipts(inputs, artifact, ctx)
    assert all(f.verdict in ("agrees", "not applicable") for f in receipts), receipts
    return artifact, said_, {f.name: f for f in receipts}


def talks(count: int, exchanges: int):
    from luthier.core.example import Example

    return [Example(f"t{i}", tuple(t for k in range(exchanges) for t in (
        said("user", f"What of {WORDS[(i + k) % 10]}?"), said("assistant", f"the {WORDS[(i * k) % 10]} of {i}"))), task="chat")
        for i in range(count)]


def test_divided_rows_are_counted_by_their_source(chatty, make_ctx):
    artifact, said_, receipts = fit_on(chatty, make_ctx, [*talks(3, 2), *talks(1, 12)[:1]][1:], over_long="split",
                                       max_tokens_per_example=100)
    assert artifact.meta["rows"] == {"examples.train": 3} and artifact.meta["dropped"] == 0
    (entry,) = artifact.ledger()
    assert entry["reason"] == "shortened" and entry["kept"] and "divided into" in entry["detail"]
    assert artifact.meta["shortened"] == 1 and artifact.meta["tokens_cut"] == 0
    assert any("1 of 3 rows shortened or divided, 0 tokens cut" in line for line in said_)
    assert receipts["fit/rows"].left == receipts["fit/rows"].right == 3


def test_cut_tokens_are_counted_and_rows_whose_target_is_too_long_dropped(chatty, make_ctx):
    from luthier.core.example import question

    rows = [question("fits", "What?", "This."), question("long", "What?", "That.", passage="module " * 200),
            question("never", "What?", "class " * 200)]
    artifact, said_, receipts = fit_on(chatty, make_ctx, rows, over_long="truncate-context", max_tokens_per_example=64)
    dropped, cut = artifact.ledger()
    assert (dropped["id"], dropped["reason"]) == ("never", "too long") and "all context is cut" in dropped["detail"]
    assert cut["id"] == "long" and cut["tokens_cut"] == artifact.meta["tokens_cut"] > 100
    assert (artifact.meta["rows"]["examples.train"], artifact.meta["dropped"]) == (2, 1)
    assert any("1 of 3 rows left out" in line for line in said_) and any("tokens cut" in line for line in said_)
    assert receipts["fit/rows"].left == 3


def test_a_template_that_forgets_gives_a_row_for_each_turn(chatty, make_ctx, tmp_path):
    path = tmp_path / "forgetful.jinja"
    path.write_text(FORGETFUL)
    artifact, _, _ = fit_on(chatty, make_ctx, [CASES["forgetful"].talk], template=str(path))
    assert artifact.meta["rows"] == {"examples.train": 1} and artifact.ledger() == []
    assert artifact.meta["template"]["chat"]["source"] == "the template forgetful.jinja"


def test_chat_markers_can_be_new_tokens(pico, make_ctx, tmp_path):
    path = tmp_path / "chatml.jinja"
    path.write_text(CASES["chatml"].jinja)
    with pytest.raises(UserError, match=r"new_tokens: \['<\|im_end\|>'\]"):
        fit_on(pico, make_ctx, [TALK], template=str(path))
    artifact, _, _ = fit_on(pico, make_ctx, [TALK], template=str(path), new_tokens=IM)
    model = add_tuned(load_base(pico), artifact)
    assert model.stop_ids == {model.tokenizer.eos_token_id, artifact.meta["new_tokens"]["first"] + 1}
    assert model.tokenizer.chat_template == CASES["chatml"].jinja


def test_a_template_belongs_to_the_key_of_a_fit(tmp_path):
    path = tmp_path / "a.jinja"
    path.write_text("{{ a }}")
    before = Fit(template=str(path)).content()
    path.write_text("{{ b }}")
    assert Fit(template=str(path)).content() != before and Fit().content() == {}
    with pytest.raises(UserError, match="no such file"):
        Fit(template="nowhere.jinja").check()


def test_raw_texts_are_read_on_and_compared_in_bits(tmp_path):
    rows = [{"text": " ".join(f"{WORDS[(i * k + k) % 10]} {i * k}" for k in range(60))} for i in range(20)]
    recipe = jobs.tune(write(tmp_path / "raw.jsonl", rows)).edit(**{
        "base.model": "pico", "tuned.length": {"epochs": 2}, "tuned.max_tokens_per_example": 64, "tuned.learning_rate": 1e-2})
    done = jobs.run(recipe, tmp_path / "run", exact=True)
    assert not [f for f in done.findings() if f.verdict == "differs"]
    table = {r["arm"]: r["value"] for r in json.loads((done.step("comparison").folder / "table.json").read_text())}
    assert 0 < table["tuned"] < table["base"]
    tuned = done.step("tuned").meta
    assert tuned["shortened"] == tuned["rows"]["examples.train"] and tuned["tokens_cut"] == 0
    assert ask(done, "What is a module?")["arm"] == "tuned"
    again = jobs.run(jobs.evaluate(done, write(tmp_path / "new.jsonl", [{"text": f"the {w} of {w}"} for w in WORDS])),
                     tmp_path / "e", exact=True)
    assert again.has("comparison")


def test_policies_that_a_label_task_can_not_follow_are_refused():
    task = {"data": "examples.train", "objective": "classify", "head": "linear"}
    for policy in ("split", "truncate-context"):
        with pytest.raises(UserError, match="texts with labels take drop or truncate"):
            Fit(tasks=(task,), over_long=policy).check()


def test_generation_stops_at_the_end_of_a_turn(chatty):
    from luthier.core.component import build
    from luthier.core.rng import Rng
    from luthier.engine.generation import generate

    model = load_base(chatty)
    render = renderer(model, template="chat")
    decoder = build("decoder", "greedy:max_new_tokens=6")
    prompts = [render.prompt(TALK)]
    (free,) = generate({"policy": model}, prompts, decoder, Rng(0), stop_ids=[])
    first = model.module.generate(
        input_ids=torch.tensor(prompts), max_new_tokens=1, do_sample=False)[0, -1].item()
    (stopped,) = generate({"policy": model}, prompts, decoder, Rng(0), stop_ids=[first])
    assert not free.stopped and free.tokens == 6 and stopped.stopped and stopped.text == ""
    assert render.stop_ids == {model.tokenizer.eos_token_id, model.tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert model.stop_ids == {model.tokenizer.eos_token_id}, "an untuned base has no template of its own"
