"""Recorded numbers of other implementations (tests/fixtures), and the formula that their inputs come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from luthier.engine.models import Model, load_base


def recorded(name: str) -> Any:
    """The fixture of this name."""
    return json.loads((Path(__file__).parent / "fixtures" / f"{name}.json").read_text(encoding="utf-8"))


def wave(*shape: int, shift: float = 0.0, scale: float = 0.4) -> torch.Tensor:
    """scale sin(0.37 i + shift) in float32, i the place of an entry in the flattened tensor [*shape]."""
    at = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    return (scale * torch.sin(0.37 * at + shift)).float()


def fill(module: torch.nn.Module, shift: float = 0.0) -> None:
    """Weight k of the sorted names is the wave of shift k + `shift`, and one more where its name has a norm's weight."""
    with torch.no_grad():
        for k, (name, p) in enumerate(sorted(module.named_parameters())):
            p.copy_(wave(*p.shape, shift=k + shift) + (name.lower().endswith("norm.weight")))


def far(found: torch.Tensor, wanted: Any) -> float:
    """The largest distance from recorded numbers, in shares of the largest of them."""
    aim = torch.as_tensor(wanted, dtype=torch.float64).reshape(found.shape)
    return float((found.detach().double() - aim).abs().max() / aim.abs().max())


def apart(gradients: Sequence[torch.Tensor], records: Sequence[dict[str, Any]]) -> float:
    """The largest distance of gradients from their recorded norms and first entries, in shares of the norms."""
    found = []
    for g, r in zip(gradients, records, strict=True):
        first = (g.flatten()[:len(r["first"])] - torch.tensor(r["first"])).abs().max()
        found += [float(first) / r["norm"], abs(float(g.norm()) / r["norm"] - 1)]
    return max(found)


# --- what AdapterHub was recorded on -------------------------------------------------------------------------------

def tiny_bert(base: Any) -> Model:
    """Its model, which reads no text."""
    from transformers import BertConfig, BertModel

    config = recorded("adapters_hub")["config"]
    made = BertModel(BertConfig(**config), add_pooling_layer=False).float().requires_grad_(False)
    fill(made)
    deaf = type("Deaf", (SimpleNamespace,), {"__len__": lambda self: config["vocab_size"]})(all_special_ids=[0])
    return replace(load_base(base), module=made.eval(), tokenizer=deaf, limit=config["max_position_embeddings"])


def as_recorded(model: Model, weights: list[torch.Tensor], record: dict[str, Any]) -> float:
    """The largest distance of states, and of gradients of the weights once these are waves; in shares of the largest."""
    found, mask = recorded("adapters_hub"), torch.tensor(recorded("adapters_hub")["ids"]) > 0
    with torch.no_grad():
        for n, p in enumerate(weights):
            p.copy_(wave(*p.shape, shift=n + record["start"]))
    said = model.module.eval()(input_ids=torch.tensor(found["ids"]), attention_mask=mask.long()).last_hidden_state[mask]
    gradients = torch.autograd.grad((said * wave(*said.shape, shift=found["aim"])).sum(), weights)
    return max(far(said, record["states"]), apart(gradients, record["gradients"]))
