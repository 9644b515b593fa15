"""llama.cpp on the 4-bit file, one prompt after the other: `llamacpp_generate.py FOLDER`."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path

import measure
from _peer import options, peak_mb
from _timing import Answers, asked, time_batches
from llama_cpp import Llama

FLOOR = peak_mb()


def main() -> None:
    folder: Path = options(__doc__).folder
    made = asked(folder)
    threads = int(os.environ["OMP_NUM_THREADS"])
    if not made["gguf"]:
        raise SystemExit("llama.cpp has a file of its own format for gemma3-270m only")
    model = Llama(made["gguf"], n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)

    def answer(prompts: list[list[int]]) -> Answers:
        found: Answers = []
        for prompt in prompts:
            model.reset()
            new = list(islice(model.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0), made["new_tokens"]))
            end = new.index(model.token_eos()) if model.token_eos() in new else len(new)
            found.append((model.detokenize(new[:end]).decode("utf-8", "replace"), end))
        return found

    made["batches"] = [1]
    batches = time_batches(made, answer)
    peak = peak_mb()
    print(measure.MARK, flush=True)
    print(json.dumps({"batches": batches, "floor_mb": FLOOR, "maxrss_mb": peak,
                      "versions": measure.versions(("llama-cpp-python",))}))


if __name__ == "__main__":
    main()
