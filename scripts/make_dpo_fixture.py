"""Record what TRL's DPOTrainer computes on a tiny model: the oracle of `dpo`.

    python -m venv trl && trl/bin/pip install torch trl && trl/bin/python scripts/make_dpo_fixture.py

writes tests/fixtures/dpo_trl.json: the batches that TRL made of a few rows, and its loss, log-probabilities, rewards and
gradients in float32. Weights come from a formula, so that the fixture holds numbers only; the test builds the same
model from `config` and `weights`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, __version__
from trl import DPOConfig, DPOTrainer
from trl import __version__ as trl_version

TARGET = Path(__file__).resolve().parents[1] / "tests" / "fixtures" / "dpo_trl.json"
CONFIG = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
          "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1,
          "bos_token_id": 2, "tie_word_embeddings": False}
# weight[k][i] = (1 for a norm, else 0) + scale sin(0.37 i + k + shift), k the number of the weight.
WEIGHTS = {"scale": 0.4, "frequency": 0.37, "policy_shift": 0.3, "reference_shift": 0.0}
ROWS = [
    {"prompt": "t5 t9 t11", "chosen": " t20 t21 t22", "rejected": " t30 t31"},
    {"prompt": "t6", "chosen": " t40", "rejected": " t41 t42 t43 t44 t45"},
    {"prompt": "t7 t7 t12 t13 t14", "chosen": " t15 t16", "rejected": " t15 t17"},
    {"prompt": "t8 t10", "chosen": " t33 t34 t35 t36", "rejected": " t37"},
]
BETAS = (0.1, 0.7)


def model(shift: float) -> LlamaForCausalLM:
    """The tiny model with the weights of the formula."""
    made = LlamaForCausalLM(LlamaConfig(**CONFIG)).float()
    with torch.no_grad():
        for k, (name, p) in enumerate(made.named_parameters()):
            at = torch.arange(p.numel(), dtype=torch.float64).view(p.shape)
            wave = WEIGHTS["scale"] * torch.sin(WEIGHTS["frequency"] * at + k + shift)
            p.copy_((wave + ("norm" in name)).float())
    return made.eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    words = ["<pad>", "<eos>", "<bos>", *(f"t{i}" for i in range(3, CONFIG["vocab_size"]))]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>")


def record(beta: float) -> dict:
    """TRL's numbers for one beta."""
    policy = model(WEIGHTS["policy_shift"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(output_dir=folder, beta=beta, report_to=[], use_cpu=True, bf16=False, max_length=None,
                              per_device_train_batch_size=len(ROWS), gradient_checkpointing=False, disable_dropout=True)
        trainer = DPOTrainer(policy, model(WEIGHTS["reference_shift"]), args=arguments, processing_class=tokenizer(),
                             train_dataset=Dataset.from_list(ROWS))
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(len(ROWS))])
        trainer.model.eval()
        loss = trainer._compute_loss(trainer.model, batch, return_outputs=False)
        loss.backward()
        measured = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    gradients = {n: p.grad.flatten()[:6].tolist() for n, p in policy.named_parameters()}
    norm = float(torch.stack([p.grad.norm() for p in policy.parameters()]).norm())
    return {"beta": beta, "loss": float(loss.detach()), "measured": measured, "gradients": gradients, "gradient_norm": norm,
            "batch": {name: tensor.tolist() for name, tensor in batch.items()}}


if __name__ == "__main__":
    found = {"made_by": "scripts/make_dpo_fixture.py", "versions": {"trl": trl_version, "transformers": __version__,
             "torch": torch.__version__}, "config": CONFIG, "weights": WEIGHTS, "records": [record(b) for b in BETAS]}
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for row in found["records"]:
        print(row["beta"], row["loss"], row["measured"])
