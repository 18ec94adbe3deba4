"""Evaluation speed: the tutorial's loop, one prompt at a time with and without LoRA, against one batch as in evaluate.py.

    python tests/gpu/eval_speed.py MODEL ADAPTER DATA

Both in one vLLM engine (4-bit, as in run.sh tutorial), n = 20, 512 tokens; the loop runs 3 prompts and is scaled.
"""
import json
import sys
import time

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

model, adapter, data = sys.argv[1:4]
n, n_loop, max_tokens = 20, 3, 512
prompts = [json.loads(line)["prompt"] for line in open(data)][:n]
started = time.time()
llm = LLM(model=model, enable_lora=True, max_lora_rank=32, max_model_len=1024, gpu_memory_utilization=0.4, max_num_seqs=2 * n, quantization="bitsandbytes")
print(f"engine: {time.time() - started:.1f} s", flush=True)
sampling, lora = SamplingParams(temperature=1.0, top_k=50, max_tokens=max_tokens), LoRARequest("grpo_lora", 1, adapter)
llm.generate(prompts[:2], sampling, lora_request=[lora, None], use_tqdm=False)
started = time.time()
for number, prompt in enumerate(prompts[:n_loop]):
    llm.generate(prompt, sampling, lora_request=LoRARequest(f"copy{number}", 2 + number, adapter), use_tqdm=False)  # as load_lora: a new id each
    llm.generate(prompt, sampling, lora_request=None, use_tqdm=False)
loop = (time.time() - started) / n_loop * n
started = time.time()
llm.generate(prompts * 2, sampling, lora_request=[lora] * n + [None] * n, use_tqdm=False)
batch = time.time() - started
print(f"EVAL n = {n} x 2, {max_tokens} tokens: loop {loop:.1f} s (scaled from {n_loop}), one batch {batch:.1f} s, ratio {loop / batch:.1f}")
