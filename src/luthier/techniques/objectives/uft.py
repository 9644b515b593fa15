"""UFT: demonstrations and feedback in one training, both as scores that the implicit reward is fitted to.

    L = g(sigmoid(beta · [log π(y | x) - log ρ(y | x)]), score),     score 1 for a demonstration       (`_implicit.py`)

Rows without `meta["score"]` are demonstrations, rows with one feedback, pairs both. Their ratio is that of the data: several
files in proportions are `tasks: [{data: {demos.train: 1, ratings.train: 1}, objective: uft}]`. The reference is the base,
asked before training, so a full fine-tuning needs no second model. With answers of twenty tokens the paper's beta of 0.01
hardly leaves the middle of the sigmoid; 0.1 does.

When it helps: demonstrations and ratings, where tuning on one after the other would undo the first. Source: Wang, Bi, Zhu et
al. 2024, arXiv 2410.21438 (seed 90); UNA, arXiv 2408.15339.
"""

from __future__ import annotations

from luthier.techniques.objectives._implicit import Implicit


class Uft(Implicit, name="uft", seeds=[90]):
    """Learn demonstrations and rated answers together, held to a reference."""
