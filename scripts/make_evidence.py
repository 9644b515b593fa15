"""Write `docs/evidence.md` from the recorded results of the studies (`src/luthier/studies/recorded/`)."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from luthier.core import recorded  # noqa: E402
from luthier.core.files import write_atomic  # noqa: E402
from luthier.pipelines import evidence  # noqa: E402

if __name__ == "__main__":
    path = ROOT / "docs" / "evidence.md"
    write_atomic(path, evidence.page(recorded.records().values()))
    print(f"{path.relative_to(ROOT)}: {len(recorded.records())} studies")
