"""Run train.py with the flags given and print where each step's seconds went.

The points are TRL's own profiling points.

    python tests/gpu/profile_step.py --engine trl --model ... --max-steps 3
"""

import collections
import os
import runpy
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
import trl.extras.profiling as profiling

seconds = collections.Counter()


def finish(self, *exception):
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    name = self.name.split(".")[-1]
    seconds[name] += time.perf_counter() - self._start_time
    if name == "generate" and os.environ.get("RANK", "0") == "0":  # once a step
        rounded = {name: round(value, 2) for name, value in seconds.items()}
        print("PROFILE, seconds since the start:", rounded, flush=True)


profiling.ProfilingContext.__exit__ = finish
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
