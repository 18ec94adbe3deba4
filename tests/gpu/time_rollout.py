"""Time the rollouts of a GRPO step alone, in vLLM as TRL starts it: what do LoRA requests cost?

    python tests/gpu/time_rollout.py MODEL [--no-lora] [LLM's settings: key=value ...]

Every completion runs to its limit. One line a way: plain (the base model), and, with an adapter,
as a LoRA request; each with and without detokenising. --quick leaves all but the last of them out,
which is train.py's. --profile then prints where the GPU's time of 100 tokens goes.
"""

import argparse
import ast
import os
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
import train
from time_update import profile


def main(args):
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # as TRL does
    train.set_environment()
    start = time.time()
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    settings = dict(setting.split("=", 1) for setting in args.settings)
    settings = {key: ast.literal_eval(value) for key, value in settings.items()}
    if not args.no_lora:
        settings |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": 32}
    llm = LLM(
        model=args.model,
        gpu_memory_utilization=args.gpu_memory_utilization,
        max_model_len=2048,
        max_num_seqs=args.completions,
        max_num_batched_tokens=4096,
        logprobs_mode="processed_logprobs",
        **settings,
    )
    print(f"engine {settings}: {time.time() - start:.1f} s with imports", flush=True)
    ways = {}
    if args.no_lora or not args.quick:
        ways["plain"] = None
    if not args.no_lora:
        ways["adapter"] = LoRARequest("adapter", 1, make_adapter(args.model))
    prompts = [{"prompt_token_ids": list(range(100, 217))}] * args.completions
    for detokenize in (False,) if args.quick else (True, False):
        params = SamplingParams(
            max_tokens=args.tokens,
            ignore_eos=True,
            logprobs=0,
            min_p=0.1,
            temperature=1.0,
            detokenize=detokenize,
        )
        for name, request in ways.items():
            for _ in range(2):  # the first run compiles what is left
                start = time.time()
                llm.generate(prompts, params, lora_request=request, use_tqdm=False)
                seconds = time.time() - start
            tokens = args.completions * args.tokens
            print(
                f"{name}, detokenize {detokenize}: {seconds:.2f} s, {tokens / seconds:.0f} "
                f"tokens/s, {1000 * seconds / args.tokens:.2f} ms a step",
                flush=True,
            )
    if args.profile:
        params.max_tokens = 100
        start = time.time()
        with profile(True):
            llm.generate(prompts, params, lora_request=request, use_tqdm=False)
        print(f"100 tokens under the profiler: {time.time() - start:.2f} s")


def make_adapter(model):
    """Write an adapter of rank 32 with small random values; return its folder."""
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    lora = LoraConfig(
        r=32, lora_alpha=64, target_modules=train.LORA_TARGETS, base_model_name_or_path=model
    )
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
        tensors = get_peft_model_state_dict(get_peft_model(base, lora))
    folder = tempfile.mkdtemp()
    lora.save_pretrained(folder)
    tensors = {key: 0.001 * torch.randn(value.shape) for key, value in tensors.items()}
    save_file(tensors, os.path.join(folder, "adapter_model.safetensors"))
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="local folder")
    parser.add_argument("settings", nargs="*", help="LLM's settings, for instance enforce_eager=1")
    parser.add_argument("--no-lora", action="store_true")
    parser.add_argument("--quick", action="store_true", help="only an adapter, not detokenised")
    parser.add_argument("--profile", action="store_true", help="where the time goes, by kernel")
    parser.add_argument("--completions", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=907)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.4)
    main(parser.parse_args())
