"""Generation against transformers' own, scoring against log-softmax, and nothing that depends on the batch."""

from __future__ import annotations

import pytest
import torch

from luthier.core.component import build
from luthier.core.files import Journal
from luthier.core.rng import Rng
from luthier.engine import generation, padded
from luthier.engine.generation import generate
from luthier.engine.models import load_base
from luthier.engine.rendering import renderer
from luthier.engine.scoring import batches_of, embed, packs_by_beginning, score, score_tokens
from tests.contracts.workbench import examples

NEW = 12


@pytest.fixture(scope="module", params=["decoder", "encoder-decoder"])
def model(request, bases):
    """A pico model whose answers are not all one token."""
    made = load_base(bases[request.param])
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.module.parameters():
            if parameter.ndim == 2:
                parameter.add_(torch.randn_like(parameter) * 0.15)
    return made


@pytest.fixture(scope="module")
def prompts(model):
    render = renderer(model)
    return [render.prompt(e) for e in examples(5)]


def greedy(tokens: int = NEW):
    return build("decoder", {"use": "greedy", "max_new_tokens": tokens})


def theirs(model, prompt: list[int]) -> list[int]:
    """What transformers' own greedy search writes, cut at the end token."""
    pad = model.tokenizer.pad_token_id
    made = model.module.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=NEW, do_sample=False, num_beams=1, pad_token_id=pad, eos_token_id=model.tokenizer.eos_token_id,
        **({"decoder_start_token_id": pad} if model.architecture == "encoder-decoder" else {}))[0].tolist()
    made = made[1:] if model.architecture == "encoder-decoder" else made[len(prompt):]
    stop = model.tokenizer.eos_token_id
    return made[:made.index(stop)] if stop in made else made


def test_greedy_answers_are_those_of_transformers(model, prompts):
    ours = generate({"policy": model}, prompts, greedy(), Rng(0))
    for prompt, answer in zip(prompts, ours, strict=True):
        wanted = theirs(model, prompt)
        assert answer.text == model.tokenizer.decode(wanted, skip_special_tokens=True).strip()
        assert (answer.tokens, answer.prompt_tokens) == (len(wanted), len(prompt))
    assert len({a.text for a in ours}) > 1, "answers must differ for this to show anything"


def test_a_batch_of_different_lengths_is_one_by_one(model, prompts):
    assert len({len(p) for p in prompts}) > 1
    whole = generate({"policy": model}, prompts, greedy(), Rng(0))
    assert whole == [generate({"policy": model}, [p], greedy(), Rng(0))[0] for p in prompts]


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_virtual_tokens_in_front_change_with_no_batch(pico, kind):
    import peft

    made = load_base(pico)
    torch.manual_seed(0)
    made.module = peft.get_peft_model(made.module, getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with torch.no_grad():
        for parameter in made.module.parameters():
            if parameter.ndim == 2:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    made.module.eval()
    asked = [renderer(made).prompt(e) for e in examples(5)]
    whole = generate({"policy": made}, asked, greedy(5), Rng(0))
    assert whole == [generate({"policy": made}, [p], greedy(5), Rng(0))[0] for p in asked]
    assert len({a.text for a in whole}) > 1


def test_padding_on_the_wrong_side_would_be_seen(model, prompts, monkeypatch):
    """A mutant: a mask that lets padding be read must give other answers somewhere."""
    monkeypatch.setattr(generation, "packs", lambda model: False)
    whole = generate({"policy": model}, prompts, greedy(), Rng(0))
    right = padded.Speaker.__init__

    def wrong(self, *args):
        right(self, *args)
        self.mask = torch.ones_like(self.mask)
        if self.encoded is not None:
            self.source_mask = torch.ones_like(self.source_mask)

    monkeypatch.setattr(padded.Speaker, "__init__", wrong)
    assert generate({"policy": model}, prompts, greedy(), Rng(0)) != whole


def test_the_limit_cuts_and_says_so(model, prompts):
    for answer in generate({"policy": model}, prompts, greedy(2), Rng(0)):
        assert answer.tokens <= 2 and answer.stopped == (answer.tokens < 2)


def test_the_order_of_items_changes_no_greedy_answer(model, prompts):
    forwards = generate({"policy": model}, prompts, greedy(4), Rng(0))
    assert generate({"policy": model}, prompts[::-1], greedy(4), Rng(0)) == forwards[::-1]


def test_scores_are_sums_of_log_softmax(model, prompts):
    pairs = [(p, [7 + i, 9, 11][:1 + i % 3]) for i, p in enumerate(prompts)]
    for (prompt, continuation), (ours, count) in zip(pairs, score(model, pairs), strict=True):
        with torch.no_grad():
            if model.architecture == "encoder-decoder":
                start = [model.tokenizer.pad_token_id]
                logits = model.module(input_ids=torch.tensor([prompt]),
                                      decoder_input_ids=torch.tensor([start + continuation[:-1]])).logits[0]
            else:
                logits = model.module(input_ids=torch.tensor([prompt + continuation[:-1]])).logits[0, len(prompt) - 1:]
        logs = logits.double().log_softmax(-1)
        wanted = float(sum(logs[i, t] for i, t in enumerate(continuation)))
        assert ours == pytest.approx(wanted, abs=1e-4) and count == len(continuation)


def test_a_journal_answers_without_the_model(model, prompts, tmp_path, monkeypatch):
    first = generate({"policy": model}, prompts, greedy(3), Rng(0), journal=Journal(tmp_path / "j.jsonl"))
    monkeypatch.setattr(generation, "scheduler_of", lambda *rest: pytest.fail("asked again"))
    assert generate({"policy": model}, prompts, greedy(3), Rng(0), journal=Journal(tmp_path / "j.jsonl")) == first


@pytest.mark.parametrize("change", ["prompt", "decoder", "seed"])
def test_a_journal_does_not_answer_another_question(model, prompts, tmp_path, change):
    journal = Journal(tmp_path / "j.jsonl")
    generate({"policy": model}, prompts, greedy(3), Rng(0), journal=journal)
    before = len(journal.values)
    asked = [p[:-1] for p in prompts] if change == "prompt" else prompts
    generate({"policy": model}, asked, greedy(2 if change == "decoder" else 3), Rng(change == "seed"), journal=journal)
    assert len(journal.values) == 2 * before


def test_an_answer_may_end_at_a_line_break(model, prompts, monkeypatch):
    for answer in generate({"policy": model}, prompts, greedy(6), Rng(0), stop="newline"):
        assert "\n" not in answer.text


def test_packs_hold_every_item_once_and_beginnings_lie_together():
    rows = [[1, 2, 3, n] for n in range(9)] + [[4] * 12, [5]]
    groups = packs_by_beginning(rows[::-1], tokens=14)
    assert sorted(i for g in groups for i in g) == list(range(len(rows)))
    assert len(groups) == 2, "nine rows behind one beginning are 3 + 9 tokens"


def test_token_scores_add_up(model, prompts):
    pairs = [(p, [7 + i, 9, 11][:1 + i % 3]) for i, p in enumerate(prompts)]
    for (_, continuation), parts, (whole, _) in zip(pairs, score_tokens(model, pairs), score(model, pairs), strict=True):
        assert len(parts) == len(continuation) and sum(parts) == pytest.approx(whole)


def test_batches_hold_every_item_once():
    lengths = [5, 900, 3, 3, 8000, 20, 9000]
    groups = batches_of(lengths, rows=3, tokens=8192)
    assert sorted(i for g in groups for i in g) == list(range(len(lengths)))
    assert all(len(g) <= 3 and (len(g) == 1 or len(g) * max(lengths[i] for i in g) <= 8192) for g in groups)
    assert batches_of([]) == []


def test_an_embedding_does_not_depend_on_its_batch(engine, pico_encoder):
    model = engine.load(pico_encoder)
    texts = ["a module", "a much longer text about modules and classes", "x", "the object of the class"]
    whole = embed(model, texts)
    assert torch.allclose(whole.norm(dim=-1), torch.ones(len(texts)), atol=1e-6)
    for i, text in enumerate(texts):
        assert torch.allclose(embed(model, [text])[0], whole[i], atol=1e-6)
    with torch.no_grad():
        ids = model.tokenizer(texts[1], return_tensors="pt")
        states = model.module(**{k: ids[k] for k in ("input_ids", "attention_mask")}).last_hidden_state[0].mean(0)
    assert torch.allclose(torch.nn.functional.normalize(states, dim=0), whole[1], atol=1e-6)
