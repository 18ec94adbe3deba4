"""How much of a small LoRA update reaches the rollouts? By log-probabilities, both ways of sync.

    python tests/gpu/rollouts_see_update.py MODEL            # train.py's way: a LoRA request
    python tests/gpu/rollouts_see_update.py MODEL --way merged       # TRL 1.14's own

The likeliest next tokens of many texts are scored by vLLM before and after lora_B gets values of
--size, and by the same model in float32. The share is the slope of vLLM's changes over the float32
changes: 100 % means that the policy that samples is the one that is trained. MODEL is a local
folder. The rounding of activations hides a small update: on a CPU (vLLM's CPU build) take --dtype
float32; on a GPU vLLM's LoRA kernels have 16 bits only, so --dtype float16 --size 0.03.
"""

import argparse
import functools
import math
import os
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
import data
import train

PROBLEMS = ["What is 12 + 7?", "Budi has 3 apples and buys 5 more. How many now?", "Solve 2x = 8."]


def main(args):
    train.set_environment()
    import torch
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer
    from trl.generation import vllm_generation

    model, tokenizer, peft_config = load(args.model)
    model = model.to(getattr(torch, args.dtype))
    if args.way == "adapter":
        train.let_vllm_take_adapters(32)
    start_vllm = vllm_generation.LLM
    vllm_generation.LLM = functools.partial(start_vllm, dtype=args.dtype)
    rows = [{"prompt": [{"role": "user", "content": problem}]} for problem in PROBLEMS]
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=lambda completions, **kwargs: [0.0 for _ in completions],
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=args.tokens,
            use_vllm=True,
            vllm_gpu_memory_utilization=args.gpu_memory_utilization,
            vllm_max_model_length=2048,
            bf16=torch.cuda.is_available(),
            report_to="none",
        ),
        train_dataset=Dataset.from_list(rows),
        peft_config=peft_config,
    )
    vllm = trainer.vllm_generation
    if args.way == "adapter":
        train.send_adapters_to_vllm(trainer)
    named = dict(trainer.model.named_parameters())
    base = {name: p.detach().clone() for name, p in named.items() if "lora" not in name}
    lora_b = [p for name, p in named.items() if "lora_B" in name]

    ids = [data.encode_prompt(tokenizer, row["prompt"]) for row in rows] * args.samples
    vllm.sync_weights()
    _, completions, _, _ = vllm.generate(ids, images=None, num_generations=1)
    texts = [prompt + list(rest) for prompt, rest in zip(ids, completions)]
    ends = [range(len(prompt), len(text), 5) for prompt, text in zip(ids, texts)]
    prefixes = [text[:end] for text, stops in zip(texts, ends) for end in stops]

    tokens, before = score_with_vllm(vllm, prefixes)
    exact_before = score_exactly(trainer.model, texts, ends, tokens)
    for p in lora_b:
        p.data.copy_(torch.randn_like(p).sign() * torch.rand_like(p) * args.size)
    vllm.sync_weights()
    change = score_with_vllm(vllm, prefixes, tokens)[1] - before
    moved = sum(not torch.equal(values, named[name]) for name, values in base.items())
    for name, values in base.items():
        named[name].data.copy_(values)
    exact = score_exactly(trainer.model, texts, ends, tokens) - exact_before
    kept = change.isfinite()  # a token that fell out of the 20 likeliest has no value
    change, exact = change[kept], exact[kept]
    share = (change * exact).sum() / exact.square().sum()
    print(
        f"{len(exact)} tokens, lora_B up to {args.size:g}, mean |change| {exact.abs().mean():.2e}"
    )
    print(f"{args.way}: {share:.1%} of it reaches the rollouts")
    print(f"{args.way}: {moved} of {len(base)} base tensors are changed after two syncs")


def load(folder):
    """Return (model, tokenizer, peft_config) as train.py loads them; time_update.py's too."""
    return train.load_with_trl(
        argparse.Namespace(
            model=folder,
            revision=None,
            seed=3407,
            lora_rank=32,
            lora_alpha=64,
            target_modules=train.LORA_TARGETS,
        )
    )


def score_with_vllm(vllm, texts, tokens=None):
    """Return (tokens, log-probabilities): the likeliest next token of each text, or `tokens`."""
    import torch
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=1, logprobs=20, temperature=0.0)
    prompts = [{"prompt_token_ids": ids} for ids in texts]
    outputs = vllm.llm.generate(prompts, params, use_tqdm=False)
    if tokens is None:
        tokens = [output.outputs[0].token_ids[0] for output in outputs]
    values = []
    for token, output in zip(tokens, outputs):
        logprobs = output.outputs[0].logprobs[0]
        values.append(logprobs[token].logprob if token in logprobs else math.nan)
    return tokens, torch.tensor(values, dtype=torch.float64)


def score_exactly(model, texts, ends, tokens):
    """Return the log-probabilities of the same tokens behind the same prefixes, in float32."""
    import torch

    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    model.float()
    values = []
    tokens = iter(tokens)
    for ids, stops in zip(texts, ends):
        with torch.no_grad():
            logits = model(torch.tensor([ids], device=model.device)).logits[0].double()
        for end in stops:
            values.append(logits[end - 1].log_softmax(-1)[next(tokens)].cpu())
    for name, p in model.named_parameters():
        p.data = p.data.to(dtypes[name])
    return torch.stack(values)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="local folder")
    parser.add_argument("--way", choices=["adapter", "merged"], default="adapter")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--size", type=float, default=3e-5, help="largest value in lora_B")
    parser.add_argument("--tokens", type=int, default=200, help="tokens of each text")
    parser.add_argument("--samples", type=int, default=4, help="texts of each problem")
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.4)
    main(parser.parse_args())
