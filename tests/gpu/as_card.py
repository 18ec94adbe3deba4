"""Run a script as if the GPU had only GIB GiB.

It shows what fits a smaller card, and lets runs share a large one undisturbed.

    python tests/gpu/as_card.py 24 train.py --model MODEL ...

PyTorch gets no more than that. vLLM and Unsloth size their caches by what the driver says is free:
they are told what this process has left of its card. What the driver itself takes (context,
kernels) is CONTEXT, checked at the end. Processes take turns on a GPU: two at once are two times
slower each, so take it for memory, or where a run waits for something else.
"""

import os
import runpy
import sys

import pynvml
import torch

CONTEXT = 1.0 * 2**30
size = float(sys.argv[1]) * 2**30
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # evaluate.py's engine, too, in this process
pynvml.nvmlInit()
card = pynvml.nvmlDeviceGetHandleByIndex(
    int(os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0])
)
share = (size - CONTEXT) / pynvml.nvmlDeviceGetMemoryInfo(card).total
# later: Unsloth sets up the allocator first
torch.cuda._lazy_call(lambda: torch.cuda.set_per_process_memory_fraction(share))


def mem_get_info(device=None):
    return int(size - CONTEXT - torch.cuda.memory_reserved()), int(size)


torch.cuda.mem_get_info = mem_get_info
sys.path.insert(0, os.getcwd())
sys.argv = sys.argv[2:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(card)
    used = [process.usedGpuMemory for process in processes if process.pid == os.getpid()]
    driver = "unknown"
    if used and used[0]:
        driver = f"{(used[0] - torch.cuda.memory_reserved()) / 2**30:.2f} GiB"
    reserved = torch.cuda.max_memory_reserved() / 2**30
    print(
        f"card of {size / 2**30:g} GiB: PyTorch reserved at most {reserved:.2f} GiB, the driver's "
        f"own part is {driver}, estimated {CONTEXT / 2**30:.2f}",
        flush=True,
    )
