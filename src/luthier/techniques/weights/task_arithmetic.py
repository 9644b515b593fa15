"""task-arithmetic: W = W0 + scale · sum_i a_i (W_i - W0).

W0 are the base's weights, W_i those of the models, a_i one number each: positive ones add what a tune learned, a negative
one takes it away. When it helps: several skills of one base in one model; forgetting one. Source: Ilharco et al. 2023,
"Editing models with task arithmetic", section 2.
"""

from __future__ import annotations

from luthier.techniques.weights._shared import TaskVectors


class TaskArithmetic(TaskVectors, name="task-arithmetic"):
    """The base and a weighted sum of what each model changed."""
