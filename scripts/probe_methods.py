"""Write `docs/methods-probe.md`: what every method costs and allows, measured on three tiny models, and PEFT's types.

`python scripts/probe_methods.py` measures the methods anew and reads `peft_types.json`, which `scripts/probe_peft.py` writes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from luthier.core.files import write_atomic  # noqa: E402
from luthier.engine.workshop import Engine, quiet  # noqa: E402
from luthier.pipelines import methods_probe  # noqa: E402
from luthier.techniques.methods.peft import TABLE, table  # noqa: E402

PAGE = ROOT / "docs" / "methods-probe.md"
INTRO = """# What methods cost and allow

Measured by `luthier list methods --probe`; `python scripts/probe_methods.py` writes this page. Nothing in the tables is typed
in.

Each method trains a tiny encoder, decoder and encoder-decoder with random weights (width 64, 2 layers) for 12 steps by its
defaults. *Trained* counts what requires a gradient, and its share of the base. *Extra work* is the FLOP of a forward of the
loaded result over those of the base. *Merges*: the result can be had as weights of the base's own kind, which say the same.
*Two at once*: two results loaded together say something else than either alone. *Optimizer*: bytes of AdamW's states.
*Step / lora*: processor time of a step over that of `lora`. *8-bit base*: it trains where linear layers hold 8-bit numbers,
and leaves these as they are (a stand-in for a quantised base, which needs a GPU). Ratios of so small models are theirs alone.
"""


def peft_types() -> list[str]:
    """The table of PEFT's types."""
    found = table()
    told = ["## Methods of PEFT, by `peft:{type: …}`", "",
            f"PEFT {found['peft']}; {found['probe']}. A type works where wrapping a model by its configuration alone lets the "
            "loss fall, and gives the same when saved and loaded.", "",
            f"| type | {' | '.join(found['architectures'])} |", f"|---|{'---|' * len(found['architectures'])}"]
    for name, cells in found["types"].items():
        told.append(f"| {name} | {' | '.join('works' if c == 'works' else c.replace('|', '/') for c in cells.values())} |")
    return told


def _say(row: methods_probe.Row) -> None:
    print(row.method, row.architecture, row.refused or row.cells, flush=True)


def main() -> None:
    quiet()
    with TemporaryDirectory() as folder, methods_probe.quietly():
        rows = list(methods_probe.probe(Engine(threads=1, exact=True), Path(folder), told=_say))
    unknown = f"{100 * methods_probe.unknown_share(rows):.1f} % of the cells could not be measured."
    lines = [INTRO, *methods_probe.markdown(rows), "", unknown, "", *(peft_types() if TABLE.exists() else [])]
    write_atomic(PAGE, "\n".join(lines).rstrip() + "\n")
    print(f"{PAGE.relative_to(ROOT)}: {len(rows)} rows, {unknown}")


if __name__ == "__main__":
    main()
