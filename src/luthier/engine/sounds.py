"""Sounds: how a model that hears clips is given some: wav files to the spectrograms that its extractor makes.

A clip is mono at the extractor's sampling rate; other rates are resampled, and it is said. A row has no token ids: one stands
for it, and the spectrogram [frames, mel bins] travels beside it (`Tokens.tensors`), made when a batch is.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import wave
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example
from luthier.core.identity import digest, hash_file
from luthier.core.kinds import DroppedRow, Tokens

if TYPE_CHECKING:
    from luthier.engine.rendering import Render

NAME = "input_values"
EXTRACTOR = "preprocessor_config.json"
WITHIN = re.compile(r"data:audio/[a-z]+;base64,")  # a clip that stands in its row itself


class NoTokens:
    """Stands where a tokenizer does, for a model that reads no text."""

    pad_token_id, eos_token_id, bos_token_id, chat_template = 0, None, None, None
    all_special_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return 0

    def __call__(self, *given: Any, **named: Any) -> Any:
        raise UserError("This model hears clips; it reads no text. Rows need audio: {\"audio\": \"clip.wav\", \"label\": …}.")

    def save_pretrained(self, folder: Any) -> None:
        """There is nothing to save."""


@dataclass(frozen=True)
class Sounds:
    """The extractor of a model, its sampling rate, the frames that the model takes, and how many make one patch."""

    extractor: Any = field(repr=False, compare=False)
    rate: int
    frames: int
    patch: int

    def tokens(self, example: Example, render: Render) -> Tokens:
        """A row that stands for the clip of an example.

        Raises:
            DroppedRow: no clip or several, one shorter than a patch, or longer than the model takes unless that is truncated.
        """
        from luthier.engine.rendering import Cut

        clips = [p.value for t in example.turns for p in t.parts if p.type == "audio"]
        if len(clips) != 1:
            raise DroppedRow(Dropped(example.id, "no clip",
                                     f"a row for a model that hears needs one clip; this has {len(clips)}"))
        samples, rate = waveform(clips[0])
        count = len(samples) * self.rate // rate
        least, most = self.samples_of(self.patch), self.samples_of(self.frames)
        if count < least:
            raise DroppedRow(Dropped(example.id, "too short", f"{1000 * count / self.rate:.0f} ms; one patch of {self.patch} "
                                     f"frames needs {1000 * least / self.rate:.0f} ms"))
        if count >= most + self.samples_of(2) - self.samples_of(1):
            told = f"{count / self.rate:.2f} s, at most {most / self.rate:.2f} s of {self.frames} frames"
            if render.over_long != "truncate":
                raise DroppedRow(Dropped(example.id, "too long", f"{told}; over_long: truncate cuts it, a model of more frames "
                                                                 "(step clip-length) takes it whole"))
            render.cuts.append(Cut(example.id, 0, 1, told))
        if rate != self.rate:
            render.cuts.append(Cut(example.id, 0, 1, f"resampled from {rate} to {self.rate} Hz", "resampled"))
        return Tokens([0], [False], tensors={NAME: Spectrogram(clips[0], self)})

    def samples_of(self, frames: int) -> int:
        """Samples that so many frames of 25 ms, one every 10 ms, cover."""
        return (frames - 1) * self.rate // 100 + self.rate // 40

    @cached_property
    def blank(self) -> torch.Tensor:
        """[1, frames, mel bins] of silence."""
        return torch.zeros(1, self.frames, int(self.extractor.num_mel_bins))


@dataclass(frozen=True)
class Spectrogram:
    """A clip; as an array [frames, mel bins], float32, when it is asked for."""

    source: str
    sounds: Sounds = field(repr=False)

    @property
    def key(self) -> str:
        """Hash of the clip."""
        return digest(self.source) if WITHIN.match(self.source) else hash_file(Path(self.source))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        # A file may change; a clip within its row is what it is, and small ones are heard in every epoch.
        made = _known(self.source, self.sounds, id(self.sounds.extractor)) if WITHIN.match(self.source) else \
            _heard(self.source, self.sounds)
        return np.array(made, dtype=dtype or np.float32)


def _heard(source: str, sounds: Sounds) -> np.ndarray:
    samples = resampled(*waveform(source), sounds.rate)
    return np.asarray(sounds.extractor(samples, sampling_rate=sounds.rate, return_tensors="np")[NAME][0])


@lru_cache(maxsize=512)
def _known(source: str, sounds: Sounds, extractor: int) -> np.ndarray:
    return _heard(source, sounds)


def waveform(source: str) -> tuple[np.ndarray, int]:
    """Mono samples from -1 to 1, float32, and their rate in Hz, of a wav file or a text `data:audio/wav;base64,…`.

    Raises:
        UserError: the file is missing, no PCM wav, or has no samples.
    """
    within = WITHIN.match(source)
    shown = within[0] + "…" if within else source
    try:
        held = io.BytesIO(base64.b64decode(source[within.end():], validate=True)) if within else source
        with wave.open(held, "rb") as file:
            width, channels, rate, data = file.getsampwidth(), file.getnchannels(), file.getframerate(), file.readframes(-1)
    except FileNotFoundError:
        raise UserError(f"There is no clip {shown}.") from None
    except (wave.Error, EOFError, OSError, binascii.Error, ValueError) as error:
        raise UserError(f"{shown} can't be read as wav (PCM): {error}.") from None
    if not data:
        raise UserError(f"{shown} has no samples.")
    values: np.ndarray
    if width == 1:
        values = (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    elif width == 3:
        bits = np.frombuffer(data, np.uint8).reshape(-1, 3).astype(np.int32)
        signed = ((bits[:, 0] | bits[:, 1] << 8 | bits[:, 2] << 16) ^ 0x800000) - 0x800000
        values = signed.astype(np.float32) / (1 << 23)
    else:
        values = np.frombuffer(data, {2: "<i2", 4: "<i4"}[width]).astype(np.float32) / (1 << (8 * width - 1))
    return values.reshape(-1, channels).mean(1), rate


def resampled(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """The samples at another rate, by a polyphase filter."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    common = gcd(rate, wanted)
    return np.asarray(resample_poly(samples, wanted // common, rate // common), dtype=np.float32)


def hears(config: Any) -> bool:
    """Whether a configuration (its values by name) is that of a model of mel spectrograms."""
    return "num_mel_bins" in config and "max_length" in config and "patch_size" in config


def sounds_of(folder: Path, config: Any) -> Sounds | None:
    """How a model hears, None for one that does not. Raises UserError for one without an extractor, or of other frames."""
    values = config.to_dict()
    if not hears(values):
        return None
    if not (folder / EXTRACTOR).exists():
        raise UserError(f"{folder} holds a model that hears clips, but no {EXTRACTOR} says how.")
    from transformers import AutoFeatureExtractor

    extractor = AutoFeatureExtractor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    for name in ("max_length", "num_mel_bins"):
        if getattr(extractor, name) != values[name]:
            given = getattr(extractor, name)
            raise UserError(f"{folder}: the extractor gives {name} = {given}, the model takes {values[name]}. "
                            "The step clip-length changes both together.")
    return Sounds(extractor, int(extractor.sampling_rate), int(values["max_length"]), int(values["patch_size"]))
