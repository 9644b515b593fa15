"""LLaMA-Factory: `llamafactory_lora.py FOLDER [--packing]`, through the function that `llamafactory-cli train` calls.

Rows go in as instruction and output, in the workload's order, with its empty template, which puts neither a start token
before a row nor a stop token after it: both are written into the texts. The initial weights are its own. With
`--packing` rows are packed without seeing each other (`neat_packing`). `train_runtime` is the time.
"""

from __future__ import annotations

import json
import os
import shutil

import measure
import torch
from _peer import finish, options, peak_mb, workload
from llamafactory.train.tuner import run_exp

FLOOR = peak_mb()


def main() -> None:
    asked = options(__doc__, packing={"action": "store_true"})
    made = workload(asked.folder)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    out = asked.folder / f"llamafactory-{asked.label}{'-packing' if asked.packing else ''}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    rows = [{"instruction": made["bos"] + r["prompt"], "input": "", "output": r["completion"] + made["eos"]}
            for r in made["order"]]
    (out / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    (out / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}), encoding="utf-8")
    packing = {"packing": True, "neat_packing": True, "per_device_train_batch_size": 1}
    run_exp({
        "model_name_or_path": made["path"], "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "lora_rank": made["rank"], "lora_alpha": made["alpha"], "lora_target": "all", "dataset": "rows",
        "dataset_dir": str(out), "template": "empty", "cutoff_len": made["max_tokens"], "output_dir": str(out / "out"),
        "per_device_train_batch_size": made["batch_rows"], "gradient_accumulation_steps": 1,
        "learning_rate": made["learning_rate"], "lr_scheduler_type": "linear", "num_train_epochs": float(made["epochs"]),
        "max_steps": asked.steps, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "bf16": made["dtype"] == "bfloat16", "disable_gradient_checkpointing": True, "disable_shuffling": True,
        "dataloader_num_workers": 0, "use_cpu": not torch.cuda.is_available(), "overwrite_cache": True,
        **(packing if asked.packing else {})})
    peak = peak_mb()
    print(measure.MARK, flush=True)
    seconds = json.loads((out / "out" / "train_results.json").read_text(encoding="utf-8"))["train_runtime"]
    log = [json.loads(line) for line in (out / "out" / "trainer_log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [entry["loss"] for entry in log if entry.get("loss") is not None]
    if asked.packing and asked.steps > 0:  # packs are not our batches: count by the share of the steps that were made
        made["batches"] = made["batches"][:max(1, len(made["batches"]) * asked.steps // max(1, log[-1]["total_steps"]))]
    finish(made, asked.steps, seconds, losses, FLOOR, ("llamafactory", "torch", "transformers", "peft", "trl"), peak)


if __name__ == "__main__":
    main()
