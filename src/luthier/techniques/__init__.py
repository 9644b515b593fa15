"""One technique, one file; rooms in the order in which data flows."""
