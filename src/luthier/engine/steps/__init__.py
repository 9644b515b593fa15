"""Steps that any recipe builds on: base, fit, repeat. They know kinds of components only."""
