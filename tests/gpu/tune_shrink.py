"""Find this GPU's settings for vLLM's LoRA shrink kernel, whose own are slow for 64 and 128 texts.

    python tests/gpu/tune_shrink.py FOLDER      # a minute; then, for an 8B model of Qwen3's shape,
    VLLM_TUNED_CONFIG_FOLDER=FOLDER bash run.sh fast

vLLM 0.23 reads FOLDER/NAME_OF_THE_GPU_SHRINK.json and says so in its log. Each setting's result is
compared with a float32 product; the fastest one per shape is kept. Settings for 4,096 tokens are
vLLM's own: the long prompts' work is not a decode step's.
"""

import argparse
import itertools
import json
import os

RANK = 32
# inputs of the layers that vLLM computes together: q, k, v; gate, up; o alone, and down
SHAPES = [(3, 4096), (2, 4096), (1, 4096), (1, 12288)]


def main(args):
    import torch

    settings = {}
    totals = {}
    for tokens in (64, 128, 4096):
        totals[tokens] = [0, 0]
        for layers, size in SHAPES:
            default, best, setting = tune(layers, size, tokens)
            print(
                f"{layers} x {size}, {tokens} tokens: {default:.2f} us, {best:.2f} with {setting}"
            )
            totals[tokens][0] += default
            totals[tokens][1] += best
            # as vLLM looks them up: adapters + 1, layers, tokens, input size, rank
            by_tokens = settings.setdefault(str(layers), {})
            by_tokens.setdefault(str(tokens), {})[str(size)] = {str(RANK): setting}
    for tokens, (default, best) in totals.items():
        print(f"{tokens} tokens, 36 layers: {36e-3 * default:.2f} -> {36e-3 * best:.2f} ms")
    os.makedirs(args.folder, exist_ok=True)
    name = torch.cuda.get_device_name().replace(" ", "_").replace("-", "_")
    path = os.path.join(args.folder, f"{name}_SHRINK.json")
    with open(path, "w") as file:
        json.dump({"2": settings}, file, indent=1)
    print(path)


def tune(layers, size, tokens):
    """Return (microseconds with vLLM's setting, with the best one, the best setting)."""
    import torch
    from vllm.lora.ops.triton_ops import lora_shrink_op, utils
    from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta

    default = utils.get_lora_op_configs(
        "shrink", max_loras=2, batch=tokens, hidden_size=size, rank=RANK, num_slices=layers
    )
    ways = [default]
    if tokens < 4096:
        for m, n, k, split in itertools.product([16, 32], [16, 32], [64, 128, 256], [4, 8, 16, 32]):
            if size % (k * split) == 0:
                ways.append(default | {"block_m": m, "block_n": n, "block_k": k, "split_k": split})

    gpu = {"device": "cuda", "dtype": torch.bfloat16}
    inputs = torch.randn(tokens, size, **gpu)
    lora_a = [0.02 * torch.randn(1, 1, RANK, size, **gpu) for _ in range(layers)]
    wanted = torch.stack([inputs.float() @ a[0, 0].float().T for a in lora_a])
    output = torch.zeros_like(wanted)
    meta = LoRAKernelMeta.make(1, tokens, "cuda")
    meta.prepare_tensors(torch.zeros(tokens, dtype=torch.int32, device="cuda"))
    meta = meta.meta_args(tokens, specialize_active_lora=False)

    times = []
    for way in ways:
        lora_shrink_op.get_lora_op_configs = lambda *args, way=way, **kwargs: way
        times.append(
            time_kernel(lambda: lora_shrink_op._lora_shrink(inputs, lora_a, output, *meta, 1))
        )
        if (output - wanted).abs().max() > 1e-3 * wanted.abs().max():
            times[-1] = float("inf")
    best = min(range(len(ways)), key=times.__getitem__)
    return times[0], times[best], ways[best]


def time_kernel(call):
    """Return the microseconds of a call, as a CUDA graph runs it."""
    import triton

    call()  # compiles it
    return 1000 * triton.testing.do_bench_cudagraph(call, rep=10)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="where the settings go")
    main(parser.parse_args())
