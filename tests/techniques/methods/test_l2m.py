"""L2M against PEFT's LoRA and IA3, the base, and rows one by one; what a second task leaves alone; its loss by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.rng import Rng
from luthier.engine import routing
from luthier.engine.forward import Forward
from luthier.engine.models import add_tuned, load_base
from luthier.engine.steps.fit import Fit
from luthier.techniques.methods._pooled import Pooled
from tests.contracts.workbench import encode, examples, make_batch, make_loop, short_fit, training_data, tuned_logits

IDS = torch.tensor([[7, 8, 9, 10, 11, 12, 13, 14, 15], [40, 41, 42, 43, 44, 45, 46, 47, 48],
                    [7, 41, 9, 43, 11, 45, 13, 47, 15]])


def pooled(base, **options):
    torch.manual_seed(0)
    return build("method", {"use": "l2m", "pool_size": 3, **options}).prepare(load_base(base), None)


def layers(model):
    return {n.removeprefix("base_model.model."): m for n, m in model.module.named_modules() if isinstance(m, Pooled)}


def noisy(model, seed=1):
    """All modulators away from where they began, and each key an embedding of its own row of IDS."""
    generator = torch.Generator().manual_seed(seed)
    keys, embed = routing.chooser(model), model.module.get_input_embeddings().weight
    with torch.no_grad():
        for layer in layers(model).values():
            for p in layer.pooled_layers.parameters():
                p.add_(0.2 * torch.randn(p.shape, generator=generator))
        for key, ids in zip(keys.entries, IDS, strict=False):
            key.copy_(embed[ids].mean(0))
    return model


def said(model, ids=IDS, mask=None):
    model.module.eval()
    with torch.no_grad():
        return model.module(input_ids=ids, attention_mask=torch.ones_like(ids) if mask is None else mask).logits


def of_peft(base, model):
    """PEFT's own adapter with the values of the pool's only entry, by (parameter here, parameter there)."""
    lora = next(iter(layers(model).values())).pooled_layers["default"].lora
    names = list(layers(model))
    config = LoraConfig(r=8, lora_alpha=16, target_modules=names) if lora else \
        IA3Config(target_modules=names, feedforward_modules=[n for n in names if n.endswith("down_proj")])
    theirs = get_peft_model(load_base(base).module, config)
    found = []
    for name, module in theirs.named_modules():
        own = layers(model).get(name.removeprefix("base_model.model."))
        if own is not None and hasattr(module, "base_layer"):
            part = own.pooled_layers["default"]
            found += [(part.down[0], module.lora_A["default"].weight), (part.up[0], module.lora_B["default"].weight)] if lora \
                else [(part.vectors[0], module.ia3_l["default"])]
    with torch.no_grad():
        for own, other in found:
            other.copy_(own.view(other.shape))
    return theirs.eval(), found


@pytest.mark.oracle(seed=129, clause=1, against="peft: LoRA and IA3 of the same values, logits and gradients")
@pytest.mark.parametrize("modulator", ["lora", "ia3"])
def test_a_pool_of_one_is_that_modulator(modulator, pico):
    model = noisy(pooled(pico, pool_size=1, modulator=modulator))
    assert {n.rsplit(".", 1)[-1] for n in layers(model)} == (
        {"q_proj", "v_proj", "up_proj"} if modulator == "lora" else {"k_proj", "v_proj", "down_proj"})
    theirs, pairs = of_peft(pico, model)
    assert len(pairs) == len(layers(model)) * (2 if modulator == "lora" else 1)
    wanted = theirs(input_ids=IDS).logits
    found = model.module.eval()(input_ids=IDS).logits
    assert (found - wanted).abs().max() <= 1e-6 * max(1.0, float(wanted.detach().abs().max()))
    assert (wanted - load_base(pico).module(input_ids=IDS).logits).abs().max() > 0.05
    for logits in (found, wanted):
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()).backward()
    for own, other in pairs:
        assert (own.grad - other.grad.view(own.shape)).abs().max() <= 1e-6 * max(1.0, float(other.grad.abs().max()))


@pytest.mark.oracle(seed=129, clause=2, against="the base itself, to the bit for LoRA and for IA3")
@pytest.mark.parametrize("modulator", ["lora", "ia3"])
def test_a_fresh_pool_is_the_base(modulator, pico):
    base = load_base(pico).module
    with torch.no_grad():
        wanted = base(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    assert torch.equal(said(pooled(pico, modulator=modulator)), wanted)
    moved = noisy(pooled(pico, modulator=modulator))
    assert (said(moved) - wanted).abs().max() > 0.05
    with moved.module.disable_adapter():
        assert torch.equal(said(moved), wanted)


@pytest.mark.oracle(seed=129, clause=3, against="rows one by one, each with a pool of its entry alone")
@pytest.mark.parametrize("modulator", ["lora", "ia3"])
def test_rows_together_are_rows_alone(modulator, pico):
    model = noisy(pooled(pico, modulator=modulator))
    together = said(model)
    picked = routing.chooser(model).picked
    assert picked.at.tolist() == [0, 1, 2]  # each row took the entry of its key
    for i in range(3):
        assert (said(model, IDS[i:i + 1]) - together[i]).abs().max() <= 1e-5
        single = pooled(pico, pool_size=1, modulator=modulator)
        with torch.no_grad():
            for own, other in zip(layers(single).values(), layers(model).values(), strict=True):
                one, many = own.pooled_layers["default"], other.pooled_layers["default"]
                for name in ("down", "up") if one.lora else ("vectors",):
                    getattr(one, name)[0].copy_(getattr(many, name)[i])
        assert (said(single, IDS[i:i + 1]) - together[i]).abs().max() <= 1e-5
    # Padding is not read, on either side, nor where one row takes no modulator.
    ids, mask = torch.nn.functional.pad(IDS, (2, 0)), torch.nn.functional.pad(torch.ones_like(IDS), (2, 0))
    model.module(input_ids=ids, attention_mask=mask)
    assert routing.chooser(model).picked.at.tolist() == [0, 1, 2]


@pytest.mark.oracle(seed=129, clause=3, against="the base for rows of reserved entries, to the bit; cosines by hand")
def test_the_entry_is_the_key_with_the_largest_cosine_and_reserved_ones_modulate_nothing(pico):
    model = noisy(pooled(pico, pool_size=3, reserved=1))
    found, base = said(model), load_base(pico).module
    with torch.no_grad():
        wanted = base(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    assert torch.equal(found[0], wanted[0]) and (found[1] - wanted[1]).abs().max() > 0.05
    keys, embed = routing.chooser(model), base.get_input_embeddings().weight
    query = torch.stack([sum(embed[i] for i in row.tolist()) / len(row) for row in IDS])
    assert torch.allclose(keys.query(IDS, None), query, atol=1e-6)
    with torch.no_grad():
        keys.entries[2].mul_(50)  # a long key is no nearer one
    cosine = [[float((q @ k / q.norm() / k.norm()).detach()) for k in keys.entries] for q in query]
    assert keys.choose(query).tolist() == [max(range(3), key=row.__getitem__) for row in cosine]


@pytest.mark.oracle(seed=129, clause=4, against="the outputs before the second task, to the bit, under AdamW with weight decay")
def test_a_second_task_leaves_the_first_ones_entries_alone(pico, make_ctx):
    first, second = examples(8)[::2], examples(8)[1::2]
    data = write_examples(make_ctx("examples").folder, {"first": first, "second": second})
    def fit(subset, **rest):
        return short_fit("decoder", method={"use": "l2m", "pool_size": 4, **rest}, optimizer="adamw:weight_decay=0.1",
                         tasks=({"data": f"examples.{subset}", "objective": "l2m:pull=1"},))
    inputs = {"base": pico, "examples": data}
    one = fit("first").run(inputs, make_ctx("one", inputs))
    model = add_tuned(load_base(pico), one)
    used = routing.chooser(model).counts.nonzero().flatten().tolist()
    batch = make_batch(encode(build("objective", "supervised"), model, first), model)
    with torch.no_grad(), routing.taking(model, used[0]):
        before = Forward({"policy": model})("policy", batch["input"]).logits()
    inputs = {**inputs, "begin": one}
    two = fit("second").run(inputs, make_ctx("two", inputs))
    after = add_tuned(load_base(pico), two)
    keys, was = routing.chooser(after), routing.chooser(model)
    taken = [j for j in range(4) if keys.counts[j] > was.counts[j]]
    assert taken and not set(taken) & set(used)
    with torch.no_grad(), routing.taking(after, used[0]):
        assert torch.equal(Forward({"policy": after})("policy", batch["input"]).logits(), before)
    for j in range(4):
        moved = j in taken
        assert torch.equal(keys.entries[j], was.entries[j]) is not moved
        for own, other in zip(layers(after).values(), layers(model).values(), strict=True):
            pair = own.pooled_layers["default"].up[j], other.pooled_layers["default"].up[j]
            assert torch.equal(*pair) is not moved
    assert int(keys.counts.sum()) == 12 * 8 and int(was.counts.sum()) == 12 * 4  # steps x rows of both tasks


@pytest.mark.oracle(seed=129, clause=4, against="closed form: the counts' penalty")
def test_shares_count_against_entries_while_training_only(pico):
    model = pooled(pico, pool_size=3)
    keys = routing.chooser(model)
    query = keys.query(IDS, None)
    plain = keys.choose(query).tolist()
    keys.penalise()
    assert keys.inverse is None  # nothing is used yet
    keys.counts.copy_(torch.tensor([30, 10, 0]))
    keys.penalise()
    inverse = [1 / (f + 1e-6) for f in (0.75, 0.25, 0.0)]
    assert torch.allclose(keys.inverse, torch.tensor([x / sum(inverse) for x in inverse]), rtol=1e-5)
    keys.train()
    assert keys.choose(query).tolist() == [2, 2, 2]
    keys.counts.copy_(torch.tensor([30, 15, 15]))
    keys.penalise()
    weight = [1 / (f + 1e-6) for f in (0.5, 0.25, 0.25)]
    cosine = torch.nn.functional.cosine_similarity(query[:, None], torch.stack(list(keys.entries))[None], dim=-1)
    scores = [[(c + 1) / 2 * w for c, w in zip(row, weight, strict=True)] for row in cosine.tolist()]
    wanted = [max(range(3), key=row.__getitem__) for row in scores]
    assert keys.choose(query).tolist() == wanted
    assert keys.eval().choose(query).tolist() == plain


@pytest.mark.oracle(seed=129, clause=1, against="closed form: cross-entropy - pull x mean cosine, and its gradient by autograd")
def test_the_loss_pulls_the_key_that_was_taken(pico, make_ctx):
    model, objective = noisy(pooled(pico)), build("objective", "l2m:pull=0.7")
    features = encode(objective, model, examples(6))
    keys, embed = routing.chooser(model), model.module.get_input_embeddings().weight
    prompts = [embed[row["input"].ids[:row["input"].targets.index(True)]].mean(0) for row in features]
    with torch.no_grad():
        keys.entries[2].copy_(-torch.stack(prompts).mean(0))  # nobody's
    nll = learned = 0.0
    for row, prompt in zip(features, prompts, strict=True):
        tokens = row["input"]
        with routing.taking(model, int(keys.choose(prompt[None]))):
            scores = said(model, torch.tensor([tokens.ids]))[0].log_softmax(-1)
        nll -= sum(float(scores[i - 1, t]) for i, t in enumerate(tokens.ids) if tokens.targets[i])
        learned += sum(tokens.targets)
    taken = keys.choose(torch.stack(prompts)).tolist()
    likes = torch.stack([torch.cosine_similarity(q, keys.entries[j], dim=0) for q, j in zip(prompts, taken, strict=True)])
    wanted = torch.autograd.grad(-0.7 * likes.mean(), [keys.entries[j] for j in sorted(set(taken))])
    loop = make_loop(model, objective, features, make_ctx("fit"), batch_rows=6, micro_rows=2)
    found = loop.closure([make_batch(features, model)])
    assert found["nll"] == pytest.approx(nll / learned, rel=1e-5)
    assert found["pull"] == pytest.approx(-0.7 * float(likes.mean()), rel=1e-5)
    for j, gradient in zip(sorted(set(taken)), wanted, strict=True):
        assert torch.allclose(keys.entries[j].grad, gradient, atol=1e-6)
    assert keys.entries[2].grad is None and 2 not in taken
    assert all(layer.pooled_layers["default"].up[2].grad is None for layer in layers(model).values())


# --- in a run ------------------------------------------------------------------------------------------------------

def test_answers_are_written_with_the_entry_of_their_prompt(bases):
    from luthier.engine.generation import generate

    for base in (bases["decoder"], bases["encoder-decoder"]):
        model = noisy(pooled(base), seed=3)
        model.module.eval()
        prompts = [row[:6 + i] for i, row in enumerate(IDS.tolist())]
        together = [g.ids for g in generate({"policy": model}, prompts, build("decoder", "greedy:max_new_tokens=5"), Rng(0))]
        alone = [generate({"policy": model}, [p], build("decoder", "greedy:max_new_tokens=5"), Rng(0))[0].ids for p in prompts]
        assert together == alone


def test_a_copy_chooses_for_itself(pico):
    model = noisy(pooled(pico))
    other = copy.deepcopy(model.module)
    wanted = said(model)
    with torch.no_grad():
        for layer in other.modules():
            if isinstance(layer, Pooled):
                assert layer.keys is not routing.chooser(model)
        assert torch.equal(other.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits, wanted)


def test_an_entry_may_be_given_and_more_tasks_than_entries_are_told(pico, make_ctx):
    inputs, told = {"base": pico, "examples": training_data(make_ctx("examples"))}, []
    task = ({"data": "examples.train", "objective": "l2m"},)
    fit = short_fit("decoder", method="l2m:pool_size=2,entry=1", tasks=task, length={"steps": 2})
    one = fit.run(inputs, make_ctx("one", inputs))
    assert routing.chooser(add_tuned(load_base(pico), one)).counts.tolist() == [0, 16]
    both = (*task, {"data": "examples.dev", "objective": "l2m"})
    fit = short_fit("decoder", method="l2m:pool_size=3,entry=1", tasks=both, length={"steps": 2})
    two = fit.run(inputs, make_ctx("two", inputs))
    assert routing.chooser(add_tuned(load_base(pico), two)).counts.tolist() == [0, 16, 6]
    with pytest.raises(UserError, match="entry = 1 and 2 tasks go beyond pool_size = 2"):
        short_fit("decoder", method="l2m:pool_size=2,entry=1", tasks=both).run(inputs, make_ctx("beyond", inputs))
    for number, wanted in ((2, False), (3, True)):
        inputs = {**inputs, "begin": one}
        fit = short_fit("decoder", method="l2m:pool_size=2", tasks=task, length={"steps": 2})
        one = fit.run(inputs, make_ctx(f"fit{number}", inputs, log=told.append))
        assert any("pool_size is below the number of tasks" in line for line in told) is wanted


def test_keys_may_learn_at_a_rate_of_their_own(pico, make_ctx):
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    task = ({"data": "examples.train", "objective": "l2m"},)
    moved = []
    for number, rate in enumerate(("", ",key_rate=0.001")):
        method = f"l2m:pool_size=1{rate}"
        keys, ups = [], []
        given = dict(inputs)
        for steps in (0, 1):
            fit = short_fit("decoder", method=method, tasks=task, length={"steps": steps})
            given["begin"] = fit.run(given, make_ctx(f"fit{number}{steps}", given))
            model = add_tuned(load_base(pico), given["begin"])
            keys.append(routing.chooser(model).entries[0])
            ups.append(next(iter(layers(model).values())).pooled_layers["default"].up[0])
        moved.append([float((a - b).abs().max()) for a, b in (keys, ups)])
    # The first step of Adam is as long as its rate.
    assert moved[0] == pytest.approx([1e-2, 1e-2], rel=1e-2) and moved[1] == pytest.approx([1e-3, 1e-2], rel=1e-2)


def test_a_lora_can_be_gone_on_with_too(pico, make_ctx):
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    one = short_fit("decoder", method="lora:rank=2", length={"steps": 3}).run(inputs, make_ctx("one", inputs))
    fit = short_fit("decoder", method="lora:rank=2", length={"steps": 0})
    still = fit.run({**inputs, "begin": one}, make_ctx("two", inputs))
    assert torch.equal(tuned_logits(add_tuned(load_base(pico), still)), tuned_logits(add_tuned(load_base(pico), one)))
    with pytest.raises(UserError, match="can't be gone on with: its r is 2, here it is 4"):
        short_fit("decoder", method="lora:rank=4").run({**inputs, "begin": one}, make_ctx("three", inputs))
    with pytest.raises(UserError, match="can't be gone on with: its peft_type is LORA"):
        short_fit("decoder", method="l2m").run({**inputs, "begin": one}, make_ctx("four", inputs))


# --- what can't be -------------------------------------------------------------------------------------------------

def test_what_makes_no_sense_is_refused(pico, make_ctx):
    model = noisy(pooled(pico))
    with pytest.raises(UserError, match="row 1 of a batch of 3 is nothing but padding, and has no query"):
        said(model, mask=torch.ones_like(IDS) * torch.tensor([[1], [0], [1]]))
    with pytest.raises(UserError, match="can't be merged into the base's weights: each input takes another one"):
        model.module.merge_and_unload()
    with pytest.raises(UserError, match=r"no linear layer is called nowhere. This model has: .*q_proj"):
        pooled(pico, target="nowhere")
    with pytest.raises(UserError, match="entry = 3, and the pool has 3; legal are 0 to 2"):
        pooled(pico, entry=3)
    with pytest.raises(UserError, match="reserved = 3 of pool_size = 3 leaves no entry that modulates"):
        pooled(pico, reserved=3)
    with pytest.raises(UserError, match="2 entries are given to 3 rows"), routing.taking(model, [0, 1]):
        said(model)
    bare = load_base(pico)
    with pytest.raises(UserError, match="has no pool whose entries rows could take"), routing.taking(bare, 0):
        pass
    inputs = {"base": pico, "examples": training_data(make_ctx("examples"))}
    with pytest.raises(UserError, match="pulls the keys of a pool, and the method has none. Use --method l2m"):
        Fit(tasks=({"data": "examples.train", "objective": "l2m"},), length={"steps": 1}).run(inputs, make_ctx("fit", inputs))
