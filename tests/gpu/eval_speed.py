"""Evaluation speed: the tutorial's loop, one prompt at a time with and without LoRA, against evaluate.py's single batch.

    python tests/gpu/eval_speed.py MODEL ADAPTER DATA [n_loop] [n_batch] [max_tokens]

Both on one vLLM engine that is ready. The loop runs n_loop prompts and is scaled to n_batch.
"""
import json
import sys
import time

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

model, adapter, data = sys.argv[1:4]
n_loop, n_batch, max_tokens = map(int, (sys.argv[4:] + ["3", "20", "512"][len(sys.argv[4:]):]))
prompts = [json.loads(line)["prompt"] for line in open(data)][:n_batch]
started = time.time()
llm = LLM(model=model, enable_lora=True, max_lora_rank=32, max_model_len=2048, gpu_memory_utilization=0.6, max_num_seqs=64)
print(f"engine: {time.time() - started:.1f} s")
sampling, lora = SamplingParams(temperature=1.0, top_k=50, max_tokens=max_tokens), LoRARequest("grpo_lora", 1, adapter)
llm.generate(prompts[:2], sampling, lora_request=[lora, None], use_tqdm=False)
started = time.time()
for number, prompt in enumerate(prompts[:n_loop]):
    llm.generate(prompt, sampling, lora_request=LoRARequest(f"copy{number}", 2 + number, adapter), use_tqdm=False)  # as load_lora: a new id each time
    llm.generate(prompt, sampling, lora_request=None, use_tqdm=False)
loop = (time.time() - started) / n_loop * n_batch
started = time.time()
llm.generate(prompts * 2, sampling, lora_request=[lora] * n_batch + [None] * n_batch, use_tqdm=False)
batch = time.time() - started
print(f"EVAL n = {n_batch} x 2, {max_tokens} tokens: loop {loop:.1f} s (scaled from {n_loop}), one batch {batch:.1f} s, ratio {loop / batch:.1f}")
