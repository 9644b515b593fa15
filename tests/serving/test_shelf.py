"""Models that share weights answer as if each had been loaded alone."""

from __future__ import annotations

import pytest
import torch

from luthier.core.errors import UserError
from luthier.core.run import Run
from luthier.engine.models import add_tuned, load_base
from luthier.serving.limits import Closed
from luthier.serving.served import Catalogue
from luthier.serving.shelf import Shelf, twin

IDS = torch.tensor([[1, 40, 41, 42, 43]])


def logits(model):
    with torch.no_grad():
        return model.module(IDS).logits


@pytest.fixture
def shelf():
    made = Shelf(exact=True)
    yield made
    made.desk.close()


def test_adapters_and_base_give_what_each_gives_alone(shelf, runs):
    base = runs[0].step("base")
    tuned = [run.step("tuned") for run in runs]
    together = [shelf.load(base), *(shelf.load(base, t) for t in tuned)]
    alone = [load_base(base), *(add_tuned(load_base(base), t) for t in tuned)]
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(logits(one), logits(other)) and one.identity == other.identity
    plain, one, other = map(logits, together)
    assert not torch.equal(one, other) and not torch.equal(plain, one)


@pytest.mark.parametrize("entries", [False, True], ids=["whole", "sparse"])
def test_a_delta_writes_over_weights_of_its_own(engine, pico, shelf, make_ctx, entries):
    from luthier.engine.sparse import SparseDelta
    from luthier.engine.weights import save

    changed = load_base(pico)
    name, weight = next((n, p) for n, p in changed.module.named_parameters() if n.endswith("norm.weight"))
    weight.requires_grad_(True)
    began = weight.detach().clone()
    weight.data[::3] *= 1.5
    if entries:
        changed.sparse = SparseDelta.between({name: began}, {name: weight}, {name: weight != began})
    folder = make_ctx("delta").folder
    delta = save(changed, "delta", folder, {}, base={"identity": pico.identity, "name": "pico", "step": "base"})
    plain = shelf.load(pico)
    before = logits(plain)
    tuned = shelf.load(pico, delta)
    assert torch.equal(logits(plain), before), "the base's own weights are as they were"
    assert torch.equal(logits(tuned), logits(changed)) and not torch.equal(logits(tuned), before)
    mine, theirs = dict(tuned.module.named_parameters()), dict(plain.module.named_parameters())
    assert [n for n in mine if mine[n].data_ptr() != theirs[n].data_ptr()] == [name]


def test_a_twin_has_modules_of_its_own_and_the_same_weights(pico):
    one = load_base(pico)
    two = twin(one)
    assert {id(p) for p in one.module.parameters()} == {id(p) for p in two.module.parameters()}
    assert not {id(m) for m in one.module.modules()} & {id(m) for m in two.module.modules()}
    assert torch.equal(logits(one), logits(two))


def test_reordered_weights_are_shared_too(pico, runs):
    shelf = Shelf()
    shelf.decisions.update(bfloat16_speedup=2.0, reordered_speedup=2.0)
    try:
        models = [shelf.load(pico), *(shelf.load(pico, run.step("tuned")) for run in runs)]
    finally:
        shelf.desk.close()
    quick = [{id(m) for m in model.module.modules() if type(m).__name__ == "QuickLinear"} for model in models]
    assert quick[0] and all(q <= quick[0] for q in quick[1:]), "layers without an adapter are the very same"
    alone = Shelf()
    alone.decisions.update(bfloat16_speedup=2.0, reordered_speedup=2.0)
    try:
        assert torch.equal(logits(alone.load(pico, runs[1].step("tuned"))), logits(models[2]))
    finally:
        alone.desk.close()


def test_after_the_end_nothing_is_taken(pico, pico_encoder):
    shelf = Shelf(exact=True)
    model, encoder = shelf.load(pico), shelf.load(pico_encoder)
    shelf.desk.close()
    with pytest.raises(Closed):
        shelf.generate(model, [[1, 5]], "greedy:max_new_tokens=2")
    with pytest.raises(Closed):
        shelf.embed(encoder, ["a"])


def test_runs_that_computed_in_different_ways_are_not_served_together(runs, monkeypatch):
    record = Run.record.fget
    monkeypatch.setattr(Run, "record", property(lambda self: {
        **record(self), "decisions": {"exact": self.folder.name == "run3", "bfloat16_speedup": 2.0}}))
    with pytest.raises(UserError, match="'run3' and 'run4' computed with numbers of different kinds"):
        Catalogue([run.folder for run in runs])
