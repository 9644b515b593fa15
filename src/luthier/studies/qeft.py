"""Lee et al. 2024: a base in 4 bits whose sensitive columns stay whole and alone are trained learns as well as adapters do.

A tiny Llama that has read general parts of Python's documentation reads other parts. First nothing is trained: 3 bits by
nearest rounding and by GPTQ, GPTQ with 4 of 128 columns whole, sensitive ones or any ones, and GPTQ with scales for half as
many weights, which takes the bits that whole columns would. Then 90 steps, each method at the better of two rates on dev: LoRA
of rank 8 on the whole base and on 4 bits (as QLoRA), scales alone, QEFT with sensitive and with any 14 columns (as many trained
weights as LoRA has), and full tuning. Bits per byte of texts that were kept out; fewer are better. On a processor the speed
of 4-bit kernels can't be seen. At the large scale the first part is about Gemma 3 270M, which has channels that stand out.
Version 2 asks the same of texts that no imported package changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Choice, Claim, Guard, Measure, Paper, Scale, without
from luthier.studies._worlds._started import docs_recipe, docs_scales, started

TARGET, SOURCE, DEV = (Measure("bits-per-byte", on) for on in ("target", "source", "dev"))
STARTS: Mapping[str, str] = {
    "nearest": "qeft:bits=3,rounding=nearest,weak=0,train=scales", "gptq": "qeft:bits=3,weak=0,train=scales",
    "sensitive": "qeft:bits=3,weak=4", "any": "qeft:bits=3,weak=4,columns=random",
    "small-groups": "qeft:bits=3,group=64,weak=0,train=scales"}
METHODS: Mapping[str, tuple[str, tuple[float, ...]]] = {
    "lora": ("lora:rank=8", (3e-3, 1e-2)), "qlora": ("loftq:iterations=0,rank=8,alpha=16", (3e-3, 1e-2)),
    "scales": ("qeft:weak=0,train=scales", (1e-4, 1e-3)), "qeft": ("qeft:weak=14", (1e-3, 3e-3)),
    "qeft-any": ("qeft:weak=14,columns=random", (1e-3, 3e-3)), "full": ("full", (1e-3, 3e-3))}


class QeftStudy(Study, name="qeft", seeds=[111], version=2):
    """Do a few whole columns learn what adapters learn, and must they be the sensitive ones?"""

    world: ClassVar[str] = "tiny models on Python's own documentation"
    paper: ClassVar[Paper] = Paper(
        "QEFT: Quantization for Efficient Fine-Tuning of LLMs", "Lee, Jin, Kim, Kim, Park 2024, arXiv 2410.08661",
        "Whole weak columns, chosen once for the model, give the quality of adapters on a full base at the memory of 4 bits.",
        "no number is remembered; Llama-2 7B to 70B, average of benchmarks above QLoRA and OWQ-tuning")
    scales: ClassVar[Mapping[str, Scale]] = docs_scales(("base", "any", "sensitive"))

    def recipe(self) -> dict[str, Any]:
        """A base that knows one half of the documentation reads the other."""
        return docs_recipe("qeft", {"steps": 90})

    def arms(self) -> dict[str, dict[str, Any]]:
        """The base, what methods begin with, and methods x rates."""
        return {"base": without(self.recipe(), "tuned"),
                **{name: started(self.recipe(), method) for name, method in STARTS.items()},
                **{f"{name}-{rate:g}": {"tuned.method": method, "tuned.learning_rate": rate}
                   for name, (method, rates) in METHODS.items() for rate in rates}}

    def guards(self) -> tuple[Guard, ...]:
        """There is something to learn, and it is learned."""
        return (Guard("the target is new to the base: at least 1.5 bits a byte", TARGET, ("base",), least=1.5),
                Guard("rounding to the nearest of 8 levels is felt, and not the end: at most 6 bits a byte", TARGET,
                      ("nearest",), most=6.0))

    def choices(self) -> tuple[Choice, ...]:
        """Each method at its better rate on dev."""
        return tuple(Choice(name, tuple(f"{name}-{rate:g}" for rate in rates), DEV, "lowest")
                     for name, (_, rates) in METHODS.items())

    def claims(self) -> tuple[Claim, ...]:
        """Which columns; what they learn beside adapters; what GPTQ and smaller groups do."""
        return (
            Claim("sensitive columns", "before training the target needs fewer bits with sensitive columns than with any",
                  "any", "sensitive", TARGET, "lower", 0.02, 0.05, 0.01, paper="OWQ: weak columns matter most"),
            Claim("more than QLoRA", "QEFT leaves fewer bits for the target than LoRA on a base in 4 bits", "qlora", "qeft",
                  TARGET, "lower", 0.02, 0.06, 0.01, paper="above QLoRA on average"),
            Claim("not the bits alone", "sensitive columns save more than the same bits spent on smaller groups",
                  "small-groups", "sensitive", TARGET, "lower", 0.02, 0.05, 0.01, main=False),
            Claim("GPTQ", "GPTQ needs fewer bits than nearest rounding", "nearest", "gptq", TARGET, "lower", 0.02, 0.05, 0.01,
                  main=False),
            Claim("sensitive columns learn more", "QEFT learns more by sensitive columns than by any", "qeft-any", "qeft",
                  TARGET, "lower", 0.02, 0.06, 0.01, main=False),
            Claim("more than scales", "QEFT learns more than scales alone", "scales", "qeft", TARGET, "lower", 0.02, 0.06, 0.01,
                  paper="above PEQA", main=False),
            Claim("forgets less than full tuning", "QEFT leaves fewer bits for the source than full tuning", "full", "qeft",
                  SOURCE, "lower", 0.02, 0.06, 0.01, main=False))
