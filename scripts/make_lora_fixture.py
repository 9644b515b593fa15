"""Record what loralib, the package of LoRA's authors, computes in a tiny Llama: the oracle of `lora`.

    python -m venv lora && lora/bin/pip install torch transformers loralib && lora/bin/python scripts/make_lora_fixture.py

writes tests/fixtures/lora_loralib.json: logits, gradients of A and B, the merged weights of a layer and the logits with them,
in float32. Weights come from a formula, so that the fixture holds results only.
"""

from __future__ import annotations

from importlib.metadata import version

import loralib
import torch
from _fixture import fill, wave, write
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = {"vocab_size": 24, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
          "num_key_value_heads": 1, "max_position_embeddings": 32, "tie_word_embeddings": False}
IDS = [[5, 9, 11, 20], [6, 7, 7, 3]]
AIM = 0.9  # shift of the tensor that the logits are multiplied with: its sum is what the gradients are of
LAYERS = ("q_proj", "v_proj")
CASES = [(2, 2), (3, 12), (4, 1)]  # rank, alpha


def record(rank: int, alpha: float) -> dict:
    """A of layer n is the wave of shift 2 n, B of 2 n + 1; layers in the order of their names."""
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).float()
    fill(model)
    model.requires_grad_(False)
    weights = []
    for n, name in enumerate(sorted(n for n, _ in model.named_modules() if n.endswith(LAYERS))):
        own = model.get_submodule(name)
        made = loralib.Linear(own.in_features, own.out_features, r=rank, lora_alpha=alpha, bias=False)
        made.weight.data.copy_(own.weight)
        for k, p in enumerate((made.lora_A, made.lora_B)):
            p.data.copy_(wave(*p.shape, shift=2 * n + k))
            weights.append(p)
        model.set_submodule(name, made)
    model.train()
    logits = model(input_ids=torch.tensor(IDS)).logits
    gradients = torch.autograd.grad((logits * wave(*logits.shape, shift=AIM)).sum(), weights)
    model.eval()  # here loralib adds the product to the weights
    with torch.no_grad():
        merged = model(input_ids=torch.tensor(IDS)).logits
    layer = f"model.layers.1.self_attn.{LAYERS[1]}"
    return {"rank": rank, "alpha": alpha, "logits": logits.detach().flatten().tolist(),
            "gradients": [{"norm": float(g.norm()), "first": g.flatten()[:6].tolist()} for g in gradients],
            "merged": {"layer": layer, "weight": model.get_submodule(layer).weight.flatten().tolist(),
                       "logits": merged.flatten().tolist()}}


if __name__ == "__main__":
    records = [record(*case) for case in CASES]
    write("lora_loralib", __file__, {name: version(name) for name in ("loralib", "transformers")}, config=CONFIG, ids=IDS,
          aim=AIM, layers=LAYERS, records=records)
    print(f"{len(records)} cases")
