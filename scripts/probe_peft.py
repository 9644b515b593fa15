"""Which of PEFT's types train with their configuration alone: wrap, the loss falls, save = load, on a tiny Llama.

`python scripts/probe_peft.py` writes `src/luthier/techniques/methods/peft_types.json`.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import torch

from luthier.core.errors import UserError
from luthier.engine import weights
from luthier.engine.batches import collate
from luthier.engine.forward import Forward
from luthier.engine.models import Model, load_base
from luthier.engine.steps.base import Base
from luthier.techniques.methods import peft as method

STEPS = 12
RATE = 1e-2


def probe(name: str, base, batch) -> str:
    """`works`, or why not."""
    method.probed = lambda: {name: "works"}  # the component refuses what was not found to work
    model = load_base(base)
    torch.manual_seed(0)
    model.module.train()
    model = method.Peft(type=name).prepare(model, None)
    trained = [p for p in model.module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    losses = []
    for _ in range(STEPS):
        loss = Forward({"policy": model})("policy", batch).nll().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    model.module.eval()
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        after = float(Forward({"policy": model})("policy", batch).nll().mean())
        if not after < losses[0] - 1e-3:
            return f"the loss did not fall in {STEPS} steps ({losses[0]:.3f} -> {after:.3f})"
        weights.SAVERS["adapter"](model, Path(folder))
        again: Model = load_base(base)
        weights.LOADERS["adapter"](again, Path(folder))
        again.module.eval()
        loaded = float(Forward({"policy": again})("policy", batch).nll().mean())
        if abs(loaded - after) > 1e-4:
            return f"what was saved is not what was trained (loss {after:.4f} -> {loaded:.4f})"
    return "works"


def _llama(folder: Path) -> Path:
    """A tiny Llama, wide enough for the block sizes that PEFT's types have by default."""
    from transformers import AutoConfig, LlamaForCausalLM

    from luthier.engine.models import load_tokenizer, resolve

    config = AutoConfig.from_pretrained(resolve("pico"))
    config.hidden_size, config.intermediate_size, config.head_dim = 256, 512, 64
    config.num_attention_heads = config.num_key_value_heads = 4
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    load_tokenizer(resolve("pico")).save_pretrained(folder)
    return folder


def main() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    from luthier.core.files import Journal
    from luthier.core.rng import Rng
    from luthier.core.step import Ctx
    from luthier.engine.workshop import Engine

    warnings.simplefilter("ignore")
    engine = Engine(threads=1, exact=True)
    with tempfile.TemporaryDirectory() as folder:
        ctx = Ctx(Rng(0), Path(folder), Journal(Path(folder) / "journal.jsonl"), engine)
        base = Base(model=str(_llama(Path(folder) / "llama"))).run({}, ctx)
        model = load_base(base)
        from luthier.core.example import question
        from luthier.engine.rendering import renderer

        render = renderer(model)
        rows = [{"input": render.tokens(question(str(i), f"What is {w}?", f"{w} {w} it is"))} for i, w in
                enumerate(("a module", "a class", "an object", "a list"))]
        batch = collate(rows, list("abcd"), model.tokenizer.pad_token_id)["input"]
        found = {}
        for name in sorted(str(getattr(t, "value", t)) for t in PEFT_TYPE_TO_CONFIG_MAPPING):
            try:
                found[name] = probe(name, base, batch)
            except UserError as error:
                found[name] = str(error).removeprefix(f"PEFT refused {name} on pico: ").splitlines()[0][:160]
            except Exception as error:  # the probe's answer is whatever went wrong
                found[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"
            print(f"{name:24} {found[name]}")
    table = {"peft": version("peft"), "probe": f"Llama of width 256, 2 layers, {STEPS} AdamW steps at {RATE}", "types": found}
    method.TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(sum(v == "works" for v in found.values()), "of", len(found), "work")


if __name__ == "__main__":
    main()
