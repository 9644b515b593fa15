"""Intruder dimensions and the rank of a change against planted spectra, closed forms and adapters of known rank."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_lines
from luthier.engine.spectra import Spectrum, effective_rank, energy_rank, gaussian_share, matrices, numeric_rank
from luthier.engine.subjects import Subject
from luthier.techniques.evaluation import _spectra
from tests.contracts.workbench import short_fit, training_data
from tests.recorded import recorded, wave

SIZE = 40


def orthogonal(make: torch.Generator, rows: int = SIZE, columns: int = SIZE) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(rows, columns, generator=make))[0]


def geometric(seed: int = 0, ratio: float = 0.8) -> torch.Tensor:
    """A matrix whose singular values are ratio^i: every pair of neighbours is far apart."""
    make = torch.Generator().manual_seed(seed)
    return orthogonal(make) * ratio ** torch.arange(SIZE) @ orthogonal(make).T


def spiked(base: torch.Tensor, size: float = 3.0, seed: int = 1) -> torch.Tensor:
    make = torch.Generator().manual_seed(seed)
    u, v = (torch.nn.functional.normalize(torch.randn(SIZE, generator=make), dim=0) for _ in range(2))
    return base + size * torch.linalg.matrix_norm(base, 2) * torch.outer(u, v)


@pytest.fixture
def looking(monkeypatch, make_ctx, engine, pico):
    """Measure an audit on given matrices instead of a model's."""
    def measure(spec, before, after):
        found = iter([before, after])
        monkeypatch.setattr("luthier.engine.spectra.matrices", lambda *a, **k: next(found))
        ctx = make_ctx(f"audit-{len(before)}")
        return build("audit", spec).measure(ctx, Subject(engine, pico)), ctx.folder

    return measure


@pytest.mark.oracle(seed=96, clause=1, against="the identity")
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_the_same_weights_have_similarity_one_and_no_intruders(looking, side):
    base = Spectrum.of(geometric())
    assert torch.allclose(base.similarity(Spectrum.of(geometric()), SIZE, side), torch.ones(SIZE), atol=1e-5)
    # A copy that is scaled has been changed, and its directions are still those of the base.
    (finding,), _ = looking(f"intruder-dimensions:side={side}", {"a": geometric()}, {"a": 2 * geometric()})
    assert finding.right == 0 and finding.verdict == "pass" and set(finding.extra["curve"].values()) == {0}
    (none,), _ = looking("intruder-dimensions", {"a": geometric()}, {"a": geometric()})
    assert none.verdict == "not applicable" and "the change is zero" in none.detail


@pytest.mark.oracle(seed=96, clause=2, against="a planted direction")
@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_a_planted_spike_is_exactly_one_intruder_and_the_first(looking, side):
    (finding,), folder = looking(f"intruder-dimensions:side={side},max_per_matrix=0.4",
                                 {"a": geometric(), "b": geometric(2)}, {"a": spiked(geometric()), "b": 2 * geometric(2)})
    rows = {r["name"]: r for r in read_lines(folder / "matrices.jsonl")}
    assert [m < 0.5 for m in rows["a"]["similarity"]] == [True] + 9 * [False] and rows["b"]["intruders"] == 0
    assert finding.extra["count"] == 1 and finding.right == 0.5 and finding.verdict == "fail"
    assert finding.interval == (0.5, 0.5) and "1 intruders in 2 changed matrices; most in a" in finding.detail


@pytest.mark.oracle(seed=96, clause=2, against="brute force over all pairs of vectors")
def test_similarity_is_the_largest_over_all_vectors_of_the_base():
    before, after = geometric(3)[:, :25], spiked(geometric(3), 0.6)[:, :25]
    u0, u = (torch.linalg.svd(w, full_matrices=False)[0] for w in (before, after))
    wanted = [max(abs(float(u0[:, i] @ u[:, j])) for i in range(25)) for j in range(10)]
    assert Spectrum.of(after).similarity(Spectrum.of(before), 10).tolist() == pytest.approx(wanted, abs=1e-4)
    # The second tuned vector is the first of the base: a comparison of equal numbers alone would call it new.
    swapped = Spectrum.of(spiked(geometric())).similarity(Spectrum.of(geometric()), 2)
    assert swapped[1] > 0.9


def test_nearly_equal_singular_values_may_turn_without_a_change_of_meaning():
    """The known false alarm: without gaps, tiny changes turn vectors; with gaps they do not."""
    make = torch.Generator().manual_seed(5)
    noise = 1e-3 * torch.randn(SIZE, SIZE, generator=make)
    flat, gapped = geometric(4, ratio=0.99999), geometric(4, ratio=0.8)
    least = [float(Spectrum.of(w + noise).similarity(Spectrum.of(w), 10).min()) for w in (flat, gapped)]
    assert least[0] < 0.5 < 0.99 < least[1]


@pytest.fixture(scope="module")
def tuned(engine, pico, tmp_path_factory):
    from tests.conftest import new_ctx

    inputs = {"base": pico, "examples": training_data(new_ctx(tmp_path_factory.mktemp("rows") / "r", engine))}
    fit = short_fit("decoder", method="lora:rank=3,alpha=6")
    return fit.run(inputs, new_ctx(tmp_path_factory.mktemp("fit") / "tuned", engine, inputs))


@pytest.mark.oracle(seed=96, clause=2, against="the code of the paper's authors")
@pytest.mark.parametrize("record", recorded("intruders")["records"], ids=lambda r: f"{r['shape']}-{r['size']}")
def test_intruders_are_as_many_as_the_authors_code_counts(looking, record):
    (rows, columns), at = record["shape"], torch.arange(math.prod(record["shape"]), dtype=torch.float64)
    base = (torch.sin(0.013 * at * at).view(rows, columns) + wave(rows, columns).double()).float()
    change = wave(rows, 2, shift=1.0, scale=1.0) @ wave(2, columns, shift=2.0, scale=1.0)
    (finding,), _ = looking(f"intruder-dimensions:k={recorded('intruders')['k']}", {"w": base},
                            {"w": base + record["size"] * change})
    assert list(finding.extra["curve"].values()) == record["counts"]


@pytest.mark.oracle(seed=96, clause=5, against="the adapter's rank")
@pytest.mark.oracle(seed=171, clause=2, against="the adapter's rank")
def test_a_merged_adapter_changes_by_no_more_than_its_rank(engine, pico, tuned, make_ctx):
    before, after = matrices(engine, pico), matrices(engine, pico, tuned)
    assert before.keys() == after.keys() and len(before) == 14
    ranks = {n: numeric_rank(after[n] - before[n], float(torch.linalg.matrix_norm(after[n], 2))) for n in after}
    assert set(ranks.values()) == {3}, ranks
    # The same weights, from the tensors of the adapter's file.
    from safetensors.torch import load_file

    state = load_file(tuned.folder / "adapter_model.safetensors")
    for name in after:
        a, b = (next(t for k, t in state.items() if f".{name}.lora_{x}" in k) for x in "AB")
        assert torch.allclose(after[name], before[name] + 2 * b @ a, atol=1e-6)
    ctx = make_ctx("spectrum")
    (finding,) = build("audit", "spectrum").measure(ctx, Subject(engine, pico, tuned))
    assert finding.extra["numeric_rank"] == 3 and finding.extra["most"] <= 3 and finding.extra["matrices"] == 14
    (intruders,) = build("audit", "intruder-dimensions").measure(make_ctx("i"), Subject(engine, pico, tuned))
    assert intruders.extra["matrices"] == 14


@pytest.mark.oracle(seed=171, clause=1, against="a planted rank")
def test_a_planted_rank_is_found_below_tiny_noise(looking):
    make = torch.Generator().manual_seed(6)
    planted = orthogonal(make)[:, :5] @ orthogonal(make)[:, :5].T + 1e-5 * torch.randn(SIZE, SIZE, generator=make)
    assert energy_rank(torch.linalg.svdvals(planted)) <= 5
    base = 10 * geometric()
    (finding,), folder = looking("spectrum:max_share=0.1", {"a": base}, {"a": base + planted})
    assert finding.extra["median_rank"] == 5 and finding.right == 5 / SIZE and finding.verdict == "fail"
    (row,) = read_lines(folder / "matrices.jsonl")
    assert row["energy_rank"] == 5 and row["effective_rank"] == pytest.approx(5, rel=0.02)
    (none,), _ = looking("spectrum", {"a": base}, {"a": base})
    assert none.verdict == "not applicable"


@pytest.mark.oracle(seed=171, clause=1, against="sums by hand")
def test_the_energy_rank_by_hand():
    values = torch.tensor([3.0, 2.0, 1.0])  # squares 9, 4, 1: 9/14 = .643, 13/14 = .929
    assert [energy_rank(values, e) for e in (0.6, 0.65, 0.9, 0.95)] == [1, 2, 2, 3]
    assert energy_rank(torch.ones(10), 0.9) == 9 and energy_rank(torch.zeros(3)) == 0
    assert effective_rank(torch.ones(7)) == pytest.approx(7) and effective_rank(torch.tensor([5.0, 0])) == pytest.approx(1)
    # exp(-(3/4 ln 3/4 + 1/4 ln 1/4)) = 1.7547
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(1.7547, abs=1e-4)


@pytest.mark.oracle(seed=171, clause=3, against="Marchenko-Pastur, and drawn matrices")
@pytest.mark.parametrize(("rows", "columns"), [(200, 200), (120, 240), (300, 100)])
def test_a_random_change_has_the_rank_that_marchenko_and_pastur_say(rows, columns):
    from scipy.integrate import quad
    from scipy.optimize import brentq

    q = min(rows, columns) / max(rows, columns)
    a, b = (1 - q ** 0.5) ** 2, (1 + q ** 0.5) ** 2

    def density(x):
        return (max(0.0, (b - x) * (x - a))) ** 0.5 / (2 * torch.pi * q * x)

    cut = brentq(lambda c: quad(lambda x: x * density(x), c, b)[0] - 0.9, a + 1e-9, b - 1e-9)
    assert gaussian_share(rows, columns) == pytest.approx(quad(density, cut, b)[0], abs=2e-3)
    drawn = torch.randn(rows, columns, generator=torch.Generator().manual_seed(7))
    share = energy_rank(torch.linalg.svdvals(drawn)) / min(rows, columns)
    assert share == pytest.approx(gaussian_share(rows, columns), abs=0.02)
    if rows == columns:
        assert gaussian_share(rows, columns) == pytest.approx(0.51, abs=0.005)


@pytest.mark.parametrize(("after", "said"), [
    ({"a": torch.ones(3, 4)}, r"can't be compared: 1 matrices differ in shape, first a \(40, 40\) against \(3, 4\)"),
    ({"a": torch.full((SIZE, SIZE), float("nan"))}, "a after tuning holds numbers that are not finite"),
    ({"a": 2 * geometric()}, "k = 41 is above 40, the smaller side of a"),
])
def test_what_can_not_be_compared_is_refused(looking, after, said):
    with pytest.raises(UserError, match=said):
        looking("intruder-dimensions:k=41", {"a": geometric()}, after)


def test_layers_are_chosen_by_name(looking, engine, pico, tuned):
    weights = {"attn.q_proj": geometric(), "mlp.up_proj": geometric(1)}
    (finding,), _ = looking("spectrum:modules=[attention]", weights, {n: 2 * w for n, w in weights.items()})
    assert finding.extra["matrices"] == 1
    with pytest.raises(UserError, match=r"No linear layer is called nothing. This model has: q_proj, up_proj"):
        looking("spectrum:modules=[nothing]", weights, weights)
    assert _spectra.chosen("x.dense", ()) and not _spectra.chosen("x.dense", ("attention",))


def test_a_base_in_4_bits_and_rows_without_models_are_refused(engine, pico, make_ctx):
    packed = replace(pico, meta={**pico.meta, "quantize": "nf4"})
    with pytest.raises(UserError, match="held in 4 bits"):
        matrices(engine, packed)
    with pytest.raises(UserError, match="There is no model here, only data"):
        build("audit", "spectrum").measure(make_ctx("data"), Subject(engine))
