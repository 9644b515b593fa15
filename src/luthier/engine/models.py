"""Loading: a model artifact (base, or base with adapter or delta) to a `Model` ready for the forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from luthier.core.artifact import Artifact, open_artifact
from luthier.core.component import build
from luthier.core.errors import UserError, nearest
from luthier.core.files import read_json
from luthier.core.finding import Finding, receipt
from luthier.core.identity import hash_folder
from luthier.engine import decisions, hub
from luthier.engine.memory import require_mb
from luthier.engine.packages import PACKAGES, check, model_folder
from luthier.engine.pictures import Pictures, pictures_of
from luthier.engine.quantized import loading
from luthier.engine.sounds import NoTokens, Sounds, hears, sounds_of
from luthier.engine.sparse import SparseDelta

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.engine.low_bits import LowBitBase
    from luthier.engine.new_tokens import NewTokens
    from luthier.engine.pruning import Pruned
    from luthier.engine.splitting import Split

Architecture = Literal["encoder", "decoder", "encoder-decoder"]
HEAD_FILE = "head.safetensors"


@dataclass
class Model:
    """A loaded model. `module` computes, `tokenizer` reads, `heads` are small modules by task.

    `limit` is the longest sequence in tokens; `base` the artifact the weights came from.
    """

    module: Any
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture
    identity: str
    name: str
    limit: int
    base: Artifact
    heads: dict[str, torch.nn.Module] = field(default_factory=dict)
    labels: dict[str, list[str]] = field(default_factory=dict)
    # The component of each loaded head as a dictionary (`use`, fields).
    head_specs: dict[str, Any] = field(default_factory=dict)
    template: dict[str, Any] = field(default_factory=dict)
    # The module that was asked whether it packs, and its answer (`forward.packs`).
    packing: tuple[Any, bool] | None = field(default=None, repr=False, compare=False)
    # The module that was asked for its vocabulary head, and the answer (`forward.vocabulary_of`).
    split: tuple[Any, Any] | None = field(default=None, repr=False, compare=False)
    # The vocabulary head in the order of the processor, made when something is written (`quick`).
    quick_head: Any = field(default=None, repr=False, compare=False)
    quick_kind: Any = field(default=None, repr=False, compare=False)
    new_tokens: NewTokens | None = None
    # Positions that a learned prompt takes before every input.
    taken: int = 0
    # How it is shown pictures, where it reads some.
    pictures: Pictures | None = field(default=None, repr=False, compare=False)
    # How it hears clips, where it does; it then reads no tokens.
    sounds: Sounds | None = field(default=None, repr=False, compare=False)
    # Where the model is split between two parties, and what crosses there (`splitting.Split`).
    border: Split | None = field(default=None, repr=False, compare=False)
    # Tensors of which a method moved chosen entries only, as they are stored.
    sparse: SparseDelta = field(default_factory=SparseDelta, repr=False)
    # Linear layers whose weights a method put in few bits.
    low_bits: LowBitBase | None = field(default=None, repr=False, compare=False)
    # Linear layers that a method cut.
    pruned: Pruned | None = field(default=None, repr=False, compare=False)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Every token that ends an answer: the end token, and those of the template it was trained with."""
        end = self.tokenizer.eos_token_id
        return frozenset({*self.template.get("stop_ids", ()), *([] if end is None else [int(end)])})

    @property
    def width(self) -> int:
        """Size of the hidden states."""
        config = self.module.config.get_text_config()
        return int(getattr(config, "hidden_size", None) or config.d_model)

    @property
    def vocabulary(self) -> int:
        """How many different ids it reads."""
        return int(self.module.config.get_text_config().vocab_size)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return torch.device(next(self.module.parameters()).device)

    @property
    def decoder_start(self) -> int:
        """The token that starts an encoder-decoder's decoder, by its configuration (T5: padding, BART: the end)."""
        known = getattr(self.module.config, "decoder_start_token_id", None)
        if known is None:
            known = self.tokenizer.pad_token_id
        return int(self.tokenizer.eos_token_id if known is None else known)

    def parameters(self) -> int:
        """How many numbers the model has, heads included, shared ones once."""
        modules = [self.module, *self.heads.values()]
        packed = self.low_bits.numbers if self.low_bits else 0
        return int(packed + sum(p.numel() for p in {id(p): p for m in modules for p in m.parameters()}.values()))


def resolve(name: str) -> Path:
    """The folder of a base: a package's model by name, a hub id, or a local folder with config and safetensors.

    Raises:
        UserError: unknown name, unsafe or missing weights.
    """
    if name in PACKAGES:
        return model_folder(name)
    if hub.is_hub_id(name):
        return hub.folder_of(name)
    return check_folder(name)


def check_base(name: str) -> float:
    """Refuse a base that can't be loaded; returns the megabytes of its weights. Converts nothing."""
    if name in PACKAGES:
        check(name)
        return float(PACKAGES[name].megabytes)
    if hub.is_hub_id(name):
        return hub.check(name)
    return sum(p.stat().st_size for p in check_folder(name).glob("*.safetensors")) / 1e6


def check_folder(name: str) -> Path:
    """A local model folder that is complete and safe to load. Raises UserError otherwise."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise UserError(f"There is no base '{name}': no packaged model, no local folder, and no "
                        f"hub id (org/name). "
                        f"{nearest(name, PACKAGES)}")
    if not (folder / "config.json").exists():
        raise UserError(f"{folder} is no model folder: it has no config.json.")
    if not any(folder.glob("*.safetensors")):
        unsafe = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pt")]
        why = f"only {unsafe[0]}, a format that can run code when loaded" if unsafe else "no weights"
        raise UserError(f"{folder} has {why}. Luthier loads .safetensors only; convert it first.")
    if not hears(read_json(folder / "config.json")) and not any((folder / n).exists() for n in ("tokenizer.json",
                                                                                                "tokenizer.model", "vocab.txt",
                                                                                                "vocab.json")):
        raise UserError(f"{folder} has no tokenizer files (tokenizer.json).")
    return folder.resolve()


def folder_of(base: Artifact) -> Path:
    """Where a base's weights are: in a cache, in the user's folder, or in the artifact itself (a relative path)."""
    return base.folder / str(base.meta["path"])


def base_identity(folder: Path) -> str:
    """Hash of a base's files; a converted package's own checksum where there is one."""
    record = folder / "checksum.json"
    return read_json(record)["sha256"] if record.exists() else hash_folder(folder)


def architecture_of(folder: Path) -> Architecture:
    """Read from the model's own config.

    Raises:
        UserError: the config names no architecture.
    """
    config = read_json(folder / "config.json")
    if config.get("is_encoder_decoder"):
        return "encoder-decoder"
    if config.get("model_type") == decisions.TYPE:
        decisions.classes()  # whoever loads it asks for its architecture first
    names = config.get("architectures") or []
    if not names:
        raise UserError(f"{folder / 'config.json'} names no architecture ('architectures').")
    writes = any(n.endswith(("ForCausalLM", "LMHeadModel")) for n in names) or sees(config)
    return "decoder" if writes else "encoder"


def sees(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is that of a model that reads pictures and writes text."""
    return "vision_config" in config and any("ConditionalGeneration" in n for n in config.get("architectures") or ())


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, from local files only."""
    from transformers import AutoTokenizer

    config = folder / "config.json"  # the folder of an adapter has none
    if config.exists() and hears(read_json(config)):
        return NoTokens()  # type: ignore[return-value]
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def auto_class(folder: Path) -> Any:
    """The class of transformers that builds models of this kind."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

    architecture = architecture_of(folder)
    if architecture == "decoder" and sees(read_json(folder / "config.json")):
        return AutoModelForImageTextToText
    return {"decoder": AutoModelForCausalLM, "encoder": AutoModel, "encoder-decoder": AutoModelForSeq2SeqLM}[architecture]


def keys_of(folder: Path) -> Finding:
    """The receipt that plain transformers finds every tensor it wants in a model folder and wants all; reads no weights."""
    model, told = auto_class(folder).from_pretrained(
        folder, device_map="meta", output_loading_info=True, local_files_only=True, use_safetensors=True,
        trust_remote_code=False)
    wrong = sorted(str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in told[kind])
    return receipt("merge/loads", 0, len(wrong), unit="tensors", detail=f"as {type(model).__name__} of plain transformers"
                   + (f"; missing, unknown or misshapen: {', '.join(wrong[:3])}" if wrong else ""))


def load_base(artifact: Artifact, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Model:
    """A base model from its artifact, frozen, in evaluation mode."""
    folder = folder_of(artifact)
    if not folder.exists():
        raise UserError(f"The base of this run is gone: {folder}. Run the same command with --fresh to fetch it again.")
    size = sum(p.stat().st_size for p in folder.glob("*.safetensors")) / 1e6
    require_mb(size * 1.2, f"Loading {artifact.meta['name']}")
    architecture: Architecture = artifact.meta["architecture"]
    module = auto_class(folder).from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False,
        **loading(artifact.meta.get("quantize", "none"), dtype, device))
    module.eval().requires_grad_(False)
    if "quantize" not in artifact.meta:  # a quantised base was loaded to its device
        module.to(device)
    return Model(module, load_tokenizer(folder), architecture, artifact.identity, artifact.meta["name"],
                 limit_of(module.config),
                 artifact, **senses(folder, module))


def senses(folder: Path, module: Any) -> dict[str, Any]:
    """What a model takes besides tokens, by the names of `Model`."""
    return {"pictures": pictures_of(folder, module), "sounds": sounds_of(folder, module.config)}


def limit_of(config: Any) -> int:
    """The longest sequence that a model reads, in tokens; where nothing is stated, one that no row reaches."""
    config = config.get_text_config()
    return int(getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 0) or 1 << 16)


def add_tuned(model: Model, artifact: Artifact) -> Model:
    """Put an adapter, a delta or a full set of weights on its base (the base object is changed).

    Raises:
        UserError: the artifact was trained on another base.
    """
    from luthier.engine import low_bits, new_tokens, pruning, weights

    trained_on = artifact.meta["base"]["identity"]
    if trained_on != model.base.identity:
        raise UserError(f"{artifact.folder} was trained on {artifact.meta['base']['name']} ({trained_on[:8]}), "
                        f"not on {model.name} ({model.base.identity[:8]}).")
    made = artifact.meta.get("fit", artifact.meta).get("method")  # of what was trained, or of adapters that were merged
    method = build("method", made) if made else None
    if method:
        method.loadable()
    new_tokens.install(model, artifact)
    low_bits.install(model, artifact)
    pruning.install(model, artifact)
    weights.LOADERS[artifact.kind](model, artifact.folder)
    weights.load_heads(model, artifact)
    if method:
        method.attach(model, artifact.folder)
    model.identity = artifact.identity
    model.template = artifact.meta.get("template", {})
    model.module.eval()
    return model


def base_of(artifact: Artifact) -> Artifact:
    """The base artifact that stands beside a tuned one in the same run."""
    return open_artifact(artifact.folder.parent / artifact.meta["base"]["step"])
