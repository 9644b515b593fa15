"""Record what MeteoRA's own layer computes: the oracle of `meteora`.

    git clone https://github.com/NJUDeepEngine/meteora && python scripts/make_meteora_fixture.py meteora

writes tests/fixtures/meteora.json: answers of one linear layer with a gate and adapters, by both of its ways, and gradients,
in float32. Its kernels for a GPU are left out; weights come from a formula, so that the fixture holds results only.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import torch
from _fixture import revision, wave, write
from torch import nn

ADAPTERS, RANK, INPUTS, OUTPUTS, TOKENS = 5, 2, 8, 6, 12
CASES = [(1, 1.0), (2, 1.0), (3, 1.0), (2, 4.0)]  # k, temperature


def linear(inputs: int, outputs: int, shift: float) -> nn.Linear:
    """With the wave of this shift for a weight."""
    made = nn.Linear(inputs, outputs, bias=False)
    made.weight.data.copy_(wave(outputs, inputs, shift=shift))
    return made


def record(top_k: int, temperature: float) -> dict:
    """Shifts: base 0, gate 1, A [adapters x rank, in] 2, B [out, adapters x rank] 3, x 4; the scale of adapter i is i + 1."""
    from MoELoRA.layer import MoELinear

    layer = MoELinear.__new__(MoELinear)
    nn.Module.__init__(layer)
    layer.base_layer, layer.moe_gate = linear(INPUTS, OUTPUTS, 0), linear(INPUTS, ADAPTERS, 1)
    layer.lora_A, layer.lora_B = linear(INPUTS, ADAPTERS * RANK, 2), linear(ADAPTERS * RANK, OUTPUTS, 3)
    names = [f"a{i}" for i in range(ADAPTERS)]
    layer.lora_dropout = nn.ModuleDict({n: nn.Identity() for n in names})
    for name, value in {"_disable_adapters": False, "merged_adapters": [], "loras": ADAPTERS, "top_k": top_k, "T": temperature,
                        "r": dict.fromkeys(names, RANK), "scaling": {n: i + 1.0 for i, n in enumerate(names)},
                        "lora_index": {n: i for i, n in enumerate(names)}}.items():
        setattr(layer, name, value)
    layer._extra_initialize()
    found, weights = {}, [layer.moe_gate.weight, layer.lora_A.weight, layer.lora_B.weight]
    for mode in ("batch", "all"):
        layer.fwd_inner_loop_mode, layer.fwd_prepared = mode, False
        layer.train(mode == "all")
        x = wave(2, TOKENS // 2, INPUTS, shift=4, scale=2.0)
        out, _ = layer(x)
        found[mode] = out.detach().flatten().tolist()
    gradients = torch.autograd.grad((out * wave(*out.shape, shift=0.9)).sum(), weights)
    return {"top_k": top_k, "temperature": temperature, "batched": found["batch"], "looped": found["all"],
            "gradients": [g.flatten().tolist() for g in gradients]}


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    package = ModuleType("MoELoRA")
    package.__path__ = [f"{sys.argv[1]}/MoELoRA"]
    sys.modules["MoELoRA"] = package  # its own __init__ needs a PEFT of its time
    for name in ("layer_ops_triton", "layer_ops_triton_function"):
        sys.modules[f"MoELoRA.layer_ops.{name}"] = MagicMock()
    tuners = ModuleType("MoELoRA.tuners_utils")
    from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
    tuners.BaseTunerLayer, tuners.check_adapters_to_merge = BaseTunerLayer, check_adapters_to_merge
    sys.modules["MoELoRA.tuners_utils"] = tuners
    sizes = SimpleNamespace(adapters=ADAPTERS, rank=RANK, inputs=INPUTS, outputs=OUTPUTS, tokens=TOKENS)
    records = [record(*case) for case in CASES]
    write("meteora", __file__, {"NJUDeepEngine/meteora": revision(sys.argv[1])}, sizes=vars(sizes), records=records)
    print(f"{len(records)} cases")
