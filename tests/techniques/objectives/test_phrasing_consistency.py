"""phrasing-consistency against torch.distributions, plain prompt tuning, and rows that can't be used."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import yaml
from torch.distributions import Categorical, kl_divergence

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Dropped, question
from luthier.core.files import read_lines
from luthier.core.kinds import DroppedRow
from luthier.core.rng import Rng
from luthier.engine.forward import Forward
from luthier.engine.models import load_base
from luthier.engine.rendering import renderer
from luthier.techniques.objectives.phrasing_consistency import kl
from tests.contracts.workbench import encode, examples, make_batch, short_fit


def rows(count=4, same=False):
    return [replace(e, meta={"paraphrases": [e.part("question") if same else f"Say: {e.part('question')}"]})
            for e in examples(count)]


def said(model, spec, given):
    objective = build("objective", spec)
    batch = make_batch(encode(objective, model, given), model)
    run = Forward({"policy": model})
    return objective, batch, objective.loss(run, batch), run


@pytest.fixture
def moved(pico, make_ctx):
    """pico with a soft prompt, so that the whole-model path is taken."""
    return build("method", "prompt-tuning:tokens=3").prepare(load_base(pico), make_ctx("prompt"))


@pytest.mark.oracle(seed=163, clause=1, against="zero")
@pytest.mark.parametrize("match", ["logits", "hidden"])
@pytest.mark.parametrize("detach", ["true", "false"])
def test_identical_instructions_have_no_distance(match, detach, pico, moved):
    for model in (load_base(pico), moved):
        _, _, parts, _ = said(model, f"phrasing-consistency:match={match},detach_reference={detach}", rows(same=True))
        assert parts["consistency"].item() == pytest.approx(0, abs=1e-4) and parts["nll"].item() > 0
        _, _, parts, _ = said(model, f"phrasing-consistency:match={match},detach_reference={detach}", rows())
        assert parts["consistency"].item() > 1e-6


@pytest.mark.oracle(seed=163, clause=2, against="supervised tuning of the same prompt")
def test_without_the_match_it_is_plain_prompt_tuning(pico, make_ctx):
    curves, prompts = [], []
    for spec in ("supervised", "phrasing-consistency:lam=0"):
        ctx = make_ctx(f"rows-{spec[:4]}")
        inputs = {"base": pico, "examples": write_examples(ctx.folder, {"train": rows(8)})}
        fit = short_fit("decoder", method="prompt-tuning:tokens=3", length={"steps": 4},
                        tasks=({"data": "examples.train", "objective": spec},))
        folder = make_ctx(f"{spec[:4]}/tuned", inputs)
        tuned = fit.run(inputs, folder)
        curves.append([line["loss"] for line in read_lines(tuned.folder / "curve.jsonl") if "loss" in line])
        from safetensors.torch import load_file

        prompts.append(load_file(tuned.folder / "adapter_model.safetensors")["prompt_embeddings"])
    assert curves[0] == pytest.approx(curves[1], abs=1e-6) and len(curves[0]) >= 4
    assert torch.allclose(*prompts, atol=1e-6)


@pytest.mark.oracle(seed=163, clause=3, against="torch.distributions")
def test_the_divergence_is_that_of_torch_distributions():
    draw = torch.Generator().manual_seed(0)
    p, q = (3 * torch.randn(6, 11, generator=draw) for _ in range(2))
    wanted = kl_divergence(Categorical(logits=p), Categorical(logits=q))
    assert torch.allclose(kl(p, q), wanted, atol=1e-5)


@pytest.mark.oracle(seed=163, clause=3, against="torch.distributions on the model's own scores")
@pytest.mark.parametrize("detach", ["true", "false"])
def test_the_part_is_the_sum_over_learned_positions(detach, pico, moved):
    for model in (load_base(pico), moved):
        objective, batch, parts, _ = said(model, f"phrasing-consistency:detach_reference={detach},lam=0.3", rows())
        told = []
        for side in ("input", "paraphrase"):
            scores = []
            for ids, mask, targets in zip(batch[side].ids, batch[side].mask, batch[side].targets, strict=True):
                n = int(mask.sum())
                with torch.no_grad():
                    logits = model.module(input_ids=ids[None, :n], attention_mask=mask[None, :n]).logits[0, -n:]
                scores.append(logits[:-1][targets[1:n]])
            told.append(torch.cat(scores))
        wanted = kl_divergence(Categorical(logits=told[0]), Categorical(logits=told[1])).sum()
        assert parts["consistency"].item() == pytest.approx(float(wanted), rel=1e-3, abs=1e-5)
        assert objective.count(batch) == {"nll": len(told[0]), "consistency": len(told[0])}
        assert objective.coefficients() == {"nll": 0.7, "consistency": 0.3}


@pytest.mark.parametrize(("detach", "flows"), [("true", False), ("false", True)])
def test_both_sides_carry_gradients_unless_one_is_detached(detach, flows, pico):
    """In an objective of the likeness alone, the reference's own input moves only where it is not detached."""
    model = load_base(pico)
    table = model.module.get_input_embeddings().weight.requires_grad_(True)
    given = [replace(question("q", "module", "a class"), meta={"paraphrases": ["object"]})]
    _, batch, parts, _ = said(model, f"phrasing-consistency:detach_reference={detach}", given)
    parts["consistency"].backward()
    only = set(batch["input"].ids[0].tolist()) - set(batch["paraphrase"].ids[0].tolist())
    tied = model.module.config.tie_word_embeddings
    moved = any(bool(table.grad[i].abs().sum() > 0) for i in only)
    assert moved == flows or tied


def test_rows_that_can_not_be_matched_are_dropped_by_name(pico):
    objective, render = build("objective", "phrasing-consistency"), renderer(load_base(pico))
    with pytest.raises(DroppedRow) as caught:
        objective.encode(replace(examples(1)[0], meta={}), render, Rng(0))
    assert caught.value.dropped.reason == "no paraphrases" and "rephrase-instructions" in caught.value.dropped.detail
    assert len(objective.rows(rows(1)[0], render, Rng(0))) == 1


def applied(spec, ctx, given):
    return list(build("data_step", spec).apply(iter(given), ctx))


@pytest.mark.oracle(seed=163, clause=2, against="templates by hand")
def test_paraphrases_come_from_the_bank_without_its_reference(make_ctx, tmp_path):
    path = tmp_path / "bank.yaml"
    path.write_text(yaml.safe_dump(["Judge: {input}", "{input} Good?", "Say of {input}: good or bad", "Is {input} good?"]))
    given = [question(f"q{n}", f"film {n}", "good") for n in range(12)]
    found = applied(f"rephrase-instructions:bank={path},count=2", make_ctx("m"), given)
    assert [r.part("question") for r in found] == [f"Judge: film {n}" for n in range(12)]
    legal = [{f"film {n} Good?", f"Say of film {n}: good or bad", f"Is film {n} good?"} for n in range(12)]
    assert all(set(r.meta["paraphrases"]) < legal[n] and len(r.meta["paraphrases"]) == 2 for n, r in enumerate(found))
    assert len({tuple(t.replace(f"film {n}", "") for t in r.meta["paraphrases"]) for n, r in enumerate(found)}) > 1
    apart = applied(f"rephrase-instructions:bank={path},count=2,separate=true", make_ctx("m"), given[:2])
    assert [r.id for r in apart] == ["q0", "q0~1", "q0~2", "q1", "q1~1", "q1~2"] and apart[1].answer == "good"
    plain = applied("rephrase-instructions", make_ctx("m"), given[:1])
    assert plain[0].part("question") == "film 0" and len(plain[0].meta["paraphrases"]) == 10
    assert isinstance(applied("rephrase-instructions", make_ctx("m"), [question("e", " ")])[0], Dropped)


@pytest.mark.parametrize(("bank", "said"), [
    (["{input}"], "two templates or more"), (["{input}", "no slot"], "has no {input}"),
    (["{input}", "{input}"], "stands there twice"),
])
def test_banks_that_can_not_be_used_are_refused(bank, said, make_ctx, tmp_path):
    (tmp_path / "bank.yaml").write_text(yaml.safe_dump(bank))
    with pytest.raises(UserError, match=said):
        applied(f"rephrase-instructions:bank={tmp_path / 'bank.yaml'}", make_ctx("m"), examples(1))
    with pytest.raises(UserError, match="needs a writer"):
        applied("rephrase-instructions:by=model", make_ctx("m"), examples(1))
