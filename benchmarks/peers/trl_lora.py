"""TRL's SFTTrainer with its defaults: `trl_lora.py FOLDER`.

Rows go in as prompt and completion, in the workload's order, and the adapter starts from the workload's weights.
`train_runtime` of the trainer is the time.
"""

from __future__ import annotations

import os

import measure
import torch
from _peer import finish, initialise, options, peak_mb, workload
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

FLOOR = peak_mb()


def main() -> None:
    asked = options(__doc__)
    made = workload(asked.folder)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    dtype = getattr(torch, made["dtype"])
    config = SFTConfig(
        output_dir=str(asked.folder / f"trl-{asked.label}"), per_device_train_batch_size=made["batch_rows"],
        num_train_epochs=made["epochs"], max_steps=asked.steps, learning_rate=made["learning_rate"], report_to=[],
        logging_steps=1, save_strategy="no", bf16=dtype == torch.bfloat16, fp16=False,
        use_cpu=not torch.cuda.is_available(), gradient_checkpointing=False, max_length=made["max_tokens"],
        train_sampling_strategy="sequential", disable_tqdm=True)
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(made["path"], dtype=dtype), args=config,
        train_dataset=Dataset.from_list([{"prompt": r["prompt"], "completion": r["completion"]} for r in made["order"]]),
        processing_class=AutoTokenizer.from_pretrained(made["path"]),
        peft_config=LoraConfig(r=made["rank"], lora_alpha=made["alpha"], target_modules="all-linear", task_type="CAUSAL_LM"))
    initialise(trainer.model, asked.folder)
    result = trainer.train()
    peak = peak_mb()
    print(measure.MARK, flush=True)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    own = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
    finish(made, asked.steps, result.metrics["train_runtime"], losses, FLOOR, ("trl", "torch", "transformers", "peft"), peak,
           own_tokens=own)


if __name__ == "__main__":
    main()
