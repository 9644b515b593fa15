"""GGUF: a decoder and its tokenizer in one file, as llama.cpp reads it, matrices rounded to 8 bits (q8_0).

Written are the architectures whose layout is known here, Gemma 3 and Llama. What a file of llama.cpp holds in another way
than transformers does: rows of Llama's queries and keys are interleaved for its rotation, Gemma's norms are stored with their 1
added, and a SentencePiece-like vocabulary has scores in place of merges. Source: the GGUF specification, version 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

ARCHITECTURES = {"gemma3_text": "gemma3", "llama": "llama"}  # transformers' model_type -> GGUF's
BLOCK = 32  # entries of a row that share one scale
NORMAL, CONTROL, USER_DEFINED, BYTE = 1, 3, 4, 6  # tokenizer.ggml.token_type
Q8_0 = 7  # general.file_type
# The splits before merging that llama.cpp knows by name; it has no way to be told another one.
_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
           r"|\s+(?!\S)|\s+")


def check(config: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises UserError unless model and tokenizer can be written; looks at nothing that is expensive."""
    if config.model_type not in ARCHITECTURES:
        raise UserError(f"--to gguf: a model of type {config.model_type} can't be written. Written are Gemma 3 (text) and "
                        "Llama; luthier export RUN --to model is for the others, and llama.cpp converts many of them itself.")
    ropes = config.rope_parameters if "full_attention" in config.rope_parameters else {"all": config.rope_parameters}
    odd = {r["rope_type"] for r in ropes.values()} - {"default"}
    if odd:
        raise UserError(f"--to gguf: positions of this model are scaled ({', '.join(sorted(odd))}), which is not written. "
                        "Use --to model.")
    if getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False):
        raise UserError("--to gguf: a Llama with biases is not written. Use --to model.")
    _vocabulary(tokenizer, config.vocab_size)


def write(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, path: Path, name: str) -> int:
    """Write `path`; how many matrices could not be rounded, since their rows are no multiple of 32, and stand in float16.

    Raises:
        UserError: gguf is missing, or see `check`.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("--to gguf needs the package gguf: pip install 'luthier[gguf]'.") from None
    config: Any = model.config
    check(config, tokenizer)
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(Q8_0)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _facts(writer, config)
    _words(writer, tokenizer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    whole = 0
    for key, tensor in _tensors(model, config):
        to = names.get_name(key, try_suffixes=(".weight", ".bias"))
        if to is None:
            raise UserError(f"--to gguf: tensor {key} has no name in GGUF's {architecture}.")
        if tensor.ndim == 1:
            writer.add_tensor(to, tensor)
        elif tensor.shape[-1] % BLOCK:
            whole += 1
            writer.add_tensor(to, tensor.astype(np.float16))
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(to, gguf.quantize(tensor, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return whole


def rounded(weight: torch.Tensor) -> torch.Tensor:
    """A weight as q8_0 keeps it: blocks of 32 in 256 steps of a scale in float16. Vectors stay as they are.

    The values of a block are w ≈ d·q, d = max|w| / 127, q whole; here in torch, so that a written file can be checked by
    something that did not write it.
    """
    import torch

    if weight.ndim < 2:
        return weight
    if weight.shape[-1] % BLOCK:
        return weight.to(torch.float16).to(weight.dtype)
    blocks = weight.float().unflatten(-1, (-1, BLOCK))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    # As llama.cpp does: times the reciprocal, in float32, and halves away from zero. Weights that were rounded to few bits
    # before lie on halves often, where a quotient, or torch.round, would give the other neighbour.
    steps = blocks * torch.where(scale > 0, 1 / scale, 0.0)
    whole = steps.sign() * (steps.abs() + 0.5).floor()
    kept: torch.Tensor = (whole * scale.to(torch.float16).float()).flatten(-2)
    return kept.to(weight.dtype)


def _facts(writer: Any, config: Any) -> None:
    """What llama.cpp needs to build the network."""
    ropes, heads = config.rope_parameters, config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_freq_base((ropes.get("full_attention") or ropes)["rope_theta"])
    if config.model_type == "gemma3_text":
        writer.add_sliding_window(config.sliding_window)
    else:
        writer.add_rope_dimension_count(width)
        writer.add_vocab_size(config.vocab_size)


def _tensors(model: torch.nn.Module, config: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Name and values in float32, in GGUF's layout; a head that is the embedding is left out."""
    tied = config.tie_word_embeddings
    for key, tensor in model.state_dict().items():
        if tied and key == "lm_head.weight":
            continue
        value = tensor.detach().float().cpu()
        if config.model_type == "gemma3_text" and key.endswith("norm.weight"):
            value = value + 1
        heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
        found = re.search(r"(q_proj|k_proj)\.weight$", key)
        if config.model_type == "llama" and found:
            # transformers turns entry i with entry i + half of a head, llama.cpp neighbours with one another.
            halves = value.unflatten(0, (heads[found.group()], 2, -1))
            value = halves.transpose(1, 2).reshape(value.shape)
        yield key, np.ascontiguousarray(value.numpy())


def _vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> dict[str, Any]:
    """Tokens, their types, and merges or scores.

    Raises:
        UserError: a tokenizer that llama.cpp has no name for.
    """
    told = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else {}
    model = told.get("model", {})
    if model.get("type") != "BPE":
        raise UserError(f"--to gguf: a tokenizer of type {model.get('type', 'slow')} is not written, only BPE.")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    found: dict[str, Any] = {"model": "llama" if model.get("byte_fallback") else "gpt2"}
    if found["model"] == "gpt2":
        found |= {"pre": _split(told["pre_tokenizer"]), "merges": merges}
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    added = {t["id"]: CONTROL if t["special"] else USER_DEFINED for t in told["added_tokens"]}
    # Rows of the embedding beyond the vocabulary exist for the hardware's sake; they need a name of their own.
    found["tokens"] = [tokens.get(i, f"[PAD{i}]") for i in range(size)]
    found["types"] = [added.get(i, USER_DEFINED if i not in tokens else BYTE if found["model"] == "llama" and re.fullmatch(
        r"<0x[0-9A-F]{2}>", tokens[i]) else NORMAL) for i in range(size)]
    if found["model"] == "llama":
        # The pair that makes the better scored token is merged first: the earlier its merge, the higher its score.
        rank: dict[str, int] = {}
        for number, merge in enumerate(merges):
            rank.setdefault(merge.replace(" ", "", 1), number)
        found["scores"] = [-float(rank.get(t, len(merges))) for t in found["tokens"]]
    return found


def _split(pre: dict[str, Any] | None) -> str:
    """llama.cpp's name of how text is split before merging."""
    parts = pre["pretokenizers"] if pre and pre["type"] == "Sequence" else [pre] if pre else []
    patterns = [p["pattern"].get("Regex") for p in parts if p["type"] == "Split"]
    levels = [p for p in parts if p["type"] == "ByteLevel"]
    if len(levels) == 1 and not levels[0]["add_prefix_space"]:
        if levels[0]["use_regex"] and len(parts) == 1:
            return "gpt-2"
        if not levels[0]["use_regex"] and len(parts) == 2 and patterns == [_LLAMA3]:
            return "llama-bpe"
    raise UserError("--to gguf: this tokenizer splits text in a way that llama.cpp has no name for here "
                    f"({json.dumps(pre)[:120]}). Use --to model.")


def _words(writer: Any, tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    """The tokenizer."""
    words = _vocabulary(tokenizer, config.vocab_size)
    writer.add_tokenizer_model(words["model"])
    writer.add_tokenizer_pre(words.get("pre", "default"))
    writer.add_token_list(words["tokens"])
    writer.add_token_types(words["types"])
    if "scores" in words:
        writer.add_token_scores(words["scores"])
        writer.add_add_space_prefix(False)
    else:
        writer.add_token_merges(words["merges"])
    for what in ("bos", "eos", "unk", "pad"):
        if (index := getattr(tokenizer, f"{what}_token_id")) is not None:
            getattr(writer, f"add_{what}_token_id")(index)
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] == tokenizer.eos_token_id)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
