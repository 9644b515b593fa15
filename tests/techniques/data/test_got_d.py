"""got-d: potentials against a linear program, scores against finite differences, and what is chosen with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.spatial.distance import cdist

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Part, Turn
from luthier.techniques.data._transport import cost, soft, solve
from luthier.techniques.data.got_d import GotD, calibrated, dsir


def points(n, m, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(n, 2))), torch.from_numpy(rng.normal(size=(m, 2)) + 0.5)


def linear_duals(x, y):
    """The duals of the first side, from the linear program of exact transport."""
    c = cdist(x, y, "sqeuclidean")
    n, m = c.shape
    rows = np.kron(np.eye(n), np.ones((1, m)))
    columns = np.kron(np.ones((1, n)), np.eye(m))
    found = linprog(c.ravel(), A_eq=np.concatenate([rows, columns]), b_eq=[1 / n] * n + [1 / m] * m, method="highs")
    return found.eqlin.marginals[:n], found.fun


# --- the oracle's clauses --------------------------------------------------------------------------------------------

@pytest.mark.oracle(seed=6, clause=1, against="scipy's linear program")
@pytest.mark.parametrize("seed", [0, 1])
def test_potentials_are_the_duals_of_the_linear_program(seed):
    x, y = points(6, 5, seed)
    wanted, _ = linear_duals(x, y)
    wanted = wanted - wanted.mean()
    scale = float(cost(x, y).mean())

    def apart(share):
        f = solve(x, y, share * scale, tolerance=1e-6, most=20_000, momentum=1.5).f.numpy()
        return np.abs(f - f.mean() - wanted).max() / np.ptp(wanted)

    assert apart(0.003) <= 0.02 < apart(0.5), "much regularisation is another problem"


@pytest.mark.oracle(seed=6, clause=2, against="finite differences of the regularised dual")
@pytest.mark.parametrize("eps", [0.05, 0.4, 3.0])
def test_scores_are_derivatives_of_the_regularised_value(eps):
    x, y = points(7, 5)
    scores = GotD(eps=eps, tolerance=1e-12, rounds=20_000).scores(x, y).numpy()

    def value(a):
        plan = solve(x, y, eps, a=a, tolerance=1e-13, most=20_000)
        return float(a @ plan.f + plan.g.mean()), bare(plan, a)

    def bare(plan, a):
        c = cost(x, y)
        p = a[:, None] / len(y) * ((plan.f[:, None] + plan.g - c) / eps).exp()
        return float((p * c).sum())

    start = torch.full((7,), 1 / 7, dtype=torch.float64)
    step, slopes = 1e-4, []
    for i in range(7):
        moved = start - step / 6
        moved[i] = start[i] + step
        slopes.append([(b - a) / step for a, b in zip(value(start), value(moved), strict=True)])
    regular, plain = np.array(slopes).T
    assert np.abs(regular - scores).max() <= 1e-3 * np.abs(scores).max()
    if eps > 0.1:
        assert np.abs(plain - scores).max() > 1e-2 * np.abs(scores).max(), "the bare transport cost has other slopes"


@pytest.mark.oracle(seed=6, clause=3, against="algebra")
def test_a_constant_does_not_matter():
    f = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(calibrated(f + 12.5), calibrated(f), atol=1e-9)
    by_hand = [float(f[i] - (f.sum() - f[i]) / 8) for i in range(9)]
    assert calibrated(f).tolist() == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.oracle(seed=6, clause=4, against="the plan's own weights, in numpy")
def test_the_extension_gives_the_potential_in_sample_and_beside_it():
    x, y = points(40, 15, 3)
    plan = solve(x, y, 0.3, tolerance=1e-12, most=20_000)
    c, f, g = cdist(x, y, "sqeuclidean"), plan.f.numpy(), plan.g.numpy()
    p = np.exp((f[:, None] + g - c) / 0.3) / (40 * 15)
    assert np.abs(p.sum(1) - 1 / 40).max() < 1e-9 and np.abs(p.sum(0) - 1 / 15).max() < 1e-9, "f and g belong together"
    b = torch.full((15,), 1 / 15, dtype=torch.float64)
    again = soft(x[[3, 30, 7]], y, plan.g, b, 0.3)
    assert np.abs(again.numpy() - f[[3, 30, 7]]).max() < 1e-6
    g_by_hand = -0.3 * np.log((np.exp((f[:, None] - c) / 0.3) / 40).sum(0))
    assert np.abs(g_by_hand - g).max() < 1e-6


@pytest.mark.oracle(seed=6, clause=5, against="the limit")
def test_of_equal_sides_all_rows_are_worth_the_same():
    x, y = points(30, 30)
    scale = float(cost(x, x).mean())
    equal = GotD(eps=0.01 * scale, rounds=5000).scores(x, x)
    other = GotD(eps=0.01 * scale, rounds=5000).scores(x, y)
    assert float(equal.max() - equal.min()) < 0.05 * scale < float(other.max() - other.min())


# --- the step --------------------------------------------------------------------------------------------------------

def row(name, text, source=""):
    return Example(name, (Turn("user", (Part(text, name="text"),)),), task="text", source=source)


class Placed:
    """An engine whose embeddings are written in the texts."""

    def embed(self, model, texts, max_tokens=256):
        return np.array([[float(v) for v in t.split()] for t in texts], dtype=np.float32)


def chosen(make_ctx, pool, aim, name="x", said=None, **fields):
    ctx = make_ctx(name, roles={"encoder": object()})
    ctx.engine, ctx.stream = Placed(), lambda wanted: aim if wanted == "target.train" else []
    ctx.log = (said if said is not None else []).append
    out = list(GotD(**fields).apply(iter(pool), ctx))
    assert [getattr(o, "id", None) for o in out] == [p.id for p in pool]
    return [o.id for o in out if isinstance(o, Example)]


@pytest.fixture
def mixed():
    """A pool of two places, most of it in the first, and a target between the second and beyond."""
    rng = np.random.default_rng(0)
    pool = [row(f"a{n}", f"{x:.3f} {y:.3f}", "a") for n, (x, y) in enumerate(rng.normal(0, 0.1, (40, 2)))]
    pool += [row(f"b{n}", f"{1 + x:.3f} {y:.3f}", "b") for n, (x, y) in enumerate(rng.normal(0, 0.1, (10, 2)))]
    return pool, [row(f"t{n}", f"{1 + x:.3f} {y:.3f}") for n, (x, y) in enumerate(rng.normal(0, 0.1, (30, 2)))]


def test_what_is_chosen_moves_the_pool_and_the_reverse_does_not(make_ctx, mixed):
    pool, target = mixed
    found = {by: chosen(make_ctx, pool, target, by=by, budget=10, name=by) for by in ("got-d", "reversed", "nearest", "random")}
    assert all(i.startswith("b") for i in found["got-d"]) and all(i.startswith("a") for i in found["reversed"])
    assert all(i.startswith("b") for i in found["nearest"]) and len(found["random"]) == 10
    assert chosen(make_ctx, pool, target, by="random", budget=10, name="random") == found["random"]


def test_a_pool_that_is_solved_in_part_is_scored_whole(make_ctx, mixed):
    pool, target = mixed
    assert set(chosen(make_ctx, pool, target, budget=10, solve_rows=24, name="part")) == set(
        chosen(make_ctx, pool, target, budget=10, name="whole"))


def test_importance_of_words_finds_the_targets_texts():
    pool = ["a plot and a scene", "a module and a class", "the plot of a scene", "the class of a module"] * 5
    target = ["the scene of the plot", "a scene"] * 5
    scores = dsir(pool, target, np.random.default_rng(0))
    means = [np.mean([s for s, t in zip(scores, pool, strict=True) if word in t]) for word in ("plot", "module")]
    assert means[0] > means[1] + 1
    # A text of words that both sides use alike has no weight but the noise.
    flat = dsir(["x y"] * 2000, ["x y"] * 2000, np.random.default_rng(1))
    assert np.mean(flat) == pytest.approx(np.euler_gamma, abs=0.1), "the mean of Gumbel's law"


def test_momentum_and_chunks_change_no_potential(monkeypatch):
    from luthier.techniques.data import _transport

    x, y = points(50, 20, 5)
    plain = solve(x, y, 0.4, tolerance=1e-10, most=5000)
    fast = solve(x, y, 0.4, tolerance=1e-10, most=5000, momentum=1.3)
    monkeypatch.setattr(_transport, "CHUNK", 7)
    cut = solve(x, y, 0.4, tolerance=1e-10, most=5000)
    for other in (fast, cut):
        assert torch.allclose(calibrated(other.f), calibrated(plain.f), atol=1e-7)
    assert fast.rounds < plain.rounds and plain.converged


# --- bad input -------------------------------------------------------------------------------------------------------

def test_bad_input_is_said(make_ctx, mixed, tmp_path):
    pool, target = mixed
    with pytest.raises(UserError, match="budget = 60, but the pool has 50 rows"):
        chosen(make_ctx, pool, target, budget=60)
    with pytest.raises(UserError, match="row e is an empty text"):
        chosen(make_ctx, [*pool, row("e", " ")], target, budget=3)
    with pytest.raises(UserError, match="got-d needs a target"):
        chosen(make_ctx, pool, [], budget=3)
    with pytest.raises(UserError, match="there is no file"):
        chosen(make_ctx, pool, [], budget=3, target=str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="embedding of the pool is not finite"):
        GotD().scores(torch.tensor([[float("nan"), 1.0]]), torch.ones(1, 2))
    said = []
    chosen(make_ctx, pool, target[:5], budget=3, said=said, rounds=1)
    assert any("target has 5 rows" in line for line in said)
    assert any("not converged after 1 rounds" in line and "Try eps=0.2" in line for line in said)
    ctx = make_ctx("none")
    with pytest.raises(UserError, match="got-d needs an encoder"):
        list(GotD(budget=1).apply(iter(pool), ctx))
    dropped = [o for o in GotD(budget=1, by="random").apply(iter(pool), _with(ctx, target)) if isinstance(o, Dropped)]
    assert len(dropped) == 49 and dropped[0].reason == "not chosen by random"


def _with(ctx, target):
    ctx.stream = lambda name: target
    return ctx
