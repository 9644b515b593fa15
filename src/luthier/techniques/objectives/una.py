"""UNA: rated answers alone, as scores that the implicit reward is fitted to.

    L = g(sigmoid(beta · [log π(y | x) - log ρ(y | x)]), score)                                        (`_implicit.py`)

Scores of any range, binary ones, and pairs. Rows without a score are left out, by name.

When it helps: ratings or thumbs in place of pairs, after supervised tuning. Source: Wang et al. 2024, arXiv 2408.15339; the
second stage that UFT is compared with (seed 90).
"""

from __future__ import annotations

from typing import ClassVar

from luthier.techniques.objectives._implicit import Implicit


class Una(Implicit, name="una", seeds=[90]):
    """Learn from rated answers, held to a reference."""

    demonstrations: ClassVar[bool] = False
