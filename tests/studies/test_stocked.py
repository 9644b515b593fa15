"""stocked: pairs of a ring, points by hand, distances and angles of tunes whose geometry is known."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from luthier.core.component import build
from luthier.studies._worlds.stocked import _Stocking, premises, ring


def stocking(ctx, base, *tunes):
    """Tunes of one tensor, without a model."""
    made = object.__new__(_Stocking)
    made.tunes, made.ctx, made.rule, made._found = list(tunes), ctx, build("weight_rule", "model-stock"), (-1, {})
    made.weights = [{"w": t} for t in (base, *tunes)]
    return made


@pytest.mark.parametrize("count", [2, 3, 5, 6])
def test_a_ring_has_every_pair_once_and_neighbours_first(count):
    found = ring(count)
    assert {frozenset(p) for p in found} == {frozenset(p) for p in combinations(range(count), 2)}
    assert len(found) == count * (count - 1) // 2
    if count > 2:
        assert all((b - a) % count == 1 for a, b in found[:count])
        assert sorted(i for pair in found[:count] for i in pair) == sorted([*range(count)] * 2)


def test_the_points_of_a_pair_at_sixty_degrees(make_ctx):
    base = torch.tensor([1.0, 1.0])
    one, two = (base + torch.tensor([math.cos(a), math.sin(a)]) for a in (0.0, math.pi / 3))
    made = stocking(make_ctx("points"), base, one, two, base + torch.tensor([0.5, 0.5]))
    average = (one + two) / 2
    # t = 2 cos / (1 + cos) with cos 60 = 1/2
    assert torch.allclose(made.point("stock", "w", 0), base + 2 / 3 * (average - base))
    assert torch.allclose(made.point("average", "w", 0), average) and torch.equal(made.point("single", "w", 0), one)
    assert torch.allclose(made.point("wise", "w", 0), base + (one - base) / 2)


def test_distances_are_from_the_other_tunes_and_in_lengths_of_their_mean(make_ctx):
    base = torch.zeros(3)
    tunes = [torch.tensor(t) for t in ([1.0, 1.0, 0.0], [1.0, 0.0, 1.0], [4.0, 0.0, 0.0], [2.0, 0.0, 0.0])]
    found = list(stocking(make_ctx("distances"), base, *tunes).distances("average", 0))
    # the others' mean is (3, 0, 0), the pair's (1, 1/2, 1/2)
    assert [(x["set"], x["metric"]) for x in found] == [("tensors", "distance")]
    assert found[0]["value"] == pytest.approx(math.sqrt(4 + 0.25 + 0.25) / 3)
    t = {x["metric"]: x["value"] for x in stocking(make_ctx("t"), base, *tunes).distances("stock", 0)}
    assert t["t"] == pytest.approx(2 * 0.5 / 1.5, abs=1e-6)


def test_premises_tell_angles_within_a_tensor_from_those_between(make_ctx):
    base = torch.zeros(2)
    tunes = [torch.tensor([math.cos(a), math.sin(a)]) * size for a, size in ((0.0, 1.0), (0.5, 1.0), (1.5, 4.0))]
    made = stocking(make_ctx("premises"), base, *tunes)
    made.weights = [{"w": t, "v": torch.tensor([1.0]) * n, "still": torch.ones(1)}
                    for n, t in enumerate((base, *tunes))]
    found = {(x["set"], x["id"]): x["value"] for x in premises(made, 3)}
    angles = [math.degrees(a) for a in (0.5, 1.0, 1.5)]  # neighbours in the ring
    assert [found["within", f"{n}/w"] for n in range(3)] == pytest.approx(
        [abs(a - sum(angles) / 3) for a in angles], abs=1e-4)
    assert found["between", "w"] == pytest.approx(sum(angles) / 3 / 2, abs=1e-4)  # the other tensor's angles are 0
    assert [found["lengths", f"{n}/w"] for n in range(3)] == pytest.approx([0.5, 0.5, 1.0])
    assert not any("still" in name for _, name in found)
