"""Privacy: what of the training data can be got out of a model."""
