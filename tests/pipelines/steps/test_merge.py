"""merge as a step: the weights that the command leaves, rows as the file that a rule reads, heads kept or left out."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn, question
from luthier.core.files import read_json
from luthier.engine.models import folder_of
from luthier.engine.spectra import matrices
from luthier.engine.steps.fit import Fit
from luthier.pipelines.merging import merge
from tests.contracts.workbench import short_fit, training_data


@pytest.fixture
def two(pico, make_ctx):
    """A base, and two LoRAs of it."""
    inputs = {"base": pico, "examples": training_data(make_ctx("rows"))}
    return pico, [short_fit("decoder", method="lora:rank=2", learning_rate=rate).run(inputs, make_ctx(f"tuned{rate}", inputs))
                  for rate in (0.1, 0.05)]


def step(rule, base, tuned, ctx, files=None, **more):
    made = build("step", {"use": "merge", "rule": rule, "files": files or {}})
    made.check()
    inputs = {"base": base, **{f"t{n}": t for n, t in enumerate(tuned)}, **more}
    return made, inputs, made.run(inputs, ctx)


@pytest.mark.parametrize("rule", ["linear:weights=[1,3]", "task-arithmetic:scale=0.5", "dare:density=[0.5]"])
def test_the_step_leaves_what_the_command_leaves(rule, two, make_ctx, tmp_path):
    base, tuned = two
    ctx = make_ctx("step")
    ctx.rng = type(ctx.rng)(0).within("merge")
    made, inputs, got = step(rule, base, tuned, ctx)
    assert got.kind == "model" and all(f.verdict == "agrees" for f in made.receipts(inputs, got, ctx))
    out, _ = merge([str(t.folder) for t in tuned], rule, tmp_path / "out", base=str(folder_of(base)))
    one, other = (load_file(folder / "model.safetensors") for folder in (got.folder, out))
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)
    assert (got.folder / "licenses").exists() and not (got.folder / ".statistics").exists()


def test_factor_one_is_the_tuned_model_and_factor_zero_is_not(engine, two, make_ctx):
    base, (tuned, _) = two
    found = {}
    for factor in (0.0, 1.0):
        rule = {"use": "rescale-intruders", "factor": factor, "k": 4, "eps": 0.9}
        found[factor] = matrices(engine, step(rule, base, [tuned], make_ctx(f"ruled-{factor}"))[2])
    merged = matrices(engine, base, tuned)
    assert found[1.0].keys() == merged.keys()
    assert all(torch.allclose(found[1.0][n], merged[n], atol=1e-6) for n in merged)
    assert any(not torch.allclose(found[0.0][n], merged[n], atol=1e-6) for n in merged)


def test_rows_become_the_file_that_the_rule_reads(two, make_ctx):
    base, tuned = two
    texts = [Example(f"t{i}", (Turn("user", (Part("the module\nyields a value " * 8, name="text"),)),), task="text")
             for i in range(4)]
    asked = [question("a", "Who?", "I"), question("b", "What?", "it")]
    rows = write_examples(make_ctx("files").folder, {"texts": texts, "asked": asked})
    files = {"distill": "texts"}
    rule = {"use": "bitdelta", "steps": 1, "rows": 1, "tokens": 8}
    _, _, got = step(rule, base, tuned[:1], make_ctx("bits"), files, examples=rows)
    assert got.kind == "delta" and read_json(got.folder / "merge.json")["files"] == files
    ctx = make_ctx("again")
    ctx.rng = make_ctx("bits").rng
    again = step(rule, base, tuned[:1], ctx, files, examples=rows)[2]
    assert again.identity == got.identity  # no path of this run is in it
    rule = "antidote:ratio=0.5"
    _, _, got = step(rule, base, tuned[:1], make_ctx("antidote"), {"data": "asked"}, examples=rows)
    assert got.kind == "adapter" and any((t == 0).any() for t in load_file(got.folder / "adapter_model.safetensors").values())


def test_what_files_can_not_be_is_refused(two, make_ctx):
    base, tuned = two
    with pytest.raises(UserError, match="bitdelta has no field 'distil'. Did you mean 'distill'"):
        step("bitdelta", base, tuned[:1], make_ctx("a"), {"distil": "texts"})
    with pytest.raises(UserError, match="rule.distill is 'x.txt' already"):
        step("bitdelta:distill=x.txt", base, tuned[:1], make_ctx("b"), {"distill": "texts"})
    with pytest.raises(UserError, match="distill is to hold the subset 'texts' of the input examples, which is not there"):
        step("bitdelta", base, tuned[:1], make_ctx("c"), {"distill": "texts"})
    with pytest.raises(UserError, match="takes 2 models; found 1"):
        step("slerp", base, tuned[:1], make_ctx("d"))


def test_a_head_that_all_share_is_kept_and_others_are_refused(engine, pico_encoder, make_ctx):
    from luthier.engine.models import add_tuned

    rows = [Example(f"r{i}", (Turn("user", (Part(f"plot {i} is {kind}"),)),), task="classify", label=kind)
            for i, kind in enumerate(["dry", "wet"] * 4)]
    inputs = {"base": pico_encoder, "examples": write_examples(make_ctx("rows").folder, {"train": rows})}
    fit = Fit(tasks=[{"data": "examples.train", "objective": "classify", "head": "linear"}], method="full",
              length={"steps": 1}, learning_rate=0.01, dtype="float32", over_long="truncate")
    tuned = [fit.run(inputs, make_ctx(f"tuned{n}", inputs)) for n in range(2)]
    _, _, got = step("task-arithmetic:scale=0.5", pico_encoder, tuned[:1], make_ctx("kept"))
    model = add_tuned(engine.fresh(pico_encoder, torch.float32), got)
    kept = load_file(tuned[0].folder / "heads.safetensors")
    assert model.labels == {"examples.train": ["dry", "wet"]}
    assert all(torch.equal(t, kept[f"examples.train.{n}"]) for n, t in model.heads["examples.train"].state_dict().items())
    other = {n: 2 * t for n, t in kept.items()}
    from safetensors.torch import save_file

    save_file(other, tuned[1].folder / "heads.safetensors")
    with pytest.raises(UserError, match="Only a head that all models share is kept"):
        step("model-stock", pico_encoder, tuned, make_ctx("refused"))
