"""New tokens: begun as the mean of their pieces, only their rows trained, saved small, loaded the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from luthier.core.artifact import open_artifact, write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import question
from luthier.core.rng import Rng
from luthier.engine import new_tokens
from luthier.engine.generation import generate
from luthier.engine.models import add_tuned, load_base
from luthier.engine.rendering import renderer
from luthier.engine.steps.fit import Fit
from tests.contracts.workbench import tuned_logits

STRINGS = ("<|tool|>", "zyxomma")


def matrices(model) -> dict[str, torch.Tensor]:
    """Input and output matrix as the model computes with them."""
    inner = model.module
    return {"input": inner.get_input_embeddings().weight.detach().clone(),
            "output": inner.get_output_embeddings().weight.detach().clone()}


@pytest.fixture
def tied(pico, tmp_path):
    """The pico base with one matrix for input and output."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from luthier.engine.steps.base import Base
    from tests.conftest import new_ctx

    source, folder = Path(pico.meta["path"]), tmp_path / "tied"
    config = AutoConfig.from_pretrained(source)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return Base(model=str(folder)).run({}, new_ctx(tmp_path / "base", None))


@pytest.fixture(params=["untied", "tied"])
def base(request, pico):
    return request.getfixturevalue("tied") if request.param == "tied" else pico


def data(ctx):
    rows = [question(f"q{i}", f"What is said {i}?", "the zyxomma has <|tool|>") for i in range(4)]
    return write_examples(ctx.folder, {"train": rows})


def fit(base, make_ctx, method, name="fit", **changed):
    inputs = {"base": base, "examples": data(make_ctx("data"))}
    step = Fit(**{"method": method, "new_tokens": STRINGS, "length": {"steps": 30}, "batch_rows": 4, "learning_rate": 3e-2,
                  "schedule": "constant", **changed})
    ctx = make_ctx(name, inputs)
    artifact = step.run(inputs, ctx)
    return step, artifact, inputs, ctx


def test_rows_begin_as_the_mean_of_their_pieces(base):
    plain, model = load_base(base), load_base(base)
    pieces = {s: plain.tokenizer(s, add_special_tokens=False)["input_ids"] for s in STRINGS}
    assert all(len(p) > 1 for p in pieces.values())
    before = matrices(plain)
    new_tokens.extend(model, STRINGS)
    first = len(plain.tokenizer)
    for n, string in enumerate(STRINGS):
        assert model.tokenizer(f"a {string}b", add_special_tokens=False)["input_ids"].count(first + n) == 1
    for name, matrix in matrices(model).items():
        assert torch.equal(matrix[:first], before[name][:first])
        for n, string in enumerate(STRINGS):
            by_hand = sum(before[name][i] for i in pieces[string]) / len(pieces[string])
            assert torch.allclose(matrix[first + n], by_hand, atol=1e-6)


def test_a_matrix_with_spare_rows_is_filled_not_grown(pico):
    model = load_base(pico)
    model.module.resize_token_embeddings(len(model.tokenizer) + 8, mean_resizing=False)
    size, first = len(model.tokenizer) + 8, len(model.tokenizer)
    spare = matrices(model)
    new_tokens.extend(model, STRINGS)
    new_tokens.settle(model)
    for name, matrix in matrices(model).items():
        assert matrix.shape[0] == size and torch.equal(matrix[first + 2:], spare[name][first + 2:])


@pytest.mark.parametrize("method", ["lora", "full"])
def test_other_rows_stay_and_the_artifact_gives_the_same_model(base, make_ctx, method):
    step, artifact, inputs, ctx = fit(base, make_ctx, method)
    assert all(f.verdict in ("agrees", "not applicable") for f in step.receipts(inputs, artifact, ctx))
    loaded = add_tuned(load_base(base), open_artifact(artifact.folder))
    first, before = len(load_base(base).tokenizer), matrices(load_base(base))
    started = matrices(new_tokens.extend(load_base(base), STRINGS))
    for name, matrix in matrices(loaded).items():
        assert not torch.allclose(matrix[first:], started[name][first:], atol=1e-3), "the new rows moved"
        if method == "lora":
            assert torch.equal(matrix[:first], before[name]), "and no other row did, in any bit"
    assert torch.equal(tuned_logits(loaded), tuned_logits(add_tuned(load_base(base), open_artifact(artifact.folder))))
    width = loaded.width
    if method == "lora":
        rows = (artifact.folder / new_tokens.FILE).stat().st_size
        assert rows < 2 * len(STRINGS) * width * 4 + 1000 and artifact.meta["bytes"] < len(before["input"]) * width * 4
    else:
        assert not (artifact.folder / new_tokens.FILE).exists()
    assert artifact.meta["new_tokens"] == {"strings": list(STRINGS), "first": first}


def test_generation_says_the_new_token(pico, make_ctx):
    _, artifact, _, _ = fit(pico, make_ctx, "lora", length={"steps": 60}, learning_rate=1e-2)
    model = add_tuned(load_base(pico), open_artifact(artifact.folder))
    prompt = renderer(model, 128).prompt(question("q", "What is said 1?"))
    (made,) = generate({"policy": model}, [prompt], build("decoder", "greedy:max_new_tokens=8"), Rng(0))
    assert "zyxomma" in made.text and "<|tool|>" in made.text and made.stopped


def test_other_rows_have_no_gradient_and_no_optimizer_state(base):
    model = new_tokens.extend(load_base(base), STRINGS)
    new_tokens.train(model)
    trained = [n for n, p in model.module.named_parameters() if p.requires_grad]
    assert trained and all("parametrizations.weight.0.rows" in n for n in trained)
    first = len(model.tokenizer) - 2
    ids = torch.tensor([[5, first, 9, first + 1, 7]])
    model.module(input_ids=ids, labels=ids).loss.backward()
    tensors = [p for p in model.module.parameters() if p.grad is not None]
    assert {tuple(p.shape) for p in tensors} == {(2, model.width)} and all(p.grad.abs().sum() > 0 for p in tensors)


def test_the_gradient_of_the_new_rows_is_that_of_the_whole_matrix(base):
    """Oracle: the same rows of the gradient of a model whose matrices are trained whole."""
    model, whole = (new_tokens.extend(load_base(base), STRINGS) for _ in range(2))
    new_tokens.settle(whole)
    whole.module.requires_grad_(True)
    rows = new_tokens.train(model)
    first = len(model.tokenizer) - 2
    ids = torch.tensor([[5, first, 9, first + 1, 7]])
    losses = [m.module(input_ids=ids, labels=ids).loss for m in (model, whole)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)
    for loss in losses:
        loss.backward()
    theirs = [whole.module.get_input_embeddings().weight.grad[first:first + 2]]
    if len(rows) == 2:
        theirs.append(whole.module.get_output_embeddings().weight.grad[first:first + 2])
    for own, other in zip(rows, theirs, strict=True):
        assert torch.allclose(own.grad, other, atol=1e-7)


def test_a_full_model_reloads_by_transformers_alone(pico, make_ctx):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, artifact, _, _ = fit(pico, make_ctx, "full", length={"steps": 2})
    tokenizer = AutoTokenizer.from_pretrained(artifact.folder)
    module = AutoModelForCausalLM.from_pretrained(artifact.folder)
    ids = tokenizer("zyxomma <|tool|>", return_tensors="pt")["input_ids"]
    assert module(input_ids=ids).logits.shape[-1] == len(tokenizer) == module.config.vocab_size


def test_an_encoder_with_new_tokens(pico_encoder, make_ctx):
    from luthier.engine.rendering import Render
    from tests.contracts.workbench import task_for, training_data

    inputs = {"base": pico_encoder, "examples": training_data(make_ctx("data"))}
    step = Fit(tasks=(task_for("encoder"),), new_tokens=("language",), length={"steps": 3}, batch_rows=4)
    ctx = make_ctx("fit", inputs)
    artifact = step.run(inputs, ctx)
    assert all(f.verdict in ("agrees", "not applicable") for f in step.receipts(inputs, artifact, ctx))
    model = add_tuned(load_base(pico_encoder), artifact)
    ids = Render(model.tokenizer, "encoder", 64).text(question("q", "the language")).ids
    assert artifact.meta["new_tokens"]["first"] in ids


@pytest.mark.parametrize(("strings", "said"), [
    (("<eos>",), "'<eos>' is a token of pico already"), (("a", "a"), "given twice"), (("",), "is empty"),
])
def test_strings_that_can_not_be_new_are_refused(pico, strings, said):
    with pytest.raises(UserError, match=said):
        Fit(new_tokens=strings).check()
        new_tokens.extend(load_base(pico), strings)
