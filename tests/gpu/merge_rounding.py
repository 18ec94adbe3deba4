"""How much of a LoRA's change do 16-bit weights hold? TRL merges the adapter into them before every rollout, export.py once.

    python tests/gpu/merge_rounding.py       # a CPU is enough: one 4096-wide matrix of the 8B shape's size of weights
"""
import torch

torch.manual_seed(0)
rank, scale, width, rows = 32, 2, 4096, 2048
base = (0.02 * torch.randn(rows, width)).bfloat16()
lora_a = (2 * torch.rand(rank, width) - 1) / width**0.5  # PEFT's initial values; training hardly changes their size
sign = torch.randn(rows, rank).sign()
print("| largest value in lora_B | share of the change that the merged weights hold |\n|---|---|")
for largest in (3e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2e-3, 5e-3):
    delta = scale * (sign * largest * torch.rand(rows, rank)) @ lora_a
    merged = (base.float() + delta).bfloat16().float()
    print(f"| {largest:g} | {((merged - base.float()) * delta).sum() / delta.square().sum():.0%} |")

weight, lora_b = base.clone(), torch.zeros(rows, rank)
for step in range(100):  # merge for the rollout, unmerge after it: base + delta - delta is not always base
    lora_b += sign * 2e-5 * torch.rand(rows, rank)
    delta = (scale * lora_b @ lora_a).bfloat16()
    weight = weight + delta - delta
drift = (weight.float() - base.float()).norm()
print(f"100 merges and unmerges: the base has moved by {drift / delta.float().norm():.0%} of the change's norm, "
      f"{drift / base.float().norm():.2%} of its own")
