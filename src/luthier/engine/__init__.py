"""The workshop that every technique is given: loading, rendering, training, generation, statistics, execution."""
