"""Pictures: how a model that reads them is shown some.

In the ids of a row a picture is `places` tokens `<image>`; the model puts what its vision part sees in their stead. The pixels
travel beside the ids as pieces [pictures of the row, 3, height, width] (`Tokens.pieces`) and are read from their files when a
batch is made, so that no more than a batch of them is in memory.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.identity import digest, hash_file

PROCESSOR = "preprocessor_config.json"
WITHIN = re.compile(r"data:image/[a-z]+;base64,")  # a picture that stands in its row itself
NAME = "pixel_values"


@dataclass(frozen=True)
class Pictures:
    """The processor of a model, the token that stands for pictures, and how many of it stand for one."""

    processor: Any = field(repr=False, compare=False)
    token: str
    token_id: int
    places: int

    def shown(self, example: Example) -> Example:
        """The example with its pictures as tokens within the text beside them; each stands on a line of its own."""
        return replace(example, turns=tuple(self._shown(t) for t in example.turns))

    def _shown(self, turn: Turn) -> Turn:
        if all(p.type != "image" for p in turn.parts):
            return turn
        parts: list[Part] = []
        waiting: list[str] = []  # pictures before the first text of the turn
        for part in turn.parts:
            if part.type == "image" and parts and parts[-1].type == "text":
                parts[-1] = replace(parts[-1], value=f"{parts[-1].value}\n{self.token * self.places}")
            elif part.type == "image":
                waiting.append(self.token * self.places)
            elif part.type == "text" and waiting:
                parts.append(replace(part, value="\n".join([*waiting, part.value])))
                waiting = []
            else:
                parts.append(part)
        return replace(turn, parts=(*parts, *((Part("\n".join(waiting), name="content"),) if waiting else ())))

    def pieces(self, example: Example) -> dict[str, Pixels]:
        """The pixels of an example's pictures in the order in which they are shown; empty without any."""
        paths = paths_of(example)
        return {NAME: Pixels(tuple(paths), self)} if paths else {}

    def check(self, example: Example, ids: Sequence[int]) -> None:
        """Raises UserError where the row's text holds marks of pictures that are not there."""
        found, wanted = sum(i == self.token_id for i in ids), self.places * len(paths_of(example))
        if found != wanted:
            raise UserError(f"Row {example.id} has {len(paths_of(example))} pictures, but {found // self.places or 1} marks "
                            f"{self.token} in its text. Give one picture for each mark, in the order of the marks.")

    def save(self, folder: Path) -> None:
        """Write the processor's settings beside the weights."""
        self.processor.save_pretrained(folder)


@dataclass(frozen=True)
class Pixels:
    """The pictures of a row; as an array [pictures, 3, height, width], float32, when it is asked for."""

    paths: tuple[str, ...]
    pictures: Pictures = field(repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def key(self) -> list[str]:
        """Hash of each picture: what an answer to them depends on."""
        return [digest(p) if WITHIN.match(p) else hash_file(Path(p)) for p in self.paths]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        made = self.pictures.processor(images=[opened(p) for p in self.paths], return_tensors="np")[NAME]
        return np.asarray(made, dtype=dtype or np.float32)


def paths_of(example: Example) -> list[str]:
    """The files of an example's pictures, in order."""
    return [str(p.value) for t in example.turns for p in t.parts if p.type == "image"]


def opened(path: str | Path) -> Any:
    """A picture in RGB, of a file or of a text `data:image/TYPE;base64,…`.

    Raises:
        UserError: the file is missing, or there is no picture in it.
    """
    from PIL import Image, UnidentifiedImageError

    within = WITHIN.match(str(path))
    shown = within[0] + "…" if within else str(path)
    try:
        with Image.open(io.BytesIO(base64.b64decode(str(path)[within.end():], validate=True)) if within else path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise UserError(f"There is no picture {shown}.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, binascii.Error) as error:
        raise UserError(f"{shown} can't be read as a picture: {error}.") from None


def pictures_of(folder: Path, module: Any) -> Pictures | None:
    """How a model reads pictures, None for one that reads none. The places of a picture are counted by showing it one.

    Raises:
        UserError: the model reads pictures, but its folder has no settings of a processor.
    """
    token_id = getattr(module.config, "image_token_id", None)
    if token_id is None or not hasattr(module, "get_image_features"):
        return None
    if not (folder / PROCESSOR).exists():
        raise UserError(f"{folder} holds a model that reads pictures, but no {PROCESSOR} says how.")
    from transformers import AutoImageProcessor, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    vision = module.config.vision_config
    weight = next(module.parameters())
    blank = torch.zeros(1, getattr(vision, "num_channels", 3), vision.image_size, vision.image_size, dtype=weight.dtype,
                        device=weight.device)
    with torch.no_grad():
        seen = module.get_image_features(pixel_values=blank, return_dict=True).pooler_output
    token = str(tokenizer.convert_ids_to_tokens(int(token_id)))
    return Pictures(processor, token, int(token_id), sum(len(places) for places in seen))
