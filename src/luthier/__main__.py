"""`python -m luthier` is `luthier`."""

import sys

try:
    from luthier.cli.main import process
except KeyboardInterrupt:  # stopped before there is anything to go on with
    sys.exit(130)

process()
