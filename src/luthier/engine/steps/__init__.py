"""Steps that know kinds of components only: ingest, split, index, fit, evaluate, repeat."""
