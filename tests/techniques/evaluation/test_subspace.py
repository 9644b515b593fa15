"""Directions of updates against planted ones, closed forms, singular value decompositions by numpy, and adapters' own files."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.files import read_json, read_lines, write_json
from luthier.core.recipe import Recipe
from luthier.core.run import Run
from luthier.engine.executor import execute
from luthier.engine.subjects import Subject
from luthier.pipelines import auditing
from luthier.techniques.evaluation.subspace import amplified, directions, leading, shared

SIZE = 40


def orthogonal(seed: int, size: int = SIZE) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


U, V, VALUES = orthogonal(0), orthogonal(1), 0.9 ** np.arange(SIZE)
BASE = torch.tensor((U * VALUES) @ V.T, dtype=torch.float32)


def planted(*parts: tuple[float, int, int]) -> torch.Tensor:
    """A change of size c along the base's own directions: left one number a, right one number b."""
    return torch.tensor(sum(c * np.outer(U[:, a], V[:, b]) for c, a, b in parts), dtype=torch.float32)


@pytest.mark.oracle(clause="amplification", against="closed form: planted directions of the base")
@pytest.mark.parametrize("number", [0, 5, 30])
def test_a_planted_direction_is_amplified_by_its_size_over_the_singular_value(number):
    found = amplified("a", planted((2.0, number, number)), BASE, 16)
    assert found["rank"] == 1 and found["values"] == pytest.approx([2.0], rel=1e-4)
    assert found["amplification"] == pytest.approx(2.0 / VALUES[number], rel=1e-3)
    assert found["along_base"] == pytest.approx(VALUES[0], rel=1e-4)
    assert found["along_random"] == pytest.approx(math.sqrt((VALUES**2).sum()) / SIZE, rel=1e-4)


@pytest.mark.oracle(clause="amplification", against="closed form: planted directions of the base")
def test_two_planted_directions_and_one_that_the_base_does_not_have():
    # U^T W V is diagonal with s_3 and s_8; ||ΔW|| = (9 + 1)^½.
    found = amplified("a", planted((3.0, 3, 3), (1.0, 8, 8)), BASE, 16)
    assert found["rank"] == 2 and found["norm"] == pytest.approx(math.sqrt(10), rel=1e-4)
    assert found["along_change"] == pytest.approx(math.hypot(VALUES[3], VALUES[8]), rel=1e-3)
    assert found["amplification"] == pytest.approx(math.sqrt(10) / math.hypot(VALUES[3], VALUES[8]), rel=1e-3)
    # k = 1 looks at the larger part of the change alone; its norm is that of the whole.
    assert amplified("a", planted((3.0, 3, 3), (1.0, 8, 8)), BASE, 1)["amplification"] == pytest.approx(
        math.sqrt(10) / VALUES[3], rel=1e-3)
    # Left direction 2 and right direction 7 of the base never meet: nothing of it lies along such a change.
    assert amplified("a", planted((1.0, 2, 7)), BASE, 16)["amplification"] is None


@pytest.mark.oracle(clause="amplification", against="numpy's decomposition of random matrices")
def test_norms_along_directions_by_numpy():
    draw = np.random.default_rng(2)
    base, delta = draw.standard_normal((30, 50)), draw.standard_normal((30, 3)) @ draw.standard_normal((3, 50))
    u, s, vh = np.linalg.svd(delta, full_matrices=False)
    own = np.linalg.svd(base, compute_uv=False)
    found = amplified("a", torch.tensor(delta, dtype=torch.float32), torch.tensor(base, dtype=torch.float32), 16)
    assert found["rank"] == 3 and found["values"] == pytest.approx(list(s[:3]), rel=1e-4)
    along = np.linalg.norm(u[:, :3].T @ base @ vh[:3].T)
    assert found["amplification"] == pytest.approx(np.linalg.norm(delta) / along, rel=1e-3)
    assert found["along_base"] == pytest.approx(math.sqrt((own[:3] ** 2).sum()), rel=1e-4)
    drawn = []
    for seed in range(60):
        left, right = orthogonal(seed, 30)[:, :3], orthogonal(100 + seed, 50)[:, :3]
        drawn.append(np.linalg.norm(left.T @ base @ right) ** 2)
    assert found["along_random"] == pytest.approx(math.sqrt(np.mean(drawn)), rel=0.1), "the root of the mean square"


@pytest.mark.oracle(seed=114, clause=6, against="the identity")
def test_a_set_of_directions_shares_all_of_itself():
    a = torch.randn(6, SIZE, generator=torch.Generator().manual_seed(0))
    found = shared(directions(a, 6), directions(a, 6))
    for i in range(6):
        assert [found["phi"][i][j] for j in range(6)] == pytest.approx([1.0] * 6, abs=1e-5)
    flipped = shared(directions(a, 6), -directions(a, 6).flip(1))
    assert flipped["phi"][5][5] == pytest.approx(1, abs=1e-5), "signs and order do not count"
    assert flipped["phi"][0][0] == pytest.approx(0, abs=1e-5) and flipped["phi"][0][5] == pytest.approx(1, abs=1e-5)


@pytest.mark.oracle(seed=114, clause=7, against="closed form: i j / (d min(i, j))")
def test_random_directions_share_what_chance_gives():
    make = torch.Generator().manual_seed(1)
    grids, d = [], 64
    for _ in range(150):
        one, two = (torch.randn(r, d, generator=make) for r in (4, 8))
        found = shared(directions(one, 4), directions(two, 8))
        grids.append(found["phi"])
    mean = np.mean(grids, 0)
    for i in range(1, 5):
        for j in range(1, 9):
            wanted = i * j / (d * min(i, j))
            assert found["chance"][i - 1][j - 1] == pytest.approx(wanted)
            assert mean[i - 1][j - 1] == pytest.approx(wanted, abs=0.016), (i, j)


@pytest.mark.oracle(clause="similarity of two updates", against="closed form: planes at a known angle, and numpy")
def test_similarity_of_planes_at_a_known_angle():
    angle, axes = 0.4, torch.eye(SIZE)
    turned = torch.stack([math.cos(angle) * axes[0] + math.sin(angle) * axes[5], axes[1], axes[7]])
    # Sizes 3, 2, 1 fix the order of the singular vectors.
    one = directions(torch.stack([3 * axes[0], 2 * axes[1], axes[2]]), 3)
    two = directions(torch.tensor([3.0, 2.0, 1.0])[:, None] * turned, 3)
    cos = math.cos(angle) ** 2
    wanted = [[cos, cos, cos], [cos, (cos + 1) / 2, (cos + 1) / 2], [cos, (cos + 1) / 2, (cos + 1) / 3]]
    assert np.allclose(shared(one, two)["phi"], wanted, atol=1e-5)
    a, b = (np.random.default_rng(n).standard_normal((5, SIZE)) for n in (3, 4))
    rows = [np.linalg.svd(m, full_matrices=False)[2] for m in (a, b)]
    brute = [[sum((rows[0][m] @ rows[1][n]) ** 2 for m in range(i) for n in range(j)) / min(i, j) for j in range(1, 6)]
             for i in range(1, 6)]
    found = shared(*(directions(torch.tensor(m, dtype=torch.float32), 5) for m in (a, b)))
    assert np.allclose(found["phi"], brute, atol=1e-4)


def test_directions_of_b_and_of_a_change_and_those_below_rounding():
    b = torch.stack([torch.eye(SIZE)[3] * 2, torch.eye(SIZE)[4]], 1)
    assert [int(c.abs().argmax()) for c in directions(b, 2, "B").T] == [3, 4]
    found = leading(planted((2.0, 9, 4), (1.0, 0, 6)), BASE, 16)
    assert found.shape == (SIZE, 2) and np.allclose(np.abs(found.T.numpy() @ V[:, [4, 6]]), np.eye(2), atol=1e-3)
    twice = torch.ones(3, SIZE)  # rank 1
    assert directions(twice, 3).shape == (SIZE, 1)


# ---------------------------------------------------------------- whole tunes

ROWS = "".join(json.dumps({"text": f"The {a} is {b}."}) + "\n" for a in ("sun", "sea", "oak") for b in ("old", "dry", "far"))


@pytest.fixture(scope="module")
def runs(engine, tmp_path_factory) -> dict[str, Path]:
    """LoRA of rank 2 and of rank 4 of other seeds, and full tuning, of one base."""
    folder = tmp_path_factory.mktemp("tunes")
    (folder / "rows.jsonl").write_text(ROWS)
    threads = torch.get_num_threads()
    for name, seed, method in (("r2", 0, "lora:rank=2"), ("r4", 1, "lora:rank=4"), ("full", 0, "full")):
        execute(Recipe({"name": name, "seed": seed, "steps": {
            "base": {"use": "base", "model": "pico"}, "rows": {"use": "read", "path": str(folder / "rows.jsonl")},
            "tuned": {"use": "fit", "tasks": [{"data": "examples.all", "objective": "pretrain"}], "method": method,
                      "length": {"steps": 3}, "learning_rate": 1e-2, "dtype": "float32",
                      "inputs": {"base": "base", "examples": "rows"}}}}), folder / name, engine)
    torch.set_num_threads(threads)
    return {name: folder / name for name in ("r2", "r4", "full")}


@pytest.fixture
def looked(runs, engine, make_ctx):
    """Findings of an audit of one tune beside another, and the lines of its files."""
    def look(name: str, other: str | Path = "", **fields):
        run, ctx = Run.open(runs[name]), make_ctx(f"look-{name}-{len(str(other))}")
        spec = {"use": "subspace", **fields, **({"other": str(runs.get(str(other), other))} if other else {})}
        found = build("audit", spec).measure(ctx, Subject(engine, run.step("base"), run.step("tuned")))
        files = [ctx.folder / n for n in ("matrices.jsonl", "pairs.jsonl")]
        return found, *({r["name"]: r for r in read_lines(f)} if f.exists() else {} for f in files)

    return look


def factors_of(run: Path) -> dict[str, np.ndarray]:
    """Whatever the adapter's file holds, by its own names."""
    state = load_file(Run.open(run).step("tuned").folder / "adapter_model.safetensors")
    return {k.removeprefix("base_model.model.").removesuffix(".weight"): t.numpy() for k, t in state.items()}


@pytest.mark.oracle(clause="similarity of two updates", against="numpy, on the adapters' own files")
@pytest.mark.parametrize("of", ["A", "B"])
def test_two_adapters_by_their_own_factors(runs, looked, of):
    (amplification, similarity), matrices, pairs = looked("r2", "r4", of=of)
    one, two = factors_of(runs["r2"]), factors_of(runs["r4"])
    assert len(pairs) == len(matrices) == 14 and similarity.extra["of"] == of
    for name, row in pairs.items():
        sides = [np.linalg.svd(side[f"{name}.lora_{of}"], full_matrices=False) for side in (one, two)]
        bases = [(s[2].T if of == "A" else s[0])[:, :r] for s, r in zip(sides, (2, 4), strict=True)]
        assert np.shape(row["phi"]) == (2, 4)
        assert row["phi"][1][3] == pytest.approx(np.linalg.norm(bases[0].T @ bases[1]) ** 2 / 2, abs=1e-4)
        assert row["phi"][0][0] == pytest.approx((bases[0][:, 0] @ bases[1][:, 0]) ** 2, abs=1e-4)
    assert similarity.right == pytest.approx(np.mean([r["phi"][1][3] for r in pairs.values()]))
    assert similarity.verdict == "pass" and similarity.tolerance is None and amplification.verdict == "pass"
    assert np.shape(similarity.extra["heat"]["cells"]) == (2, 4)
    # The other way round the grid is transposed.
    _, _, back = looked("r4", "r2", of=of)
    assert all(np.allclose(np.transpose(back[n]["phi"]), pairs[n]["phi"], atol=1e-5) for n in pairs)


@pytest.mark.oracle(seed=114, clause=6, against="the identity")
def test_a_tune_and_itself_share_everything_and_any_tune_has_a_change(looked):
    (_, same), _, pairs = looked("r2", "r2")
    assert same.right == pytest.approx(1, abs=1e-5) and same.extra["of"] == "A"
    assert all(row["phi"][i][i] == pytest.approx(1, abs=1e-5) for row in pairs.values() for i in range(2))
    (_, other), matrices, _ = looked("full", "r2", k=4)
    assert other.extra["of"] == "change" and 0 <= other.right <= 1
    assert max(r["rank"] for r in matrices.values()) == 4, "k of the many that full tuning has"
    # The rows of A span those of ΔW = BA: another basis of the same space.
    (_, change), _, _ = looked("r2", "r2", of="change")
    assert change.right == pytest.approx(1, abs=1e-4)


def test_an_adapter_that_shares_one_direction_and_no_other(runs, looked, tmp_path):
    """A of every layer is planted: the first row is that of the other adapter's first direction, the second is across both."""
    shutil.copytree(runs["r2"], tmp_path / "planted")
    path = Run.open(tmp_path / "planted").step("tuned").folder / "adapter_model.safetensors"
    state = load_file(path)
    for key in [k for k in state if ".lora_A" in k]:
        vectors = torch.linalg.svd(state[key].double(), full_matrices=True)[2]
        state[key] = torch.stack([3 * vectors[0], vectors[5]]).float()
    save_file(state, path)
    (_, found), _, pairs = looked("r2", tmp_path / "planted")
    assert all(np.allclose(row["phi"], [[1, 1], [1, 0.5]], atol=1e-4) for row in pairs.values())
    assert found.right == pytest.approx(0.5, abs=1e-4) and found.extra["first"] == pytest.approx(1, abs=1e-4)


def test_limits_are_kept_to(looked):
    (amplification, similarity), _, _ = looked("r2", "r2", max_amplification=1e-6, max_similarity=0.5)
    assert amplification.verdict == similarity.verdict == "fail" and similarity.tolerance == 0.5


def test_the_command_measures_and_the_report_draws(runs, tmp_path):
    made = auditing.recipe(runs["r2"], audits=[f"subspace:other={runs['r4']},k=2"])
    run = auditing.run(made, runs["r2"], tmp_path / "out", exact=True)
    found = {f.name: f for f in auditing.audits_of(run)}
    assert set(found) == {"audit/subspace/amplification", "audit/subspace/similarity"}
    assert "subspace shared with another tune, of LoRA's A" in auditing.sentence(found["audit/subspace/similarity"])
    page = (run.folder / "report.html").read_text()
    assert "phi(i, j), mean over matrices" in page and page.count('fill-opacity="') == 4


def test_what_can_not_be_compared_is_refused(runs, looked, engine, make_ctx, tmp_path):
    for spec, said in ((f"subspace:other={tmp_path}", "neither a run with a tuned model nor the folder of one"),
                       ("subspace:of=A", "are about two tunes. Name the second one"),
                       ("subspace:max_similarity=0.5", "are about two tunes")):
        with pytest.raises(UserError, match=said):
            build("audit", spec).check()
    with pytest.raises(UserError, match=r"full holds no LoRA factors, so there is no B. Take of=change"):
        looked("r2", "full", of="B")
    with pytest.raises(UserError, match="the audited tune holds no LoRA factors, so there is no A"):
        looked("full", "r2", of="A")
    with pytest.raises(UserError, match="No linear layer is called nothing"):
        looked("r2", modules=["nothing"])
    shutil.copytree(runs["r4"], tmp_path / "far")
    record = tmp_path / "far" / "steps" / "tuned" / "luthier.json"
    write_json(record, {**read_json(record), "base": {**read_json(record)["base"], "identity": "another", "name": "elsewhere"}})
    with pytest.raises(UserError, match="was tuned on elsewhere, another base than pico: their directions have no common"):
        looked("r2", tmp_path / "far")
    run = Run.open(runs["r2"])
    (none,) = build("audit", "subspace").measure(make_ctx("none"), Subject(engine, run.step("base")))
    assert none.verdict == "not applicable" and "the change is zero" in none.detail
