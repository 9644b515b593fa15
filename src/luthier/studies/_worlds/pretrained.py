"""pretrained: a tiny model that has learned the texts of a world, by the house's own training; made once and kept.

A Llama by default; a BERT fills in hidden tokens, a T5 hidden spans, of the subset `pretrain`.

All tokens of the subset `pretrain` are learned and, where the world has it, the answers of `asked`: names of persons can't be
foretold, and a loss over answers alone has less of that noise.

The tokenizer is a byte-level BPE of the world's own texts, large enough that each of its words is one token. The model is
kept in the cache under a digest of its settings and of its texts, so that studies and their arms share it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, seal
from luthier.core.files import write_json
from luthier.core.identity import digest, hash_folder
from luthier.core.step import Ctx, Step

TAUGHT = {"pretrain": "pretrain", "asked": "supervised"}
NAMES = {"decoder": "tiny-llama", "encoder": "tiny-bert", "encoder-decoder": "tiny-t5"}
LICENSE = "Weights made by Luthier from invented texts; no rights are claimed.\n"


class Pretrained(Step, name="pretrained"):
    """A tiny model trained on the texts and questions of a world."""

    inputs: ClassVar[dict[str, str]] = {"examples": "examples"}
    output: ClassVar[str] = "model"
    seeded: ClassVar[bool] = False
    kind: Literal["decoder", "encoder", "encoder-decoder"] = Field("decoder", description="a Llama, a BERT or a T5")
    width: int = Field(128, ge=16, description="size of the hidden states")
    layers: int = Field(4, ge=1, description="layers")
    vocabulary: int = Field(2048, ge=300, description="most tokens of the vocabulary")
    epochs: float = Field(12, gt=0, description="passes over the texts")
    learning_rate: float = Field(3e-3, gt=0, description="peak learning rate")
    batch_rows: int = Field(32, ge=1, description="texts in an optimizer step")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """The kept model, or a new one."""
        world = inputs["examples"]
        texts = {name: hash_folder(world.folder / "examples" / name) for name in self._taught(world)}
        folder = kept_model(digest({"step": self.identity, "texts": texts}))
        if (folder / "checksum.json").exists():
            ctx.log(f"kept: {folder}")
        else:
            self._make(world, folder, ctx)
        copy_licenses([folder], ctx.folder)
        return seal("model", ctx.folder, identity=hash_folder(folder), name=NAMES[self.kind],
                    note="trained on an invented world",
                    path=str(folder), architecture=self.kind)

    def _make(self, world: Artifact, folder: Path, ctx: Ctx) -> None:
        """Train in the step's folder, then put the model where it is kept; who comes second leaves what is there."""
        blank = ctx.folder / "blank"
        shutil.rmtree(blank, ignore_errors=True)  # of an attempt that was killed
        self._blank(world, blank)
        start = seal("model", blank, name=NAMES[self.kind], note="random weights", path=str(blank.resolve()),
                     architecture=self.kind)
        tasks = [{"data": f"examples.{name}", "objective": objective} for name, objective in self._taught(world).items()]
        fit = {"use": "fit", "tasks": tasks, "method": "full",
               "length": {"epochs": self.epochs}, "learning_rate": self.learning_rate, "batch_rows": self.batch_rows,
               "schedule": "cosine", "dtype": "float32", "max_tokens_per_example": 256}
        trained = ctx.engine.fit(fit, {"base": start, "examples": world}, ctx)
        put(trained, folder, blank)

    def _taught(self, world: Artifact) -> dict[str, str]:
        """The objective of each subset that is learned."""
        if self.kind != "decoder":
            return {"pretrain": {"encoder": "mlm", "encoder-decoder": "span-corruption"}[self.kind]}
        return {name: objective for name, objective in TAUGHT.items() if name in world.subsets}

    def _blank(self, world: Artifact, folder: Path) -> None:
        """A model with random weights, and its tokenizer."""
        import torch

        tokenizer = _tokenizer([t.text for e in world.examples("pretrain") for t in e.turns], self.vocabulary, self.kind)
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        model = self._model(tokenizer)
        torch.random.set_rng_state(state)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "licenses").mkdir()
        (folder / "licenses" / "WORLD.txt").write_text(LICENSE)


    def _model(self, tokenizer: Any) -> Any:
        from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        if self.kind == "encoder":
            return BertModel(BertConfig(
                vocab_size=len(tokenizer), hidden_size=self.width, intermediate_size=3 * self.width,
                num_hidden_layers=self.layers,
                num_attention_heads=4, max_position_embeddings=512, **ids))
        if self.kind == "encoder-decoder":
            return T5ForConditionalGeneration(T5Config(  # type: ignore[call-arg]
                vocab_size=len(tokenizer), d_model=self.width, d_kv=self.width // 4, d_ff=3 * self.width,
                                                       num_layers=self.layers,
                num_heads=4, decoder_start_token_id=tokenizer.pad_token_id, **ids))
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=self.width, intermediate_size=3 * self.width,
            num_hidden_layers=self.layers, num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=1024,
            tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id, **ids))


def kept_model(name: str) -> Path:
    """Where a model of that digest is kept."""
    from luthier.engine.packages import cache_folder

    return cache_folder() / "worlds" / name


def put(trained: Artifact, folder: Path, blank: Path) -> None:
    """Put a trained model where it is kept, with the licences of `blank`."""
    with placed(folder) as (work, about):
        for path in trained.folder.iterdir():
            if path.suffix in (".json", ".safetensors", ".jinja") and path.name not in (
                    "luthier.json", "step.json", "state.json", "cost.json", "heads.safetensors"):
                shutil.copyfile(path, work / path.name)
        copy_licenses([blank], work)
        about["loss"] = _last_loss(trained)


@contextmanager
def placed(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder to be filled, and what its checksum shall say besides; then it stands at its place, whole.

    Who comes second leaves what is there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
    about: dict[str, Any] = {}
    try:
        yield work, about
        write_json(work / "checksum.json", {"sha256": hash_folder(work, frozenset({"checksum.json"})), **about})
        try:
            os.replace(work, folder)
        except OSError:
            if not (folder / "checksum.json").exists():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _last_loss(trained: Artifact) -> Any:
    from luthier.core.files import read_lines

    curve = read_lines(trained.folder / "curve.jsonl")
    return next((row["loss"] for row in reversed(curve) if "loss" in row), None)


def _tokenizer(texts: list[str], vocabulary: int, kind: str = "decoder") -> Any:
    """Byte-level BPE: words that the texts use become one token, and any other text can be written in bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    own = {"decoder": [], "encoder": ["<mask>"], "encoder-decoder": [f"<extra_id_{n}>" for n in range(32)]}[kind]
    core.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<pad>", "<bos>", "<eos>", *own], show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    frame = {"decoder": "<bos> $A", "encoder": "<bos> $A <eos>", "encoder-decoder": "$A <eos>"}[kind]
    core.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[(name, core.token_to_id(name)) for name in ("<bos>", "<eos>") if name in frame])
    more: dict[str, Any] = {"mask_token": "<mask>"} if kind == "encoder" else {}
    if kind == "encoder-decoder":
        more["additional_special_tokens"] = own
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
                                   clean_up_tokenization_spaces=False, **more)
