"""Whole jobs: one YAML recipe each and at most one file of steps of its own."""
