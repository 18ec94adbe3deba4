"""Teach a LoRA adapter fixed answers to export.py's prompts: even random weights then have greedy
tokens to agree on.

    python tests/gpu/make_adapter.py MODEL OUTPUT_DIR       # writes OUTPUT_DIR/grpo_lora
    python export.py --output-dir OUTPUT_DIR --model MODEL
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from test_export import make_adapter

from data import load_tokenizer

base, output = sys.argv[1:3]
folder = os.path.join(output, "grpo_lora")
make_adapter(base, folder, load_tokenizer(base), steps=30, rate=1e-3, device="cuda")
