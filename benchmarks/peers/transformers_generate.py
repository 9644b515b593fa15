"""transformers' own `generate` in bf16, and scoring the naive way: `transformers_generate.py FOLDER`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import measure
import torch
from _peer import options, peak_mb
from _timing import Answers, asked, time_batches
from transformers import AutoModelForCausalLM, AutoTokenizer

FLOOR = peak_mb()
AT_ONCE = 16


@torch.no_grad()
def score(model: Any, prefix: list[int], pieces: list[list[int]]) -> list[float]:
    """Log-probability of each piece after the prefix: everything through the model for each of them."""
    found: list[float] = []
    for i in range(0, len(pieces), AT_ONCE):
        ids = torch.tensor([prefix + p for p in pieces[i:i + AT_ONCE]])
        said = model(input_ids=ids, use_cache=False).logits[:, len(prefix) - 1:-1].float().log_softmax(-1)
        found += said.gather(-1, ids[:, len(prefix):, None]).sum((1, 2)).tolist()
    return found


def main() -> None:
    folder: Path = options(__doc__).folder
    made = asked(folder)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    tokenizer = AutoTokenizer.from_pretrained(made["path"])
    model = AutoModelForCausalLM.from_pretrained(made["path"], dtype=torch.bfloat16).eval()

    def answer(prompts: list[list[int]]) -> Answers:
        ids = torch.tensor(prompts)
        with torch.no_grad():
            said = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                  max_new_tokens=made["new_tokens"], pad_token_id=tokenizer.pad_token_id or 0)
        new = [row[len(prompts[0]):].tolist() for row in said]
        ends = [row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row) for row in new]
        return [(tokenizer.decode(row[:end], skip_special_tokens=True), end) for row, end in zip(new, ends, strict=True)]

    batches = time_batches(made, answer)
    pieces = made["pieces"][:made["naive"]]
    score(model, made["prefix"], pieces[:1])
    began = time.perf_counter()
    values = score(model, made["prefix"], pieces)
    seconds = time.perf_counter() - began
    peak = peak_mb()
    print(measure.MARK, flush=True)
    print(json.dumps({"batches": batches, "score": {"seconds": seconds, "continuations": len(pieces), "values": values},
                      "floor_mb": FLOOR, "maxrss_mb": peak, "versions": measure.versions(("torch", "transformers"))}))


if __name__ == "__main__":
    main()
