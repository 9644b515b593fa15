"""Li et al. 2023: chosen together, weights in few bits and LoRA factors begin near the base, where QLoRA begins far from it.

A tiny Llama that has read general parts of Python's documentation. First nothing is trained: all linear layers in 4, 3 and 2
bits as QLoRA has them and as LoftQ begins, after one turn and after five; uniform levels at 2 bits. Then 60 steps on other
parts of the documentation: LoRA of rank 8 on the whole base, on QLoRA's and on LoftQ's at 4 and 2 bits, each at the better of
the same two rates on dev, so that none has a rate that was chosen for another. Bits per byte of texts that were kept out;
fewer are better. At the large scale the first part is about Gemma 3 270M. Version 1 stated texts as independent units, where
those of one module are one, and broke its own guard. Version 3 asks the same of texts that no imported package changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Choice, Claim, Guard, Measure, Paper, Scale, without
from luthier.studies._worlds._started import docs_recipe, docs_scales, started

TARGET, SOURCE, DEV = (Measure("bits-per-byte", on) for on in ("target", "source", "dev"))
RATES = (3e-3, 1e-2)
TURNS: Mapping[str, int] = {"qlora": 0, "loftq1": 1, "loftq": 5}


def _method(bits: int, turns: int, quant: str = "nf") -> str:
    return f"loftq:bits={bits},iterations={turns},rank=8,quant={quant}"


STARTS: Mapping[str, str] = {
    **{f"{name}-{bits}bit": _method(bits, turns) for bits in (4, 3, 2) for name, turns in TURNS.items()},
    **{f"{name}-uniform2": _method(2, TURNS[name], "uniform") for name in ("qlora", "loftq")}}
METHODS: Mapping[str, str] = {"lora": "lora:rank=8,alpha=8", **{
    f"tuned-{name}-{bits}bit": _method(bits, TURNS[name]) for bits in (4, 2) for name in ("qlora", "loftq")}}


class LoftQStudy(Study, name="loftq", seeds=[180], version=3):
    """Does LoftQ begin nearer to the base than QLoRA, and does training keep the difference?"""

    world: ClassVar[str] = "tiny models on Python's own documentation"
    paper: ClassVar[Paper] = Paper(
        "LoftQ: LoRA-Fine-Tuning-Aware Quantization for Large Language Models", "Li et al. 2023, arXiv 2310.08659",
        "At few bits, and most of all at 2, tuning from LoftQ's start is better than from QLoRA's.",
        "Llama-2-7B, perplexity of WikiText-2: 16 bits 5.08, LoftQ 5.24 at 4 bits, 5.63 at 3, 7.85 at 2; QLoRA diverges at 2")
    scales: ClassVar[Mapping[str, Scale]] = docs_scales(("base", "qlora-2bit", "loftq-2bit"))

    def recipe(self) -> dict[str, Any]:
        """A base that knows one half of the documentation reads the other."""
        return docs_recipe("loftq", {"steps": 60})

    def arms(self) -> dict[str, dict[str, Any]]:
        """The base, what methods begin with, and methods x rates."""
        return {"base": without(self.recipe(), "tuned"),
                **{name: started(self.recipe(), method) for name, method in STARTS.items()},
                **{f"{name}-{rate:g}": {"tuned.method": method, "tuned.learning_rate": rate}
                   for name, method in METHODS.items() for rate in RATES}}

    def guards(self) -> tuple[Guard, ...]:
        """The base knows the source, and LoftQ at 2 bits is still a model: a byte of which nothing is known costs 8 bits."""
        return (Guard("the base knows the source: at most 3.5 bits a byte", SOURCE, ("base",), most=3.5),
                Guard("LoftQ at 2 bits still reads: at most 6 bits a byte", SOURCE, ("loftq-2bit",), most=6.0))

    def choices(self) -> tuple[Choice, ...]:
        """Each method at its better rate on dev."""
        return tuple(Choice(name, tuple(f"{name}-{rate:g}" for rate in RATES), DEV, "lowest") for name in METHODS)

    def claims(self) -> tuple[Claim, ...]:
        """The start and the end at each number of bits, the turns, and the other quantiser."""
        starts = tuple(Claim(f"nearer at {bits} bits", f"at {bits} bits LoftQ begins with fewer bits for the source than QLoRA",
                             f"qlora-{bits}bit", f"loftq-{bits}bit", SOURCE, "lower", 0.02, 0.1, 0.0, main=bits == 2,
                             paper="QLoRA begins far from the base at 2 bits") for bits in (2, 3, 4))
        ends = tuple(Claim(f"tuned at {bits} bits", f"tuned at {bits} bits LoftQ leaves fewer bits for the target than QLoRA",
                           f"tuned-qlora-{bits}bit", f"tuned-loftq-{bits}bit", TARGET, "lower", 0.02, 0.06, 0.01,
                           main=bits == 2, paper=paper) for bits, paper in ((2, "QLoRA diverges"), (4, "near ties")))
        return (*starts, *ends,
                Claim("five turns", "five turns begin with fewer bits than one at 2 bits", "loftq1-2bit", "loftq-2bit", SOURCE,
                      "lower", 0.02, 0.1, 0.0, paper="one turn has most of the gain", main=False),
                Claim("uniform levels", "with uniform levels, too, LoftQ begins nearer at 2 bits", "qlora-uniform2",
                      "loftq-uniform2", SOURCE, "lower", 0.02, 0.1, 0.0, main=False),
                Claim("as the whole base", "tuned LoftQ at 4 bits needs more bits than LoRA on the whole base", "lora",
                      "tuned-loftq-4bit", TARGET, "higher", 0.02, 0.06, 0.01, main=False))
