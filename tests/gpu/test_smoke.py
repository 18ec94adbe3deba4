"""The real stack on one GPU in a few minutes, on a tiny model: two steps with each engine, evaluation with vLLM, export.

    bash tests/run.sh gpu
"""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")


def run_script(*arguments):
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=400)
    if done.returncode:
        pytest.fail(f"{arguments[0]} exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}", pytrace=False)
    return done.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    run_script("tests/make_demo_model.py", "--output-dir", folder, "--steps", 150, "--head-dim", 64)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.pad_token = tokenizer.bos_token  # Unsloth refuses a model that pads with its end token
    tokenizer.save_pretrained(folder / "model")
    return folder


def share_of_memory():
    """4 GiB, as vLLM's share of this GPU."""
    return round(4 * 2**30 / torch.cuda.get_device_properties(0).total_memory, 3)


def train(tiny, output, engine):
    out = run_script("train.py", "--engine", engine, "--no-load-in-4bit", "--model", tiny / "model", "--dataset", tiny / "train.jsonl", "--output-dir", output,
                     "--eval-fraction", 0.2, "--max-seq-length", 256, "--max-steps", 2, "--num-generations", 8, "--learning-rate", 1e-3,
                     "--gpu-memory-utilization", share_of_memory(), "--rewards", "improved", "--warmup-ratio", 0)
    assert "adapter:" in out  # train.py has checked that rollouts follow the adapter, and that it is trained
    assert json.loads((output / "run.json").read_text())["effective"]["vllm"]


def test_unsloth_train_evaluate(tiny, tmp_path):
    output = tmp_path / "outputs"
    train(tiny, output, "unsloth")
    path = output / "grpo_lora" / "adapter_model.safetensors"  # made strong, so that the arms show whether it reaches one of them, both or none
    save_file({key: tensor * (60 if "lora_B" in key else 1) for key, tensor in load_file(path).items()}, path)
    run_script("evaluate.py", "--output-dir", output, "--split", "held-out", "--num-samples", 30, "--max-tokens", 96, "--gpu-memory-utilization", share_of_memory())
    results = json.loads((output / "eval" / "results.json").read_text())
    assert results["n"] == 30 and results["base"]["truncation_rate"] < 0.5
    samples = [json.loads(line) for line in (output / "eval" / "samples.jsonl").read_text().splitlines()]
    assert sum(row["base"]["text"] != row["lora"]["text"] for row in samples) > 15


def test_trl_train_export(tiny, tmp_path):
    output = tmp_path / "outputs"
    train(tiny, output, "trl")
    run_script("export.py", "--output-dir", output, "--format", "merged_16bit", "lora")
    summary = json.loads((output / "export" / "export.json").read_text())
    assert summary["formats"]["merged_16bit"]["agreement"]["merged_16bit"] >= 0.9
