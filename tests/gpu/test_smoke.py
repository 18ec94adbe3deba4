"""The real stack on one GPU in a few minutes, on a tiny model: two steps with each engine, evaluation with vLLM, export.

Both engines run at the same time, each as if it had a card of 8 GiB.

    bash tests/run.sh gpu
"""
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
torch = pytest.importorskip("torch")
from safetensors.torch import load_file, save_file
sys.path.insert(0, str(ROOT))
from data import load_tokenizer
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
CARD = ("tests/gpu/as_card.py", 8)


def run_script(*arguments):
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=400)
    if done.returncode:
        pytest.fail(f"{arguments} exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}", pytrace=False)
    return done.stdout


def train(tiny, output, engine):
    run_script(*CARD, "train.py", "--engine", engine, "--no-load-in-4bit", "--model", tiny / "model", "--dataset", tiny / "train.jsonl", "--output-dir", output,
               "--eval-fraction", 0.2, "--max-seq-length", 256, "--max-steps", 2, "--num-generations", 8, "--learning-rate", 1e-3,
               "--gpu-memory-utilization", 0.5, "--rewards", "improved", "--warmup-ratio", 0)


def train_and_evaluate(tiny, output):
    train(tiny, output, "unsloth")
    path = output / "grpo_lora" / "adapter_model.safetensors"  # made strong, so that the arms show whether it reaches one of them, both or none
    save_file({key: tensor * (60 if "lora_B" in key else 1) for key, tensor in load_file(path).items()}, path)
    run_script(*CARD, "evaluate.py", "--output-dir", output, "--split", "held-out", "--num-samples", 30, "--max-tokens", 96, "--gpu-memory-utilization", 0.5)
    return output


def train_and_export(tiny, output):
    train(tiny, output, "trl")
    run_script("export.py", "--output-dir", output, "--format", "merged_16bit", "lora")
    return output


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The output folders of both engines, as futures."""
    tiny = tmp_path_factory.mktemp("tiny")
    run_script("tests/make_demo_model.py", "--output-dir", tiny, "--steps", 150, "--head-dim", 64)
    tokenizer = load_tokenizer(tiny / "model")
    tokenizer.pad_token = tokenizer.bos_token  # Unsloth refuses a model that pads with its end token
    tokenizer.save_pretrained(tiny / "model")
    with ThreadPoolExecutor() as pool:
        yield {"unsloth": pool.submit(train_and_evaluate, tiny, tiny / "unsloth"), "trl": pool.submit(train_and_export, tiny, tiny / "trl")}


@pytest.mark.parametrize("engine", ["unsloth", "trl"])
def test_train(outputs, engine):
    """train.py itself has checked that the rollouts follow the adapter, and that the adapter is trained."""
    run = json.loads((outputs[engine].result() / "run.json").read_text())
    print(f"{engine}: {run['seconds_to_first_step']} s to the first step's end, {run['seconds']} s in all, {run['peak_memory_gib']} GiB")
    assert run["effective"]["fast_inference"] and run["last_step"]["step"] == 2


def test_evaluate_reaches_one_arm_only(outputs):
    folder = outputs["unsloth"].result() / "eval"
    results = json.loads((folder / "results.json").read_text())
    assert results["n"] == 30 and results["base"]["truncation_rate"] < 0.5
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert sum(row["base"]["text"] != row["lora"]["text"] for row in samples) > 15


def test_export(outputs):
    formats = json.loads((outputs["trl"].result() / "export" / "export.json").read_text())["formats"]
    assert formats["merged_16bit"]["agreement"]["merged_16bit"] >= 0.9 and "lora" in formats
