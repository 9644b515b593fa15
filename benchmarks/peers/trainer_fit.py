"""PEFT and transformers' Trainer without anything else: `trainer_fit.py FOLDER`.

It trains on the workload's token ids in the workload's order and, where adapters are trained, from the same initial
weights, so each step's loss can be compared with ours. The classifier is the encoder with mean pooling and one linear
layer; its body drops out at random, so its losses are near ours and not the same. `train_runtime` of the Trainer is the time.
"""

from __future__ import annotations

import os
from typing import Any

import measure
import torch
from _peer import finish, initialise, options, peak_mb, workload
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, AutoModelForCausalLM, Trainer, TrainingArguments

FLOOR = peak_mb()


class Rows(torch.utils.data.Dataset):
    """The workload's rows as token ids and labels."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.rows[place]


class Classifier(torch.nn.Module):
    """Encoder, mean over the tokens, one linear layer."""

    def __init__(self, body: Any, labels: int) -> None:
        super().__init__()
        self.body, self.head = body, torch.nn.Linear(body.config.hidden_size, labels)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        states = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(states.dtype)
        logits = self.head((states * mask).sum(1) / mask.sum(1))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


class Noting(Trainer):
    """A Trainer that keeps each step's loss with all its digits."""

    losses: list[float]

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        found = super().compute_loss(*args, **kwargs)
        self.losses.append(float(found[0] if isinstance(found, tuple) else found))
        return found


def collator(pad: int, classify: bool) -> Any:
    """Rows padded on the right to the longest of the batch."""
    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(r["ids"]) for r in rows)
        ids = torch.tensor([r["ids"] + [pad] * (width - len(r["ids"])) for r in rows])
        mask = torch.tensor([[1] * len(r["ids"]) + [0] * (width - len(r["ids"])) for r in rows])
        if classify:
            return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([r["label"] for r in rows])}
        learned = torch.tensor([r["learned"] + [0] * (width - len(r["ids"])) for r in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(learned == 0, -100)}

    return collate


def main() -> None:
    asked = options(__doc__)
    made = workload(asked.folder)
    classify = made["task"] == "classify"
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(0)
    dtype = getattr(torch, made["dtype"])
    auto = AutoModel if classify else AutoModelForCausalLM
    model = auto.from_pretrained(made["path"], dtype=dtype)
    pad = model.config.pad_token_id or 0
    if made["method"] == "lora":
        model = get_peft_model(model, LoraConfig(r=made["rank"], lora_alpha=made["alpha"], target_modules="all-linear",
                                                 task_type="CAUSAL_LM"))
    if classify:
        model = Classifier(model, len(made["labels"]))
    initialise(model, asked.folder)
    out = asked.folder / f"trainer-{asked.label}"
    arguments = TrainingArguments(
        output_dir=str(out), per_device_train_batch_size=made["batch_rows"], num_train_epochs=made["epochs"],
        max_steps=asked.steps, learning_rate=made["learning_rate"], lr_scheduler_type="linear", weight_decay=0.0,
        logging_steps=1, save_strategy="no", report_to=[], use_cpu=not torch.cuda.is_available(),
        bf16=dtype == torch.bfloat16, gradient_checkpointing=False, train_sampling_strategy="sequential",
        remove_unused_columns=False, disable_tqdm=True)
    trainer = Noting(model=model, args=arguments, train_dataset=Rows(made["order"]), data_collator=collator(pad, classify))
    trainer.losses = []
    result = trainer.train()
    peak = peak_mb()
    print(measure.MARK, flush=True)
    finish(made, asked.steps, result.metrics["train_runtime"], trainer.losses, FLOOR, ("torch", "transformers", "peft"), peak)


if __name__ == "__main__":
    main()
