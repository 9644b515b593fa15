"""Which of PEFT's types train with their configuration alone: wrap, the loss falls, save = load, on three tiny models.

`python scripts/probe_peft.py [ARCHITECTURE …]` writes `src/luthier/techniques/methods/peft_types.json`; columns of
architectures that are not named stay as they are, as long as they are of the same PEFT.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch

from luthier.core.errors import UserError
from luthier.engine import weights
from luthier.engine.batches import TokenBatch, collate
from luthier.engine.forward import Forward
from luthier.engine.models import Model, load_base
from luthier.engine.steps.base import Base
from luthier.techniques.methods import peft as method

STEPS = 12
RATES = (1e-2, 1e-3)  # the second where the loss does not fall at the first
WIDTH = 256  # wide enough for the block sizes that PEFT's types have by default
ARCHITECTURES = {"encoder": "pico-encoder", "decoder": "pico", "encoder-decoder": "pico-encoder-decoder"}
Loss = Callable[[Model], torch.Tensor]
STILL = "the loss did not fall"


def probe(name: str, base: Any, loss: Loss, rate: float) -> str:
    """`works`, or why not."""
    method.probed = lambda: {name: method.WORKS}  # the component refuses what was not found to work
    model = load_base(base)
    torch.manual_seed(0)
    model.module.train()
    model = method.Peft(type=name).prepare(model, None)
    trained = [p for p in model.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    first = None
    for _ in range(STEPS):
        value = loss(model)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        first = float(value) if first is None else first
    model.module.eval()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        after = float(loss(model))
        if not after < first - 1e-3:
            return f"{STILL} in {STEPS} steps ({first:.3f} -> {after:.3f})"
        weights.SAVERS["adapter"](model, Path(folder))
        again: Model = load_base(base)
        weights.LOADERS["adapter"](again, Path(folder))
        again.module.eval()
        loaded = float(loss(again))
        if abs(loaded - after) > 1e-4:
            return f"what was saved is not what was trained (loss {after:.4f} -> {loaded:.4f})"
    return method.WORKS


def wide(package: str, folder: Path) -> Path:
    """The pico model of an architecture, as wide as `WIDTH`."""
    from transformers import AutoConfig

    from luthier.engine.models import architecture_of, auto_class, load_tokenizer, resolve

    config = AutoConfig.from_pretrained(resolve(package))
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "head_dim": WIDTH // 4, "d_model": WIDTH, "d_ff": 2 * WIDTH,
             "d_kv": WIDTH // 4, "num_key_value_heads": 4}
    for name in [n for n in sizes if n in config.to_dict()]:
        setattr(config, name, sizes[name])
    torch.manual_seed(0)
    auto_class(architecture_of(resolve(package))).from_config(config).save_pretrained(folder)
    load_tokenizer(resolve(package)).save_pretrained(folder)
    return folder


def rows(model: Model) -> TokenBatch:
    """Four short rows that the model's architecture can learn from."""
    from luthier.core.example import question
    from luthier.engine.rendering import renderer

    render = renderer(model)
    read = render.text if model.architecture == "encoder" else render.tokens
    made = [{"input": read(question(str(i), f"What is {w}?", f"{w} {w} it is"))} for i, w in
            enumerate(("a module", "a class", "an object", "a list"))]
    found: TokenBatch = collate(made, list("abcd"), model.tokenizer.pad_token_id)["input"]  # type: ignore[arg-type]
    return found


def loss_of(model: Model) -> Loss:
    """Of answers; of an encoder, how well a fixed layer tells the rows apart by its pooled states."""
    batch = rows(model)
    if model.architecture != "encoder":
        return lambda m: Forward({"policy": m})("policy", batch).nll().mean()
    told = torch.randn(WIDTH, 4, generator=torch.Generator().manual_seed(1)) / WIDTH ** 0.5
    return lambda m: torch.nn.functional.cross_entropy(Forward({"policy": m})("policy", batch).pooled() @ told, torch.arange(4))


def said(name: str, base: Any, loss: Loss) -> str:
    """What came of a probe, in a line."""
    try:
        for rate in RATES:
            told = probe(name, base, loss, rate)
            if not told.startswith(STILL):
                break
        return told
    except UserError as error:
        return str(error).removeprefix(f"PEFT refused {name} on wide: ").splitlines()[0][:160]
    except Exception as error:  # the probe's answer is whatever went wrong
        return f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"


def main() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from luthier.core.files import Journal
    from luthier.core.rng import Rng
    from luthier.core.step import Ctx
    from luthier.engine.workshop import Engine

    warnings.simplefilter("ignore")
    engine = Engine(threads=1, exact=True)
    known = (str(getattr(t, "value", t)) for t in PEFT_TYPE_TO_CONFIG_MAPPING)
    types = sorted(n for n in known if not n.startswith("LUTHIER_"))  # ours are methods of their own
    wanted = sys.argv[1:] or list(ARCHITECTURES)
    kept = method.table() if method.table().get("peft") == version("peft") else {"types": {}}
    found: dict[str, dict[str, str]] = {name: dict(kept["types"].get(name, {})) for name in types}
    with tempfile.TemporaryDirectory() as folder:
        for architecture in wanted:
            place = Path(folder) / architecture
            ctx = Ctx(Rng(0), place / "step", Journal(place / "journal.jsonl"), engine)
            ctx.folder.mkdir(parents=True)
            base = Base(model=str(wide(ARCHITECTURES[architecture], place / "wide"))).run({}, ctx)
            loss = loss_of(load_base(base))
            for name in types:
                found[name][architecture] = said(name, base, loss)
                print(f"{architecture:16} {name:24} {found[name][architecture]}", flush=True)
    about = f"a Bert, a Llama and a T5 of width {WIDTH}, 2 layers, {STEPS} AdamW steps at {RATES[0]} or {RATES[1]}"
    there = [a for a in ARCHITECTURES if all(a in cells for cells in found.values())]
    found = {name: {a: cells[a] for a in there} for name, cells in found.items()}
    table = {"peft": version("peft"), "probe": about, "architectures": there, "types": found}
    method.TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    for architecture in there:
        works = sum(cells[architecture] == method.WORKS for cells in found.values())
        print(works, "of", len(found), "work on the", architecture)


if __name__ == "__main__":
    main()
