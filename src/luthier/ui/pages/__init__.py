"""One page a file: what stands on it, and which functions of the lower floors its buttons call."""
