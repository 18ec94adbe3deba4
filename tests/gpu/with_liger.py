"""Run train.py with Liger's RMSNorm, RoPE and SwiGLU for Qwen3 (pip install liger-kernel==0.8.5).

    SCRIPT=tests/gpu/with_liger.py bash tests/gpu/measure.sh MODEL DATA OUT fast

Not its loss: TRL's own stays, which logs rollout_logp_difference. time_update.py has shown 25 %
less for the update; a whole step has not been timed yet.
"""

import os
import runpy
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
import train

train.set_environment()
from liger_kernel.transformers import apply_liger_kernel_to_qwen3

apply_liger_kernel_to_qwen3(fused_linear_cross_entropy=False)
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
