"""`python -m luthier` is `luthier`."""

from luthier.cli.main import process

process()
