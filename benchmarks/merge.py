"""Merging two checkpoints beside copying them, and beside mergekit: `python benchmarks/merge.py [--megabytes 1000] [--json]`.

The two are made once, of random bfloat16 weights in the form of a Llama. Everybody averages them (`linear`, equal weights) from
and to the same disk: `copy` writes both files again and flushes them, which reads as much and writes twice as much as a merge.
Seconds are those of the work, imports not counted; the peak is that of the process tree, pages of files that it maps counted.
mergekit takes part where its environment is: LUTHIER_PEERS/mergekit.

`sparse(folder, gigabytes)` makes a checkpoint of any size that takes no room on disk: zeros that the file system does not keep.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import measure

CONTENDERS = {"copy": "luthier", "luthier": "luthier", "mergekit": "mergekit"}
WIDTH, INNER, HEADS, WORDS = 2048, 5632, 16, 1024
SHARD_BYTES = 2_000_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contenders", default="copy,luthier", help=f"comma-separated, of {', '.join(CONTENDERS)}")
    parser.add_argument("--megabytes", type=int, default=1000, help="size of each checkpoint, about")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=measure.processors())
    parser.add_argument("--work", type=Path, help="folder for the checkpoints; a temporary one if left out")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--out", type=Path, help="file for the result; benchmarks/results/merge.json if left out")
    asked = parser.parse_args()
    names = asked.contenders.split(",")
    if unknown := sorted(set(names) - set(CONTENDERS)):
        parser.error(f"there is no contender '{unknown[0]}'; legal are {', '.join(CONTENDERS)}")
    work = asked.work or Path(tempfile.mkdtemp(prefix="merge-"))
    try:
        given = [checkpoint(work / f"model{seed}", asked.megabytes * 1_000_000, seed) for seed in (1, 2)]

        def run(name: str, environment: str) -> dict[str, Any]:
            shutil.rmtree(work / "out", ignore_errors=True)
            return measure.contend(environment, "merge_run.py", [name, *given, work / "out"], asked.threads)

        runs = measure.interleave({n: CONTENDERS[n] for n in names}, asked.rounds, run, measure.say)
    finally:
        if asked.work is None:
            shutil.rmtree(work, ignore_errors=True)
    result = {"benchmark": "merge", "megabytes": asked.megabytes, "machine": measure.machine(asked.threads),
              "results": {n: measure.summary(r, ("seconds",)) for n, r in runs.items()}}
    measure.write(result, asked.out or measure.RESULTS / "merge.json", asked.json)
    return 1 if any("error" in r for r in result["results"].values()) else 0


def shapes(size: int) -> dict[str, tuple[int, ...]]:
    """Tensors of a Llama of about `size` bytes in bfloat16, by name."""
    layer = {"self_attn.q_proj.weight": (WIDTH, WIDTH), "self_attn.k_proj.weight": (WIDTH, WIDTH),
             "self_attn.v_proj.weight": (WIDTH, WIDTH), "self_attn.o_proj.weight": (WIDTH, WIDTH),
             "mlp.gate_proj.weight": (INNER, WIDTH), "mlp.up_proj.weight": (INNER, WIDTH),
             "mlp.down_proj.weight": (WIDTH, INNER), "input_layernorm.weight": (WIDTH,),
             "post_attention_layernorm.weight": (WIDTH,)}
    own = sum(2 * shape[0] * (shape[1] if len(shape) > 1 else 1) for shape in layer.values())
    layers = {f"model.layers.{i}.{n}": s for i in range(max(1, size // own)) for n, s in layer.items()}
    return {"model.embed_tokens.weight": (WORDS, WIDTH), **layers, "model.norm.weight": (WIDTH,),
            "lm_head.weight": (WORDS, WIDTH)}


def frame(folder: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    """Configuration and tokenizer of such a model: those of `pico` with other sizes."""
    from luthier.engine import pico

    pico.make("pico", folder)
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    layers = sum("input_layernorm" in n for n in tensors)
    config |= {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": layers, "num_attention_heads": HEADS,
               "num_key_value_heads": HEADS, "head_dim": WIDTH // HEADS, "vocab_size": WORDS, "dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def files(folder: Path, tensors: dict[str, tuple[int, ...]]) -> list[tuple[Path, dict[str, Any]]]:
    """The shards with what each holds; the index is written."""
    import torch

    from luthier.engine.tensors import Spec

    shards: list[dict[str, Any]] = [{}]
    for name, shape in tensors.items():
        spec = Spec(torch.bfloat16, shape)
        if shards[-1] and sum(s.bytes for s in shards[-1].values()) + spec.bytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = spec
    paths = [folder / f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    where = {n: path.name for path, shard in zip(paths, shards, strict=True) for n in shard}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return list(zip(paths, shards, strict=True))


def checkpoint(folder: Path, size: int, seed: int) -> Path:
    """A checkpoint of random weights; one that is there already stays."""
    import torch

    from luthier.engine.tensors import TensorFile

    if folder.exists():
        return folder
    tensors = shapes(size)
    frame(folder, tensors)
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randn(INNER * WIDTH, generator=rng).mul_(0.02).bfloat16()
    for path, held in files(folder, tensors):
        with TensorFile(path, held) as file:
            for name, spec in held.items():
                count = torch.Size(spec.shape).numel()
                file.put(name, noise.roll(int(torch.randint(len(noise), (1,), generator=rng)))[:count].reshape(spec.shape))
    return folder


def sparse(folder: Path, gigabytes: float = 16) -> Path:
    """A checkpoint of zeros of this size whose files have holes: the disk holds their headers alone."""
    from luthier.engine.tensors import TensorFile

    tensors = shapes(int(gigabytes * 1e9))
    frame(folder, tensors)
    for path, held in files(folder, tensors):
        with TensorFile(path, held):
            pass
        with path.open("r+b") as file:
            header = 8 + int.from_bytes(file.read(8), "little")
            file.truncate(header + sum(spec.bytes for spec in held.values()))
    return folder


if __name__ == "__main__":
    raise SystemExit(main())
