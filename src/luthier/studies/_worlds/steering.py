"""steering: a tiny decision transformer that has learned the known tasks of control; made once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.studies._worlds._trained import TrainedOnWorld
from luthier.studies._worlds.control import SIZE


class Steering(TrainedOnWorld, name="steering"):
    """A decision transformer trained on the subset `known` of a world of control."""

    made: ClassVar[str] = "tiny-decisions"
    of: ClassVar[str] = "control"
    architecture: ClassVar[str] = "decoder"
    width: int = Field(64, ge=16, description="size of the hidden states")
    layers: int = Field(3, ge=1, description="layers")
    epochs: float = Field(12, gt=0, description="passes over the rows")
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate")

    def lesson(self) -> dict[str, Any]:
        return {"use": "fit", "tasks": [{"data": "examples.known"}], "method": "full", "length": {"epochs": self.epochs},
                "learning_rate": self.learning_rate, "batch_rows": 64, "schedule": "cosine", "dtype": "float32",
                "max_tokens_per_example": 128}

    def begin(self, folder: Path) -> None:
        """A model with random weights; its tokenizer knows the tokens of steps, and bytes."""
        import torch

        from luthier.engine.decisions import RETURN, STATE, WORDS, classes
        from luthier.studies._worlds.pretrained import _tokenizer

        tokenizer = _tokenizer([""], 300)
        tokenizer.add_tokens(list(WORDS), special_tokens=True)
        configuration, kind = classes()
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        model = kind(configuration(
            state_size=SIZE, return_id=tokenizer.convert_tokens_to_ids(RETURN), state_id=tokenizer.convert_tokens_to_ids(STATE),
            vocab_size=len(tokenizer), n_positions=128, n_embd=self.width, n_layer=self.layers, n_head=4, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id))
        torch.random.set_rng_state(state)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
