"""Rendering: the mask is right by construction, prompts start the rows of training, nothing is cut unsaid."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn, question
from luthier.core.kinds import DroppedRow
from luthier.engine.models import load_base
from luthier.engine.rendering import Prompting, Render, check_invariants, passages_of, renderer, with_passages
from tests.contracts.workbench import examples


@pytest.fixture(scope="module")
def models(bases):
    return {name: load_base(base) for name, base in bases.items()}


@pytest.fixture(scope="module", params=["decoder", "encoder-decoder"])
def render(request, models) -> Render:
    return renderer(models[request.param], 256)


def learned(render: Render, tokens) -> list[int]:
    ids = tokens.ids if tokens.decoder_ids is None else tokens.decoder_ids
    return [i for i, t in zip(ids, tokens.targets, strict=True) if t]


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(asked=words, answer=words.filter(lambda t: t.strip()), passage=words | st.just(""))
def test_exactly_the_answer_and_the_stop_token_are_learned(models, asked, answer, passage):
    for architecture in ("decoder", "encoder-decoder"):
        render = Render(models[architecture].tokenizer, architecture, 4096)
        example = question("q", asked, answer, passage=passage)
        tokens = render.tokens(example)
        found = learned(render, tokens)
        assert found[-1] == render.stop_id and found.count(render.stop_id) == 1
        assert render.decode(found) == f" {answer}"
        prompt = render.prompt(example)
        assert tokens.ids[:len(prompt)] == prompt, "the prompt of generation starts the row of training"
        if architecture == "decoder":
            assert tokens.targets == [False] * len(prompt) + [True] * len(found)


def test_the_plain_template_reads_as_documented(models):
    render = Render(models["decoder"].tokenizer, "decoder", 256)
    example = question("q", "What is it?", "A file.", passage="It is a file.")
    assert "".join(t for t, _ in render.segments(example)) == (
        "Passage: It is a file.\nQuestion: What is it?\nAnswer: A file.")
    assert [learned for _, learned in render.segments(example)] == [False, True]
    assert render.decode(render.prompt(example)) == "Passage: It is a file.\nQuestion: What is it?\nAnswer:"


def test_each_learned_turn_stops(models):
    render = Render(models["decoder"].tokenizer, "decoder", 256)
    turns = (Turn("user", (Part("one?", name="question"),)), Turn("assistant", (Part("yes"),), target=True),
             Turn("user", (Part("two?", name="question"),)), Turn("assistant", (Part("no"),), target=True))
    tokens = render.tokens(Example("q", turns))
    found = learned(render, tokens)
    assert found.count(render.stop_id) == 2 and found[-1] == render.stop_id
    assert render.decode(found) == " yes no"


def test_prompts_and_completions_are_rendered_as_they_are(models):
    render = Render(models["decoder"].tokenizer, "decoder", 256)
    row = Example("r", (Turn("user", (Part("def f("),)), Turn("assistant", (Part("x):"),), target=True)))
    assert render.segments(row) == [("def f(", False), ("x):", True)]


def test_instruction_and_shots_are_never_learned(models):
    shots = (question("s", "Why?", "Because."),)
    render = Render(models["decoder"].tokenizer, "decoder", 256, prompting=Prompting("Be short.", shots))
    example = question("q", "What?", "A thing.")
    text = "".join(t for t, _ in render.segments(example))
    assert text == "Be short.\n\nQuestion: Why?\nAnswer: Because.\n\nQuestion: What?\nAnswer: A thing."
    assert render.decode(learned(render, render.tokens(example))) == " A thing."
    only = Example("o", (Turn("assistant", (Part("said"),), target=True),))
    assert render.decode(learned(render, render.tokens(only))) == "said"


def test_rows_that_can_not_be_used_are_dropped_by_name(render):
    with pytest.raises(DroppedRow) as caught:
        render.tokens(question("empty", "What?"))
    assert (caught.value.dropped.id, caught.value.dropped.reason) == ("empty", "nothing to learn")
    short = Render(render.tokenizer, render.architecture, 12)
    with pytest.raises(DroppedRow) as caught:
        short.tokens(question("long", "What is it?" * 9, "Yes."))
    dropped = caught.value.dropped
    assert (dropped.id, dropped.reason) == ("long", "too long")
    assert int(dropped.detail.split()[0]) > 12 and "max_tokens_per_example=12" in dropped.detail


def test_a_text_is_cut_only_where_that_was_asked_for(models):
    tokenizer, example = models["encoder"].tokenizer, examples(3)[2]
    with pytest.raises(DroppedRow, match="too long"):
        Render(tokenizer, "encoder", 8).text(example)
    cut = Render(tokenizer, "encoder", 8, over_long="truncate").text(example)
    assert len(cut.ids) == 8 and not any(cut.targets)
    assert cut.ids[0] == tokenizer.bos_token_id and cut.ids[-1] == tokenizer.eos_token_id
    assert len(Render(tokenizer, "encoder", 64).text(example).ids) > 8


def test_more_tokens_than_the_model_reads_are_refused(models):
    with pytest.raises(UserError, match="reads at most 512 tokens"):
        renderer(models["encoder"], 513)


# --- tokenizers that can't be used ---------------------------------------------------------------------------------

class Broken:
    """A tokenizer that breaks one promise."""

    def __init__(self, whole, **changed) -> None:
        self.whole, self.changed = whole, changed

    def __getattr__(self, name):
        return self.changed.get(name, getattr(self.whole, name)) if name in self.changed else getattr(self.whole, name)

    def __call__(self, text, **options):
        return {"input_ids": self.changed.get("encode_as", lambda ids: ids)(self.whole(text, **options)["input_ids"])}


@pytest.mark.parametrize("changed, said", [
    ({"eos_token_id": None}, "no end token"),
    ({"encode_as": lambda ids: ids[:-2]}, "the learned tokens read as the answer"),
    ({"encode_as": lambda ids: [1, *ids]}, "the start token stands once"),
])
def test_a_broken_tokenizer_is_refused_by_name(models, changed, said):
    broken = Broken(models["decoder"].tokenizer, **changed)
    with pytest.raises(UserError, match=f"The tokenizer of some-model.*{said}"):
        check_invariants(Render(broken, "decoder", 256), "some-model")


def test_a_template_that_learns_no_stop_token_is_refused(models):
    class NoStop(Render):
        def tokens(self, example):
            made = super().tokens(example)
            return SimpleNamespace(ids=made.ids, targets=[*made.targets[:-1], False], decoder_ids=None)

    with pytest.raises(UserError, match="the stop token is learned last"):
        check_invariants(NoStop(models["decoder"].tokenizer, "decoder", 256), "m")


# --- passages ------------------------------------------------------------------------------------------------------

def test_passages_are_put_before_the_question_in_their_order(models):
    render = Render(models["decoder"].tokenizer, "decoder", 256)
    example = question("q", "What?", "This.", passage="old", source="s", meta={"k": 1})
    shown = with_passages(example, ["first", "second"])
    assert "".join(t for t, _ in render.segments(shown)) == (
        "Passage: [1] first\nPassage: [2] second\nQuestion: What?\nAnswer: This.")
    assert (shown.id, shown.source, shown.meta, shown.answer) == ("q", "s", {"k": 1}, "This.")
    assert with_passages(shown, ["old"]) == with_passages(example, ["old"]) and passages_of(shown) == ["first", "second"]
    assert with_passages(example, []).part("passage") == "" and example.part("passage") == "old"


def test_the_decoder_starts_as_its_model_was_trained_to():
    """BART starts its decoder with its end token, T5 with padding: the configuration says which."""
    from transformers import BartConfig, BartForConditionalGeneration

    from luthier.engine.batches import collate
    from luthier.engine.forward import Forward
    from luthier.engine.models import Model
    from luthier.engine.pico import _tokenizer

    tokenizer = _tokenizer(encoder=False)
    module = BartForConditionalGeneration(BartConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id, forced_eos_token_id=None)).eval().requires_grad_(False)
    model = Model(module, tokenizer, "encoder-decoder", "bart", "bart", 128, None)
    tokens = renderer(model, 64).tokens(question("q", "What?", "This."))
    assert tokens.decoder_ids[0] == tokenizer.eos_token_id
    batch = collate([{"input": tokens}], ["q"], tokenizer.pad_token_id)["input"]
    labels = batch.decoder_ids[:, 1:].masked_fill(~batch.targets[:, 1:], -100)
    theirs = module(input_ids=batch.ids, attention_mask=batch.mask, labels=labels).loss
    assert float(Forward({"policy": model})("policy", batch).nll().mean()) == pytest.approx(float(theirs), abs=1e-5)

    from luthier.core.component import build
    from luthier.core.rng import Rng
    from luthier.engine.generation import generate
    from luthier.engine.scoring import score

    prompt = renderer(model, 64).prompt(question("q", "What?"))
    import torch
    made = module.generate(input_ids=torch.tensor([prompt]), max_new_tokens=6, do_sample=False, num_beams=1)[0, 1:]
    ours = generate({"policy": model}, [prompt], build("decoder", "greedy:max_new_tokens=6"), Rng(0))[0]
    assert ours.text == tokenizer.decode(made, skip_special_tokens=True).strip()
    answer = learned(renderer(model, 64), tokens)
    assert score(model, [(tokens.ids, answer)])[0][0] == pytest.approx(-float(theirs) * len(answer), abs=1e-4)
