"""How much of a LoRA's change do 16-bit weights hold? TRL 1.14 merges before every rollout.

    python tests/gpu/merge_rounding.py      # a CPU is enough: one matrix of the 8B shape's width

This is why train.py hands vLLM the adapter itself; export.py's merged_16bit still rounds so, once.
"""

import torch

torch.manual_seed(0)
rank, scale, width, rows = 32, 2, 4096, 2048
base = (0.02 * torch.randn(rows, width)).bfloat16()
lora_a = (2 * torch.rand(rank, width) - 1) / width**0.5  # PEFT's start; training hardly changes it
sign = torch.randn(rows, rank).sign()
print("| largest value in lora_B | share of the change that the merged weights hold |\n|---|---|")
for largest in (3e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 5e-3):
    delta = scale * (sign * largest * torch.rand(rows, rank)) @ lora_a
    merged = (base.float() + delta).bfloat16().float()
    share = ((merged - base.float()) * delta).sum() / delta.square().sum()
    print(f"| {largest:g} | {share:.0%} |")

weight = base.clone()
lora_b = torch.zeros(rows, rank)
for step in range(100):  # merge, unmerge: base + delta - delta is not always the base
    lora_b += sign * 2e-5 * torch.rand(rows, rank)
    delta = (scale * lora_b @ lora_a).bfloat16()
    weight = weight + delta - delta
drift = (weight.float() - base.float()).norm()
of_change = drift / delta.float().norm()
of_base = drift / base.float().norm()
print(f"100 merges and unmerges moved the base by {of_change:.0%} of the change, {of_base:.2%}")
