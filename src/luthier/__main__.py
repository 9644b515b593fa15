"""`python -m luthier` is `luthier`."""

import sys

from luthier.cli.main import main

sys.exit(main())
