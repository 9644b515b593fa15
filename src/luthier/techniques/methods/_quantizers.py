"""How weights become codes of few bits: by nearest level (affine, uniform, normal float), or column by column (GPTQ).

What they give is `engine.low_bits.LowBits`: w = (levels[code] - zero) scale, with a scale for each block of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch.nn.functional import pad

from luthier.core.errors import UserError
from luthier.engine.low_bits import LowBits

Search = Literal["minmax", "mse"]
Grid = tuple[torch.Tensor, torch.Tensor]
SHRINKS = 80  # how many narrower ranges the search tries, the narrowest a fifth of the whole
NORMAL_END = 0.9677083  # the share of a normal distribution below its last level
DAMPING = 0.01  # of the Hessian's mean diagonal
CLIP = 2.0  # deviations from the mean that uniform levels reach


# --- nearest level -------------------------------------------------------------------------------------------------

@cache
def normal_levels(bits: int) -> tuple[float, ...]:
    """The 2^bits levels of NormalFloat: quantiles of a normal distribution, one of them 0, the ends -1 and 1."""
    from scipy.stats import norm

    half = 1 << bits - 1
    above = norm.ppf(torch.linspace(NORMAL_END, 0.5, half + 1, dtype=torch.float64)[:-1].numpy()).tolist()
    below = (-norm.ppf(torch.linspace(NORMAL_END, 0.5, half, dtype=torch.float64)[:-1].numpy())).tolist()
    levels = sorted([*above, 0.0, *below])
    return tuple(v / levels[-1] for v in levels)


def nearest(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """The places of the nearest of ascending levels; the lower one of two at equal distance."""
    return torch.bucketize(values.contiguous(), (levels[1:] + levels[:-1]) / 2)


def normal_float(weight: torch.Tensor, bits: int, block: int) -> LowBits:
    """W [out, in] in blocks along the flattened matrix, the last one perhaps shorter; each is scaled by its largest weight."""
    flat = weight.detach().float().reshape(1, -1)
    levels = torch.tensor(normal_levels(bits), device=weight.device)
    blocks = pad(flat, (0, -flat.shape[1] % block)).view(-1, block)
    scales = blocks.abs().amax(1)
    codes = nearest(blocks / torch.where(scales > 0, scales, 1.0)[:, None], levels).view(1, -1)[:, :flat.shape[1]]
    return LowBits.of(codes, scales[None], None, levels, bits, block, _shape(weight))


def uniform(weight: torch.Tensor, bits: int) -> LowBits:
    """W [out, in] on 2^bits equal levels, from the least to the largest weight once clipped at two deviations from the mean."""
    flat = weight.detach().float().reshape(1, -1)
    mean, reach = flat.mean(), CLIP * flat.std()
    clipped = flat.clamp(mean - reach, mean + reach)
    low, high = clipped.min(), clipped.max()
    levels = torch.arange(1 << bits, dtype=torch.float32, device=weight.device)
    scale = torch.where(high > low, (high - low) / (len(levels) - 1), 1.0)
    codes = nearest((clipped - low) / scale, levels)
    return LowBits.of(codes, scale.view(1, 1), (-low / scale).view(1, 1), levels, bits, flat.shape[1], _shape(weight))


def affine(weight: torch.Tensor, bits: int, group: int, search: Search = "minmax") -> LowBits:
    """W [out, in], each row in groups of columns with a scale and a whole zero of their own; the last group may be shorter."""
    found, levels = weight.detach().float(), 1 << bits
    grids = [grid(found[:, at:at + group], levels, search) for at in range(0, found.shape[1], group)]
    codes = torch.cat([_codes(found[:, n * group:(n + 1) * group], g, levels) for n, g in enumerate(grids)], 1)
    return _affine(codes, grids, bits, group)


def grid(weight: torch.Tensor, levels: int, search: Search = "minmax") -> Grid:
    """Scales and zeros [rows, 1] of w = (code - zero) scale for the rows of one group; 0 is always among the values.

    mse: of ranges narrower than the row's own, the one with the least squared error.
    """
    low, high = weight.amin(1, keepdim=True).clamp(max=0), weight.amax(1, keepdim=True).clamp(min=0)
    best = _grid(low, high, levels)
    if search == "minmax":
        return best
    least = _error(weight, best, levels)
    for n in range(1, SHRINKS):
        share = 1 - 0.8 * n / SHRINKS
        tried = _grid(low * share, high * share, levels)
        error = _error(weight, tried, levels)
        better = error < least
        best = torch.where(better, tried[0], best[0]), torch.where(better, tried[1], best[1])
        least = torch.where(better, error, least)
    return best


def _grid(low: torch.Tensor, high: torch.Tensor, levels: int) -> Grid:
    scale = (high - low) / (levels - 1)
    scale = torch.where(scale > 0, scale, 1.0)
    return scale, (-low / scale).round()


def _codes(weight: torch.Tensor, given: Grid, levels: int) -> torch.Tensor:
    scale, zero = given
    return (weight / scale + zero).round().clamp(0, levels - 1)


def _value(codes: torch.Tensor, given: Grid) -> torch.Tensor:
    return (codes - given[1]) * given[0]


def _error(weight: torch.Tensor, given: Grid, levels: int) -> torch.Tensor:
    return (weight - _value(_codes(weight, given, levels), given)).square().sum(1, keepdim=True)


def _affine(codes: torch.Tensor, grids: list[Grid], bits: int, group: int) -> LowBits:
    scales, zeros = (torch.cat(part, 1) for part in zip(*grids, strict=True))
    levels = torch.arange(1 << bits, dtype=torch.float32, device=codes.device)
    return LowBits.of(codes, scales, zeros.to(torch.uint8), levels, bits, group)


def _shape(weight: torch.Tensor) -> tuple[int, int]:
    return weight.shape[0], weight.shape[1]


# --- column by column ----------------------------------------------------------------------------------------------

def gptq(weight: torch.Tensor, hessian: torch.Tensor, bits: int, group: int, whole: int = 0, search: Search = "minmax"
         ) -> tuple[LowBits, torch.Tensor]:
    """The first columns of W [out, in] in few bits, and the last `whole` ones, which take up the errors of those before.

    hessian: 2 X'X [in, in]. Column c's error, divided by U_cc of the upper Cholesky factor U of the damped inverse Hessian,
    is spread over the columns after it by row c of U: W[:, c+1:] -= err U[c, c+1:] (Frantar et al. 2022).
    """
    left, ends, levels = weight.detach().float().clone(), weight.shape[1] - whole, 1 << bits
    if not ends:
        return LowBits.whole(left[:, :0]), left
    upper = _inverse(hessian)
    codes, grids = [], []
    for at in range(0, ends, group):
        end = min(at + group, ends)
        grids.append(grid(left[:, at:end], levels, search))
        errors = torch.zeros_like(left[:, at:end])
        for c in range(at, end):
            column = left[:, c:c + 1]
            codes.append(_codes(column, grids[-1], levels))
            errors[:, c - at:c - at + 1] = error = (column - _value(codes[-1], grids[-1])) / upper[c, c]
            left[:, c + 1:end] -= error * upper[c, c + 1:end]
        left[:, end:] -= errors @ upper[at:end, end:]
    return _affine(torch.cat(codes, 1), grids, bits, group), left[:, ends:].contiguous()


def _inverse(hessian: torch.Tensor) -> torch.Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse; channels that never speak have the damping alone."""
    double = hessian.double()
    mean = float(double.diagonal().mean())
    damped = double + torch.eye(len(double), dtype=double.dtype, device=double.device) * (DAMPING * mean if mean > 0 else 1.0)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()


# --- what methods ask for ------------------------------------------------------------------------------------------

def require_finite(method: str, name: str, tensor: torch.Tensor, what: str = "weights") -> None:
    """Raises UserError for what can't be quantised."""
    if not tensor.is_meta and not bool(torch.isfinite(tensor).all()):
        raise UserError(f"{method}: the {what} of {name} are not all finite numbers; nothing can be rounded by them. Check the "
                        "base.")


def matrix(module: torch.nn.Module) -> torch.Tensor:
    """A linear layer's weight as [out, in]."""
    from transformers.pytorch_utils import Conv1D

    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    return weight.detach().T if isinstance(module, Conv1D) else weight.detach()


Quantizer = Callable[[torch.Tensor], LowBits]
