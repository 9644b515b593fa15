"""Record what AdapterHub's `adapters` computes on a tiny BERT: the oracle of `adapter`, `prefix-tuning` and LoRA soups.

    python -m venv hub && hub/bin/pip install torch adapters && hub/bin/python scripts/make_adapters_fixture.py

writes tests/fixtures/adapters_hub.json: hidden states of bottleneck adapters and of prefixes, norms and first entries of their
gradients, and averages of two LoRAs, in float32. Weights come from a formula, so that the fixture holds results only.
"""

from __future__ import annotations

from importlib.metadata import version

import adapters
import torch
from _fixture import fill, wave, write
from adapters import DoubleSeqBnConfig, LoRAConfig, ParBnConfig, PrefixTuningConfig, SeqBnConfig
from transformers import BertConfig, BertModel

CONFIG = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
          "max_position_embeddings": 16, "type_vocab_size": 2, "pad_token_id": 0}
IDS = [[5, 9, 11, 20, 21], [6, 7, 30, 0, 0]]
AIM = 0.9  # shift of the tensor that the states are multiplied with: its sum is what the gradients are of
# Our method, AdapterHub's configuration, and where the formula of the weights starts: where no activation is dead.
BOTTLENECKS = [
    ("adapter:style=houlsby,reduction=4,train_norms=false,activation=relu", DoubleSeqBnConfig,
     {"reduction_factor": 4, "non_linearity": "relu"}, 2.1),
    ("adapter:style=houlsby,reduction=4,train_norms=false,activation=silu", DoubleSeqBnConfig, {"reduction_factor": 4}, 2.1),
    ("adapter:style=pfeiffer,reduction=4,activation=relu", SeqBnConfig, {"reduction_factor": 4}, 0.5),
    ("adapter:style=pfeiffer,reduction=2,activation=gelu", SeqBnConfig, {"reduction_factor": 2, "non_linearity": "gelu"}, 0.5),
    ("adapter:style=pfeiffer,reduction=4,activation=relu,layers=[1]", SeqBnConfig,
     {"reduction_factor": 4, "leave_out": [0]}, 0.5),
    ("adapter:style=parallel,reduction=2,activation=relu", ParBnConfig, {}, 2.3),
    ("adapter:style=parallel,reduction=4,activation=silu,scale=0.7", ParBnConfig,
     {"reduction_factor": 4, "non_linearity": "swish", "scaling": 0.7}, 0.5),
]
PREFIXES = [("prefix-tuning:tokens=3", {"flat": True}, 0.5),
            ("prefix-tuning:tokens=3,mlp_hidden=6", {"bottleneck_size": 6}, 0.5)]
# Our rule, AdapterHub's strategy.
AVERAGES = [("model-soup:lora=factors", {"combine_strategy": "linear"}),
            ("linear:weights=[1,3]", {"combine_strategy": "linear", "weights": [1, 3]}),
            ("linear:weights=[0.5,-0.2],normalize=false",
             {"combine_strategy": "linear", "weights": [0.5, -0.2], "normalize_weights": False}),
            ("model-soup:lora=svd", {"combine_strategy": "lora_delta_w_svd", "svd_rank": 2})]


def tiny(config: object) -> BertModel:
    """The model with an adapter in use."""
    made = BertModel(BertConfig(**CONFIG, attn_implementation="eager"), add_pooling_layer=False).float()
    fill(made)
    adapters.init(made)
    made.add_adapter("a", config=config)
    made.set_active_adapters("a")
    made.train_adapter("a")
    return made.eval()


def numbers(model: BertModel, weights: list[torch.Tensor], start: float) -> dict:
    """States of the tokens that are there, and the gradients of their sum with the aim; weight n has the shift n + start."""
    with torch.no_grad():
        for n, p in enumerate(weights):
            p.copy_(wave(*p.shape, shift=n + start))
    ids = torch.tensor(IDS)
    states = model(input_ids=ids, attention_mask=(ids > 0).long()).last_hidden_state[ids > 0]
    found = torch.autograd.grad((states * wave(*states.shape, shift=AIM)).sum(), weights)
    assert all(g.norm() > 0.01 for g in found)
    return {"start": start, "states": states.detach().flatten().tolist(),
            "gradients": [{"norm": float(g.norm()), "first": g.flatten()[:6].tolist()} for g in found]}


def bottleneck(method: str, kind: type, given: dict, start: float) -> dict:
    """Weights are ordered by layer, place in it (attention before feed-forward), down before up, weight before bias."""
    model = tiny(kind(**given))
    own = dict(model.named_parameters())
    names = [f"encoder.layer.{i}.{at}.adapters.a.{part}" for i in range(CONFIG["num_hidden_layers"])
             for at in ("attention.output", "output")
             for part in ("adapter_down.0.weight", "adapter_down.0.bias", "adapter_up.weight", "adapter_up.bias")]
    weights = [own[n] for n in names if n in own]
    assert {id(p) for p in weights} == {id(p) for p in own.values() if p.requires_grad}
    return {"method": method, "config": kind.__name__, **numbers(model, weights, start)}


def prefix(method: str, given: dict, start: float) -> dict:
    """The numbers themselves, or P', W1, b1, W2, b2."""
    model = tiny(PrefixTuningConfig(prefix_length=3, **given))
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    order = ["wte.weight", "control_trans.0.weight", "control_trans.0.bias", "control_trans.2.weight", "control_trans.2.bias"]
    names = sorted(own, key=lambda n: next((k for k, end in enumerate(order) if n.endswith(end)), -1))
    weights = [own[n] for n in names]
    return {"method": method, "config": "PrefixTuningConfig", **numbers(model, weights, start)}


def average(rule: str, given: dict) -> dict:
    """A and B of the average of two LoRAs of rank 2 on the query of the first layer; those of LoRA m are waves of 10 m."""
    model = tiny(LoRAConfig(r=2, alpha=2, attn_matrices=["q"]))
    model.add_adapter("b", config=LoRAConfig(r=2, alpha=2, attn_matrices=["q"]))
    factors = {n: model.encoder.layer[0].attention.self.query.loras[n] for n in "ab"}
    with torch.no_grad():
        for m, lora in enumerate(factors.values()):
            for n, p in enumerate((lora.lora_A, lora.lora_B)):
                p.copy_(wave(*p.shape, shift=10 * m + n))
    model.average_adapter("c", ["a", "b"], **given)
    made = model.encoder.layer[0].attention.self.query.loras["c"]
    return {"rule": rule, "strategy": given["combine_strategy"], "A": made.lora_A.flatten().tolist(),
            "B": made.lora_B.flatten().tolist()}


if __name__ == "__main__":
    records = [bottleneck(*case) for case in BOTTLENECKS]
    prefixes, averages = [prefix(*case) for case in PREFIXES], [average(*case) for case in AVERAGES]
    write("adapters_hub", __file__, {name: version(name) for name in ("adapters", "transformers")}, config=CONFIG, ids=IDS,
          aim=AIM, bottlenecks=records, prefixes=prefixes, averages=averages)
    print(f"{len(records)} bottlenecks, {len(prefixes)} prefixes, {len(averages)} averages")
