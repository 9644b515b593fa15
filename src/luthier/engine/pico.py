"""Pico models: tiny models with random weights, made on the spot, for tests and for `--demo --pico`.

They know nothing; every answer they give is noise. What they are good for is running every line of the program in
seconds, on a decoder, an encoder and an encoder-decoder.
"""

from __future__ import annotations

import re
from pathlib import Path

NAMES = ("pico", "pico-encoder", "pico-encoder-decoder")
VOCABULARY = 1024


def make(name: str, folder: Path) -> None:
    """Write a pico model with its tokenizer to `folder` (safetensors)."""
    import torch
    from transformers import (
        BertConfig,
        BertModel,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    tokenizer = _tokenizer(encoder=name == "pico-encoder")
    size, ids = len(tokenizer), {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    model: PreTrainedModel
    if name == "pico":
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=size, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=tokenizer.bos_token_id, **ids))
    elif name == "pico-encoder":
        model = BertModel(BertConfig(
            vocab_size=size, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=512, **ids))
    else:
        model = T5ForConditionalGeneration(T5Config(  # type: ignore[call-arg]
            vocab_size=size, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4,
            decoder_start_token_id=tokenizer.pad_token_id, **ids))
    torch.random.set_rng_state(state)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    licenses = folder / "licenses"
    licenses.mkdir()
    (licenses / "PICO.txt").write_text("Random weights made by Luthier; no rights are claimed.\n")


def _tokenizer(encoder: bool):  # type: ignore[no-untyped-def]
    """Byte-level BPE trained on this package's own source text: deterministic, and any text can be encoded."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>", "<mask>"]
    text = " ".join(re.findall(r"[A-Za-z][a-z]+", _WORDS)) + "\nPassage: Question: Answer: What does the mean?"
    core.train_from_iterator([text], trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    single = "<bos> $A <eos>" if encoder else "<bos> $A"
    core.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<bos>", core.token_to_id("<bos>")), ("<eos>", core.token_to_id("<eos>"))])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", mask_token="<mask>",
        clean_up_tokenization_spaces=False)


_WORDS = """
the of and to in is that for it as with on by this are be or an at from which not have has was can will if when then
else return value values object objects class classes function functions method methods name names argument arguments
expression expressions statement statements type types module modules import attribute attributes call called calling
definition defined local global scope block exception exceptions raise raised try finally except list tuple string
strings number numbers integer float complex sequence mapping iterator generator yield await async assignment operator
operators comparison boolean result evaluated evaluates evaluation example examples following used using use default
parameter parameters keyword keywords language reference python document documents passage question answer what how
does mean where why who does not given each first second last only also may must should otherwise same other new
"""
