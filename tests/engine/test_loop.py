"""The loop by hand: accumulation, clipping, schedules, short formats, checkpoints that are whole or absent."""

from __future__ import annotations

import json

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import LuthierError, UserError
from luthier.core.kinds import Tokens
from luthier.engine.batches import collate, tokens_in
from luthier.engine.checkpoints import read_checkpoint
from luthier.engine.masters import Masters
from luthier.engine.models import load_base
from luthier.engine.weights import pack, unpack
from tests.contracts.workbench import encode, examples, make_loop


@pytest.fixture
def parts(pico):
    """A model that trains one matrix, and encoded rows."""
    model = load_base(pico)
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad_("layers.1.mlp" in name)
    objective = build("objective", "supervised")
    return model, objective, encode(objective, model, examples(8))


def weights(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.module.parameters() if p.requires_grad]


def test_micro_batches_change_nothing_but_memory(parts, make_ctx, pico):
    found = []
    for micro in (4, 1, 3):
        model, objective, features = load_base(pico), parts[1], parts[2]
        for (_, p), (_, q) in zip(model.module.named_parameters(), parts[0].module.named_parameters(), strict=True):
            p.requires_grad_(q.requires_grad)
        ctx = make_ctx(f"{micro}/loop")
        make_loop(model, objective, features, ctx, micro_rows=micro, optimizer="adamw:epsilon=1").train()
        found.append(weights(model))
    for other in found[1:]:
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found[0], other, strict=True))


def test_gradients_are_clipped_to_the_norm(parts, make_ctx):
    seen = []

    class Look:
        def __getattr__(self, name):
            return {"on_batch": lambda b: [b], "units": lambda b: {}, "on_loss": lambda r, b, p: p,
                    "state_dict": dict}.get(name, self.note)

        def note(self, *args):
            model = parts[0].module
            seen.append(float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())
                        if any(p.grad is not None for p in model.parameters()) else None)

    model, objective, features = parts
    before = weights(model)
    loop = make_loop(model, objective, features, make_ctx("clip"), steps=1, clip=1e-3, hooks=[Look()])
    loop.torch_optimizer = torch.optim.SGD(loop.masters.groups, lr=1.0)
    loop.rates = [1.0]
    loop.train()
    moved = torch.stack([(a - b).norm() for a, b in zip(weights(model), before, strict=True)]).norm()
    assert float(moved) == pytest.approx(1e-3, rel=1e-3) and seen[0] > 1e-3


def test_a_small_update_of_a_short_format_is_not_lost():
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    masters = Masters([{"params": [weight], "name": "x"}])
    optimizer = torch.optim.SGD(masters.groups, lr=1.0)
    for _ in range(64):
        weight.grad = torch.full_like(weight, -1e-4)
        masters.collect()
        optimizer.step()
        optimizer.zero_grad()
        masters.spread()
    assert masters.tensors()[0].mean().item() == pytest.approx(1.0064, abs=1e-4)
    assert weight.mean().item() == pytest.approx(1.0078, abs=1e-3), "the nearest bfloat16 of what was summed"


def test_a_loop_goes_on_from_its_checkpoint(parts, make_ctx, pico):
    model, objective, features = parts
    whole = make_loop(model, objective, features, make_ctx("whole/loop"), steps=6, optimizer="adamw")
    whole.train()
    expected = weights(model)
    state = {n: q.requires_grad for n, q in model.module.named_parameters()}
    for steps in (2, 4, 6):
        model = load_base(pico)
        for name, parameter in model.module.named_parameters():
            parameter.requires_grad_(state[name])
        loop = make_loop(model, objective, features, make_ctx("parts/loop"), steps=6)
        loop.plan = type(loop.plan)(**{**loop.plan.__dict__, "steps": steps})
        loop.train()
        assert loop.clock.step == steps
    assert all(torch.equal(a, b) for a, b in zip(weights(model), expected, strict=True))
    assert [r["loss"] for r in loop.curve] == [r["loss"] for r in whole.curve]
    assert [p.name for p in (make_ctx("parts/loop").folder / "checkpoints").iterdir()] == ["step-0000006"]


def test_a_half_written_checkpoint_is_not_read(parts, make_ctx):
    model, objective, features = parts
    ctx = make_ctx("half")
    make_loop(model, objective, features, ctx, steps=2).train()
    part = ctx.folder / "checkpoints/part"
    part.mkdir()
    (part / "state.json").write_text("{")
    loop = make_loop(model, objective, features, make_ctx("half"), steps=3)
    loop.train()
    assert loop.clock.step == 3 and read_checkpoint(ctx.folder / "checkpoints/step-0000003")["clock"]["step"] == 3
    assert len(list((ctx.folder / "checkpoints").iterdir())) == 1


def test_nothing_to_train_on_is_refused(parts, make_ctx):
    with pytest.raises(UserError, match="nothing to train on"):
        make_loop(parts[0], parts[1], [], make_ctx("none"))


def test_a_loss_that_is_no_number_names_its_rows(parts, make_ctx):
    model, objective, features = parts
    with torch.no_grad():
        next(p for p in model.module.parameters() if p.requires_grad).fill_(float("inf"))
    with pytest.raises(LuthierError, match=r"The loss of step 1 is nan: rows row\d, row\d"):
        make_loop(model, objective, features, make_ctx("nan")).train()


# --- state as files ------------------------------------------------------------------------------------------------

def test_state_survives_json_and_safetensors():
    tree = {"a": [1, 2.5, None, True, "x", (torch.arange(3), torch.tensor(1.5))], 3: {"b": {}, 4: torch.ones(2).bool()},
            "inf": float("inf"), "view": torch.arange(6).view(2, 3).T}
    tensors: dict = {}
    skeleton = json.loads(json.dumps(pack(tree, tensors)))
    back = unpack(skeleton, tensors)
    assert list(back) == ["a", 3, "inf", "view"] and back["a"][:5] == [1, 2.5, None, True, "x"]
    assert torch.equal(back["a"][5][0], torch.arange(3)) and torch.equal(back["view"], tree["view"])
    assert torch.equal(back[3][4], tree[3][4]) and back[3]["b"] == {} and back["inf"] == float("inf")


def test_keys_that_look_alike_keep_their_own_tensors():
    tree = {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}, 1: torch.full((1,), 2.0), "1": torch.full((1,), 3.0)}
    tensors: dict = {}
    back = unpack(json.loads(json.dumps(pack(tree, tensors))), tensors)
    assert [float(back["a/b"]), float(back["a"]["b"]), float(back[1]), float(back["1"])] == [0, 1, 2, 3]


def test_state_that_can_not_be_kept_is_named():
    with pytest.raises(TypeError, match="state at /hooks/0/x is a set; a checkpoint holds tensors"):
        pack({"hooks": [{"x": {1, 2}}]}, {})


# --- batches -------------------------------------------------------------------------------------------------------

def test_rows_become_padded_tensors():
    rows = [{"input": Tokens([5, 6], [False, True]), "label": 1, "weight": 0.5},
            {"input": Tokens([7, 8, 9], [False, True, True]), "label": 0, "weight": 1.5}]
    batch = collate(rows, ["a", "b"], pad=3)
    tokens = batch["input"]
    assert tokens.ids.tolist() == [[5, 6, 3], [7, 8, 9]] and tokens.mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert tokens.targets.tolist() == [[False, True, False], [False, True, True]]
    assert (len(tokens), tokens.learned, tokens.tokens, tokens_in(batch)) == (2, 3, 5, 5)
    assert batch["ids"] == ["a", "b"]
    assert batch["label"].dtype == torch.long and batch["weight"].tolist() == [0.5, 1.5]


def test_an_encoder_decoder_row_has_two_lengths():
    rows = [{"input": Tokens([5], [False, True, True], [0, 6, 2])}, {"input": Tokens([5, 6], [False, True], [0, 2])}]
    tokens = collate(rows, ["a", "b"], pad=0)["input"]
    assert tokens.ids.shape == (2, 2) and tokens.decoder_ids.tolist() == [[0, 6, 2], [0, 2, 0]]
    assert tokens.decoder_mask.tolist() == [[1, 1, 1], [1, 1, 0]] and tokens.targets.tolist()[1] == [False, True, False]
    assert tokens.tokens == 8
