"""LLaVA: a picture encoder g, a projector W and a language model as one model, loadable by plain transformers.

    Z = g(picture) at layer `feature_layer`, first place (CLS) left out: [places, width of g];   H = W Z: [places, width of LM]

H stands where the prompt has `<image>` tokens, `places` of them a picture. W is one linear map, or of two with GELU between
(LLaVA-1.5). transformers' own projector is linear_2 ∘ act ∘ linear_1: `linear` has no activation, and an identity in linear_2
that belongs to no part, so that what is learned is exactly one map W, and is saved where every other tool looks for it.

When it helps: a text model that shall answer about pictures. Source: Liu, Li, Wu, Lee 2023, arXiv 2304.08485 (seed 137).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.kinds import Body

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model

TOKEN = "<image>"
PARTS = ("vision", "projector", "language")


class Llava(Body, name="llava", seeds=[137]):
    """Vision, projector and language of a LLaVA model."""

    names: ClassVar[tuple[str, ...]] = PARTS
    projector: Literal["linear", "mlp2x_gelu"] = Field("linear", description="one linear map, or two with GELU between")
    feature_layer: int = Field(-2, le=-1, description="whose states are projected; -2 is the layer before the last")
    keep_first: bool = Field(False, description="project the first place (CLS) too")

    def make(self, vision: Path, language: Path, folder: Path) -> None:
        """Write the model of a picture encoder's and a language model's folder: their weights, and a projector drawn anew.

        Raises:
            UserError: the first folder holds no picture encoder, or `feature_layer` is none of its layers.
        """
        import torch
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForCausalLM, LlavaConfig

        local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        seeing = AutoConfig.from_pretrained(vision, **local)
        seeing = getattr(seeing, "vision_config", seeing)
        if not hasattr(seeing, "patch_size"):
            raise UserError(f"{vision} holds no picture encoder: its config has no patch_size. Give one such as CLIP's.")
        if -self.feature_layer > seeing.num_hidden_layers + 1:
            raise UserError(f"llava: feature_layer = {self.feature_layer}, but the picture encoder has "
                            f"{seeing.num_hidden_layers} layers: from -1 to {-seeing.num_hidden_layers - 1}.")
        tokenizer, words = self._tokenizer(language)
        speaker = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32, use_safetensors=True, **local)
        table: Any = speaker.get_input_embeddings()
        if words > table.num_embeddings:
            speaker.resize_token_embeddings(words, mean_resizing=False)
        places = (seeing.image_size // seeing.patch_size) ** 2 + self.keep_first
        config = LlavaConfig(
            vision_config=seeing, text_config=speaker.config, image_token_index=tokenizer.convert_tokens_to_ids(TOKEN),
            projector_hidden_act="gelu" if self.projector == "mlp2x_gelu" else "linear",
            vision_feature_layer=self.feature_layer, image_seq_length=places,
            vision_feature_select_strategy="full" if self.keep_first else "default",
            tie_word_embeddings=bool(speaker.config.tie_word_embeddings))
        model = self._joined(config, vision, speaker, local)
        model.save_pretrained(folder, safe_serialization=True)
        tokenizer.save_pretrained(folder)
        AutoImageProcessor.from_pretrained(vision, **local).save_pretrained(folder)

    @staticmethod
    def _tokenizer(language: Path) -> tuple[Any, int]:
        """The language model's tokenizer with the token of pictures, and how many ids there are then."""
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(language, local_files_only=True, trust_remote_code=False)
        tokenizer.add_special_tokens({"additional_special_tokens": [TOKEN]}, replace_extra_special_tokens=False)
        return tokenizer, len(tokenizer)

    def _joined(self, config: Any, vision: Path, speaker: Any, local: dict[str, Any]) -> Any:
        import torch
        from transformers import AutoModel, LlavaForConditionalGeneration

        state = torch.random.get_rng_state()
        torch.manual_seed(0)  # the projector: the same of the same two models
        try:
            model = LlavaForConditionalGeneration(config)
        finally:
            torch.random.set_rng_state(state)
        eyes = AutoModel.from_pretrained(vision, dtype=torch.float32, use_safetensors=True, **local)
        eyes = getattr(eyes, "vision_model", eyes)
        tower = model.model.vision_tower
        inner = getattr(tower, "vision_model", tower)
        inner.load_state_dict(getattr(eyes, "vision_model", eyes).state_dict())
        model.model.language_model.load_state_dict(speaker.base_model.state_dict())
        with torch.no_grad():
            model.lm_head.weight.copy_(speaker.get_output_embeddings().weight)
            last = model.model.multi_modal_projector.linear_2
            if self.projector == "linear":
                last.weight.copy_(torch.eye(len(last.weight)))
                last.bias.zero_()
        return model

    def parts(self, model: Model) -> dict[str, torch.nn.Module]:
        """vision, projector (of a linear one its first map alone) and language. Raises UserError for another model."""
        from torch import nn

        inner = model.module.get_base_model() if hasattr(model.module, "get_base_model") else model.module
        trunk: Any = getattr(inner, "model", None)
        if not hasattr(trunk, "multi_modal_projector"):
            raise UserError(f"llava: {model.name} has no projector between a picture encoder and a language model. Make one "
                            "with the step join-models.")
        projector = trunk.multi_modal_projector
        linear = inner.config.projector_hidden_act == "linear"
        return {"vision": trunk.vision_tower, "projector": projector.linear_1 if linear else projector,
                "language": nn.ModuleList([trunk.language_model, inner.lm_head])}

    def split(self, model: Model, layer: int) -> tuple[torch.nn.Module, torch.nn.Module]:
        """The layers of the language model below `layer`, and the others. Raises UserError for a layer it does not have."""
        from torch import nn

        layers = list(self.parts(model)["language"][0].layers)  # type: ignore[index]
        if not 0 <= layer <= len(layers):
            raise UserError(f"llava: there is no layer {layer} to split at; legal: 0 to {len(layers)}.")
        return nn.ModuleList(layers[:layer]), nn.ModuleList(layers[layer:])
