"""The fused vocabulary functions against full scores in float64, and against other libraries' formulas written out."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples_of
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from luthier.core.errors import LuthierError
from luthier.engine import compiling, fused, fused_kernels
from luthier.engine.fused import Head, Settings
from luthier.engine.workshop import Engine

# float32 sums over at most a few hundred terms, relative to the largest number of each result.
TOLERANCE = 2e-5
NAMES = ("nll", "log_sum", "log_probabilities", "topk", "entropy", "kl", "mse")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """256 columns at a time, so that a vocabulary of a few hundred has several blocks; settings are put back."""
    monkeypatch.setitem(fused_kernels.BLOCK, "cpu", 256)
    before = fused.settings
    yield
    fused.use(before)


def close(ours, theirs, tolerance=TOLERANCE) -> bool:
    scale = max(1.0, float(theirs.detach().abs().max())) if theirs.numel() else 1.0
    return ours.shape == theirs.shape and bool(((ours.double() - theirs).abs() <= tolerance * scale).all())


class Case:
    """Random inputs; `strided` hidden states are every second row and column of a larger tensor."""

    def __init__(self, n=17, width=8, size=600, bias=True, cap=1.5, seed=0, strided=False):
        make = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=make)

        self.hidden = draw(2 * n, 2 * width)[::2, ::2] if strided else draw(n, width)
        self.weight = draw(width, size).T if strided else draw(size, width)
        self.bias = draw(size) if bias else None
        self.cap, self.other_hidden, self.other = cap, draw(n, width + 1), Head(draw(size, width + 1), None, 3.0)
        self.targets = torch.randint(0, size, (n,), generator=make)
        self.ids = torch.randint(0, size, (n, 4), generator=make)
        self.ids[:, 3] = self.ids[:, 0]
        self.weights, self.z = draw(n).abs(), 0.3
        self.upstream = draw(n, 4)

    def leaves(self, trained, double=False):
        """Hidden states, weight and bias as leaves that are `trained` (hidden always)."""
        found = [None if t is None else t.detach().to(torch.float64 if double else torch.float32)
                 for t in (self.hidden, self.weight, self.bias)]
        return [t if t is None else t.requires_grad_(name in trained)
                for t, name in zip(found, ("hidden", "weight", "bias"), strict=True)]

    def ours(self, name, hidden, weight, bias):
        head = Head(weight, bias, self.cap)
        if name in ("kl", "mse"):
            return getattr(fused, name)(hidden, head, self.other_hidden.to(hidden.dtype),
                                        Head(self.other.weight.to(weight.dtype), None, self.other.cap))
        if name == "nll":
            return fused.nll(hidden, head, self.targets, self.weights, self.z)
        if name == "log_probabilities":
            return fused.log_probabilities(hidden, head, self.ids)
        return fused.topk(hidden, head, min(4, len(weight)))[0] if name == "topk" else getattr(fused, name)(hidden, head)

    def theirs(self, name, hidden, weight, bias):
        """The same from full scores."""
        scores = hidden @ weight.T + (0 if bias is None else bias)
        scores = scores if self.cap is None else self.cap * torch.tanh(scores / self.cap)
        logs, total = scores.log_softmax(-1), scores.logsumexp(-1)
        other = self.other_hidden.double() @ self.other.weight.double().T
        other = self.other.cap * torch.tanh(other / self.other.cap)
        q = other.log_softmax(-1)
        return {"nll": lambda: self.weights * (cross_entropy(scores, self.targets, reduction="none") + self.z * total**2),
                "log_sum": lambda: total, "log_probabilities": lambda: logs.gather(1, self.ids),
                "topk": lambda: logs.topk(min(4, len(weight)), -1).values,
                "entropy": lambda: -(logs.exp() * logs).sum(-1), "kl": lambda: (q.exp() * (q - logs)).sum(-1),
                "mse": lambda: (scores - other).square().mean(-1)}[name]()

    def results(self, name, trained, double=False, theirs=False):
        """[value, gradient of hidden, of weight, of bias]; gradients that are not asked for are None."""
        leaves = self.leaves(trained, double)
        value = (self.theirs if theirs else self.ours)(name, *leaves)
        upstream = self.upstream[:, 0] if value.dim() == 1 else self.upstream[:, :value.shape[1]]
        (value * upstream).sum().backward()
        return [value.detach(), *(None if t is None else t.grad for t in leaves)]


def agree(case, name, trained=("hidden",), tolerance=TOLERANCE) -> bool:
    ours, theirs = case.results(name, trained), case.results(name, trained, double=True, theirs=True)
    assert [o is None for o in ours] == [t is None for t in theirs]
    return all(o is None or close(o, t, tolerance) for o, t in zip(ours, theirs, strict=True))


TRAINED = [("hidden",), ("hidden", "weight"), ("hidden", "weight", "bias"), ("hidden", "bias"), ("weight",)]


@examples_of(max_examples=80, deadline=None)
@given(name=st.sampled_from(NAMES), trained=st.sampled_from(TRAINED), n=st.integers(1, 20), width=st.integers(1, 12),
       size=st.sampled_from([1, 5, 255, 256, 257, 600]), bias=st.booleans(), cap=st.sampled_from([None, 1.5, 30.0]),
       seed=st.integers(0, 10_000), strided=st.booleans(), chunk=st.sampled_from([1, 7, 256]))
def test_values_and_gradients_are_those_of_full_scores(name, trained, chunk, **shape):
    fused.use(Settings(chunk))
    assert agree(Case(**shape), name, trained)


@pytest.mark.parametrize("trained", TRAINED[:3:2])
@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name, trained):
    fused.use(Settings(2))
    case = Case(3, 2, 260)
    leaves = case.leaves(trained, double=True)
    case.weights = case.weights.double()
    assert torch.autograd.gradcheck(lambda *given: case.ours(name, *given), leaves, atol=1e-6, fast_mode=True)


# --- the definitions of other libraries, written out --------------------------------------------------------------------

def test_the_loss_of_trl():
    """Mean nll over the labels that are not -100, of shifted logits; entropy is the plain mean over positions."""
    case = Case(cap=None)
    labels = case.targets.masked_fill(torch.arange(17) % 3 == 0, -100)
    scores = case.hidden.double() @ case.weight.double().T + case.bias.double()
    shifted, wanted = scores[:-1], labels[1:]
    total, count = 0.0, 0
    for row, label in zip(shifted, wanted, strict=True):
        if label != -100:
            total, count = total - float(torch.log(row.exp()[label] / row.exp().sum())), count + 1
    head = Head(case.weight, case.bias)
    ours = fused.nll(case.hidden[:-1], head, wanted)
    assert float(ours.sum() / (wanted != -100).sum()) == pytest.approx(total / count, rel=1e-5)
    p = scores.softmax(-1)
    assert float(fused.entropy(case.hidden, head).mean()) == pytest.approx(float(-(p * p.log()).sum(-1).mean()), rel=1e-5)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_the_formulas_of_liger(cap):
    """(loss + lse_square_scale lse²) / n and, by hand, d / d logit = p (1 + 2 scale lse) - onehot, times 1 - tanh²."""
    case, scale = Case(cap=cap, bias=False), 1e-2
    raw = case.hidden.double() @ case.weight.double().T
    bent = raw if cap is None else cap * torch.tanh(raw / cap)
    lse, n = bent.logsumexp(-1), len(raw)
    loss = (lse - bent[torch.arange(n), case.targets] + scale * lse * lse).sum() / n
    d = (bent - lse[:, None]).exp() * (1 + 2 * scale * lse[:, None]) / n
    d[torch.arange(n), case.targets] -= 1 / n
    d = d if cap is None else d * (1 - torch.tanh(raw / cap) ** 2)
    hidden, weight, _ = case.leaves(("hidden", "weight"))
    ours = fused.nll(hidden, Head(weight, None, cap), case.targets, z=scale).mean()
    ours.backward()
    assert float(ours.detach()) == pytest.approx(float(loss), rel=1e-5)
    assert close(hidden.grad, d @ case.weight.double()) and close(weight.grad, d.T @ case.hidden.double())


# --- edges ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("trained", TRAINED[:2])
@pytest.mark.parametrize("name", NAMES)
def test_no_position_at_all(name, trained):
    case = Case(n=0)
    value, *gradients = case.results(name, trained)
    assert len(value) == 0 and all(g is None or not g.any() for g in gradients)


@pytest.mark.parametrize("trained", TRAINED[:2])
def test_masked_positions_give_nothing(trained):
    case = Case()
    hidden, weight, bias = case.leaves(trained)
    losses = fused.nll(hidden, Head(weight, bias, case.cap), torch.full((17,), fused.MASKED), z=0.1)
    losses.sum().backward()
    assert not losses.any() and not hidden.grad.any() and (weight.grad is None or not weight.grad.any())


def test_ruled_out_tokens_have_no_part():
    """Scores of -inf in whole blocks, the first included."""
    case = Case(cap=None)
    case.bias[:300] = float("-inf")
    case.targets.fill_(400)
    for name in ("nll", "entropy"):
        ours, theirs = case.results(name, ("hidden",))[:2], case.results("nll", ("hidden",), True, True)[:2]
        assert all(torch.isfinite(o).all() for o in ours)
        assert name == "entropy" or all(close(o, t) for o, t in zip(ours, theirs, strict=True))


def test_wrong_input_is_named():
    case = Case()
    head = Head(case.weight)
    with pytest.raises(LuthierError, match="Token id 600 is outside"):
        fused.nll(case.hidden, head, case.targets.fill_(600))
    with pytest.raises(LuthierError, match="k must be from 1 to 600"):
        fused.topk(case.hidden, head, 601)
    with pytest.raises(LuthierError, match="the same vocabulary"):
        fused.kl(case.hidden, head, case.hidden, Head(case.weight[:5]))


@pytest.mark.parametrize("trained", TRAINED[:2])
@pytest.mark.parametrize("name", [n for n in NAMES if n != "topk"])  # rounding may swap which are the highest
def test_bfloat16_is_near(name, trained):
    case = Case(cap=None, bias=False)
    for field in ("hidden", "weight", "other_hidden"):
        setattr(case, field, getattr(case, field).bfloat16().float())
    case.other = Head(case.other.weight.bfloat16().float(), None, 3.0)
    exact = case.results(name, trained, double=True, theirs=True)
    leaves = [t if t is None else t.detach().bfloat16().requires_grad_(t.requires_grad) for t in case.leaves(trained)]
    value = case.ours(name, *leaves)
    (value * (case.upstream[:, 0] if value.dim() == 1 else case.upstream)).sum().backward()
    assert value.dtype == torch.float32 and close(value.detach(), exact[0], 0.03)
    for leaf, wanted in zip(leaves, exact[1:], strict=True):
        assert leaf is None or leaf.grad is None or close(leaf.grad, wanted, 0.05)


# --- mutants ----------------------------------------------------------------------------------------------------------

def _no_slope(raw, cap):
    return (raw, None) if cap is None else (cap * torch.tanh(raw / cap), torch.ones_like(raw))


MUTANTS = {
    "the cap's slope left out": ("capped", lambda right: _no_slope),
    "coefficient": ("weighted_rows", lambda right: lambda head, ids, weights: right(head, ids, weights * 1.05)),
    "an id that stands twice counts twice": ("first_of_equals", lambda right: lambda ids: torch.ones_like(ids)),
    "picked scores not returned to": ("add_at", lambda right: lambda *given: None),
    "one block only": ("column_blocks", lambda right: lambda size, rows, device: [slice(0, min(256, size))]),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_kernel_is_seen(mutant, monkeypatch):
    name, wrong = MUTANTS[mutant]
    assert agree(Case(), "log_probabilities") and agree(Case(), "log_probabilities", TRAINED[2])
    monkeypatch.setattr(fused_kernels, name, wrong(getattr(fused_kernels, name)))
    assert not (agree(Case(), "log_probabilities") and agree(Case(), "log_probabilities", TRAINED[2]))


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_upstream_or_coefficient_is_seen(name):
    case, other = Case(), Case()
    other.z, other.upstream = case.z * 1.05, case.upstream * 1.05
    ours, theirs = case.results(name, ("hidden",)), other.results(name, ("hidden",), double=True, theirs=True)
    assert not close(ours[1], theirs[1]), "upstream"
    assert name != "nll" or not close(ours[0], theirs[0]), "z"


# --- memory, compiling, decisions ---------------------------------------------------------------------------------------

class Largest(TorchDispatchMode):
    """Keeps the size of the largest tensor that any operation made."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor) and not tensor._is_view():
                self.numbers = max(self.numbers, tensor.numel())
        return made


@pytest.mark.parametrize("trained", TRAINED[:2])
@pytest.mark.parametrize("name", NAMES)
def test_no_tensor_holds_all_scores(name, trained):
    """2,000 positions, 1,000 tokens, 4 numbers wide: nothing larger than a few blocks, an input or [n, k, few]."""
    fused.use(Settings(16))
    case = Case(n=2000, width=4, size=1000)
    with Largest() as largest:
        leaves = case.leaves(trained)
        case.ours(name, *leaves).sum().backward()
    assert largest.numbers <= (fused_kernels.BESIDE if "weight" in trained else 2) * 16 * 1000


def test_nothing_small_is_compiled(monkeypatch):
    monkeypatch.setattr(compiling, "compiled", None)
    fused.use(Settings(7, compiled=True))
    assert agree(Case(), "nll")


@pytest.mark.slow
@pytest.mark.parametrize("cap", [None, 1.5])
def test_compiled_and_eager_agree(cap, monkeypatch):
    if not compiling.available():
        pytest.skip("no C++ compiler with Python's headers here")
    monkeypatch.setattr(fused_kernels, "SMALL", 0)
    for n, size in ((17, 600), (5, 513), (1, 300)):
        fused.use(Settings(7, compiled=True))
        for name in ("nll", "topk"):
            assert agree(Case(n=n, size=size, cap=cap), name)


def test_the_two_eager_forms_agree():
    """The form that is compiled, run as it is, against the form that works in place."""
    make = torch.Generator().manual_seed(0)
    for cap in (None, torch.tensor(1.5)):
        raw, top = torch.randn(5, 40, generator=make), torch.randn(5, generator=make)
        found = [f(raw.clone(), top, top.abs(), cap) for f in (fused_kernels.absorb, fused_kernels.absorb_in_place)]
        assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(*found, strict=True))


def test_compiling_can_be_switched_off_and_is_tried_once(monkeypatch, tmp_path):
    monkeypatch.setenv("LUTHIER_COMPILE", "0")
    assert not compiling.available()
    monkeypatch.delenv("LUTHIER_COMPILE")
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", "/no/such/compiler")
    assert not compiling.available()
    tried = []
    monkeypatch.setattr(compiling, "_compiles", lambda compiler: bool(tried.append(compiler)))
    monkeypatch.setattr(compiling, "_output", lambda command: "compiler 1.0\n")
    for _ in range(2):
        compiling._works.cache_clear()
        assert not compiling._works("cc", tmp_path)
    compiling._works.cache_clear()
    assert tried == ["cc"] and list(json.loads((tmp_path / "trials.json").read_text()).values()) == [False]


def test_a_run_keeps_its_settings(monkeypatch):

    monkeypatch.setattr(fused, "settings", Settings())
    monkeypatch.setattr(fused, "measure", lambda: Settings(64))
    first = dict(Engine(threads=1).decide({}))
    assert first["fused_chunk_rows"] == 64 and fused.settings == Settings(64)
    monkeypatch.setattr(fused, "measure", lambda: pytest.fail("measured again"))
    assert Engine(threads=1).decide(first)["fused_chunk_rows"] == 64
    assert Engine(threads=1, exact=True).decide({})["fused_chunk_rows"] == 256


def test_only_long_work_is_compiled_and_only_where_it_can_be(monkeypatch):
    monkeypatch.setattr(fused.compiling, "available", lambda: True)
    assert fused.pays(fused.LONG) and not fused.pays(fused.LONG - 1)
    monkeypatch.setattr(fused.compiling, "available", lambda: False)
    assert not fused.pays(fused.LONG)
    before = fused.settings
    with fused.compiled(True):
        assert fused.settings == Settings(before.chunk, True)
    assert fused.settings == before
