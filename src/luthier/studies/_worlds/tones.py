"""tones: short clips of sounds that differ in how they change, with the kind of change as label; or recordings of spoken
digits.

Six kinds are heard first (`known`): a steady tone, tones that rise and fall, beats in loudness and in pitch, bursts of noise.
Four are new (`train8`, `train32`, `dev`, `test`): stairs, sirens, clicks and pairs of tones. Pitch, phase, speed and noise
are drawn for each clip. `recordings` names a folder of wav files `DIGIT_SPEAKER_TAKE.wav` (Free Spoken Digit Dataset) to be
heard instead: digits 0 to 5 first, 6 to 9 as new ones. Clips stand in their rows.
"""

from __future__ import annotations

import base64
import io
import wave
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step

RATE, SECONDS = 16_000, 0.6
KNOWN = ("steady", "rising", "falling", "beating", "wavering", "bursts")
NEW = ("stairs", "siren", "clicks", "pair")
SHOTS = {"train8": 8, "train32": 32}


class Tones(Step, name="tones"):
    """Clips of known and of new kinds of sounds."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    clips: int = Field(60, ge=2, description="clips of each known kind")
    shots: int = Field(32, ge=1, description="clips of each new kind to be learned; train8 has the first 8 of them")
    tests: int = Field(40, ge=1, description="clips of each new kind in test; half as many in dev")
    noise: float = Field(0.4, ge=0, description="loudness of the noise beside a sound of loudness 1")
    recordings: str = Field("", description="a folder of spoken digits; sounds are drawn if empty")
    seed: int = Field(0, ge=0, description="which clips; a study's training seeds leave them as they are")

    def check(self) -> None:
        """Refuse a folder without recordings."""
        if self.recordings and not any(Path(self.recordings).expanduser().glob("[0-9]_*_*.wav")):
            raise UserError(f"tones: recordings: {self.recordings} holds no files DIGIT_SPEAKER_TAKE.wav.")

    def content(self) -> dict[str, Any]:
        """Hashes of the recordings."""
        from luthier.core.identity import hash_folder

        return {"recordings": hash_folder(Path(self.recordings).expanduser())} if self.recordings else {}

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Draw or read clips."""
        made = self._recorded() if self.recordings else self._drawn()
        return write_examples(ctx.folder, made, labels=sorted({str(e.label) for e in made["test"]}))

    def _drawn(self) -> dict[str, list[Example]]:
        draw = Rng(self.seed).within("tones")

        def clips(subset: str, kinds: tuple[str, ...], count: int) -> list[Example]:
            return [_row(f"{subset}/{kind}/{n}", clip(kind, draw(f"{subset}/{kind}", n), self.noise), kind)
                    for n in range(count) for kind in kinds]

        train = clips("train", NEW, self.shots)
        return {"known": clips("known", KNOWN, self.clips), "train32": train, "train8": train[:8 * len(NEW)],
                "dev": clips("dev", NEW, max(1, self.tests // 2)), "test": clips("test", NEW, self.tests)}

    def _recorded(self) -> dict[str, list[Example]]:
        """Spoken digits: of the new ones the first takes of each speaker are learned, others are dev and test."""
        found: dict[str, list[Example]] = {name: [] for name in ("known", "train32", "train8", "dev", "test")}
        for path in sorted(Path(self.recordings).expanduser().glob("[0-9]_*_*.wav")):
            digit, speaker, take = path.stem.split("_")
            row = _row(path.stem, "data:audio/wav;base64," + base64.b64encode(path.read_bytes()).decode(), f"digit {digit}",
                       speaker)
            if int(digit) < 6:
                found["known"].append(row)
            else:
                found[("train32", "train32", "dev", "test", "test")[min(4, int(take))]].append(row)
        counts: dict[str, int] = {}
        for row in found["train32"]:
            counts[str(row.label)] = counts.get(str(row.label), 0) + 1
            if counts[str(row.label)] <= 8:
                found["train8"].append(row)
        return found


def clip(kind: str, draw: np.random.Generator, noise: float) -> str:
    """A clip of one kind as a `data:` text."""
    time = np.arange(int(RATE * SECONDS)) / RATE
    pitch, speed, phase = draw.uniform(400, 1200), draw.uniform(4, 9), draw.uniform(0, 2 * np.pi)
    share = time / SECONDS
    turn = {
        "steady": np.ones_like(time), "rising": 1 + share, "falling": 2 - share, "beating": np.ones_like(time),
        "wavering": 1 + 0.2 * np.sin(2 * np.pi * speed * time + phase), "bursts": np.ones_like(time),
        "stairs": 1 + np.floor(share * 4) / 4, "siren": 1 + np.abs(2 * ((speed / 3 * time) % 1) - 1),
        "clicks": np.ones_like(time), "pair": np.ones_like(time)}[kind]
    sound = np.sin(2 * np.pi * np.cumsum(pitch * turn) / RATE + phase)
    if kind == "beating":
        sound = sound * (0.5 + 0.5 * np.sin(2 * np.pi * speed * time + phase))
    elif kind == "bursts":
        sound = draw.normal(size=len(time)) * (np.sin(2 * np.pi * speed * time + phase) > 0)
    elif kind == "clicks":
        sound = sound * (((speed * 2 * time + phase) % 1) < 0.15)
    elif kind == "pair":
        sound = (sound + np.sin(2 * np.pi * 1.5 * pitch * time)) / 2
    sound = sound + noise * draw.normal(size=len(time))
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((sound / np.abs(sound).max() * 30_000).astype("<i2").tobytes())
    return "data:audio/wav;base64," + base64.b64encode(held.getvalue()).decode()


def _row(name: str, source: str, label: str, speaker: str = "") -> Example:
    return Example(name, (Turn("user", (Part(source, type="audio"),)),), task="classify", label=label, source=speaker or name,
                   cluster=name)
