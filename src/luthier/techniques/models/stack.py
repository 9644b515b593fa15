"""Stack: the parts of a model whose layers are called one after another: embedding, layers, and what stands between and behind.

Nothing is known of any architecture: the layers are found by watching a forward (`engine/layers.py`). A tensor that two parts
share, such as a vocabulary head that is the embedding, belongs to the first of them.

When it helps: training a part of any model by name, splitting it at a layer. Source: none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.core.errors import UserError
from luthier.core.kinds import Body

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model


class StackBody(Body, name="stack"):
    """Embedding, layers and the rest of a model of one stack."""

    def parts(self, model: Model) -> dict[str, torch.nn.Module]:
        """embedding, layers and rest (norms, heads, positions). Raises UserError for a model without one stack of layers."""
        from torch import nn

        from luthier.engine.splitting import stack_of

        try:
            layers = stack_of(model).layers
        except UserError:
            raise UserError(f"stack: the layers of {model.name} are not one stack called one after another.") from None
        embedding = model.module.get_input_embeddings()
        held = {id(m) for part in (embedding, layers) for m in part.modules()}
        rest = [m for m in model.module.modules()
                if id(m) not in held and any(True for _ in m.parameters(recurse=False))]
        return {"embedding": embedding, "layers": layers, "rest": nn.ModuleList(rest)}

    def split(self, model: Model, layer: int) -> tuple[torch.nn.Module, torch.nn.Module]:
        """The embedding with the layers below `layer`, and the others. Raises UserError for a layer that it does not have."""
        from torch import nn

        parts = self.parts(model)
        layers = list(parts["layers"].children())
        if not 0 <= layer <= len(layers):
            raise UserError(f"stack: there is no layer {layer} to split at; legal: 0 to {len(layers)}.")
        return nn.ModuleList([parts["embedding"], *layers[:layer]]), nn.ModuleList([*layers[layer:], parts["rest"]])
