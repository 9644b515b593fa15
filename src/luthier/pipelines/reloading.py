"""What a stranger's process computes from an exported folder, with transformers and peft alone.

Run as a script in a process of its own: `python reloading.py REQUEST.json`. It must not import this package: it shows
that the folder loads without it. REQUEST holds `folder`, `base` (for an adapter), `architecture`, `dtype`, `prompts`
(lists of token ids), `gguf` (the file's name, where the folder holds one) and `out`, a safetensors file for the results.
"""

import json
import sys


def main() -> None:
    import torch
    import transformers
    from safetensors.torch import save_file
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    kinds = {"decoder": AutoModelForCausalLM, "encoder": AutoModel, "encoder-decoder": AutoModelForSeq2SeqLM}
    options = {"dtype": getattr(torch, request["dtype"]), "local_files_only": True, "trust_remote_code": False}
    if request["gguf"]:
        options["gguf_file"] = request["gguf"]
        if hasattr(transformers, "GgufConfig"):  # newer ones keep blocks packed unless told otherwise
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    else:
        options["use_safetensors"] = True
    source = request["base"] or request["folder"]
    model = kinds[request["architecture"]].from_pretrained(source, **options)
    if request["base"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, request["folder"], autocast_adapter_dtype=False)
    AutoTokenizer.from_pretrained(request["folder"], local_files_only=True, trust_remote_code=False)
    model.eval()
    found = {}
    with torch.no_grad():
        for number, ids in enumerate(request["prompts"]):
            tokens = torch.tensor([ids])
            extra = {"decoder_input_ids": tokens} if request["architecture"] == "encoder-decoder" else {}
            out = model(input_ids=tokens, **extra)
            numbers = out.logits if hasattr(out, "logits") else out.last_hidden_state
            found[str(number)] = numbers.float().contiguous()
    save_file(found, request["out"])


if __name__ == "__main__":
    main()
