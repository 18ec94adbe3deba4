"""Shared by the tests: a tiny model, a trained adapter, and running scripts as users do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"


def run_script(*arguments, cwd=ROOT, **environment):
    """Run `python SCRIPT ARGUMENTS...` from the repository and return the finished process."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with model/ (Qwen3, untrained but for two steps) and train.jsonl."""
    folder = tmp_path_factory.mktemp("tiny")
    done = run_script("tests/make_demo_model.py", "--output-dir", folder, "--steps", 2)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def trained(tiny, tmp_path_factory):
    """An output folder of train.py: two real GRPO steps with a checkpoint at each."""
    output = tmp_path_factory.mktemp("trained") / "outputs"
    done = run_script("train.py", *train_arguments(tiny, output))
    assert done.returncode == 0, done.stderr[-3000:]
    (output / "stdout.txt").write_text(done.stdout)
    return output


def train_arguments(tiny, output, **changes):
    """Return train.py's flags for two quick steps; `changes` replace or add some (True: bare)."""
    flags = {
        "engine": "trl",
        "model": tiny / "model",
        "dataset": tiny / "train.jsonl",
        "output-dir": output,
        "eval-fraction": 0.2,
        "max-seq-length": 128,
        "num-generations": 4,
        "per-device-train-batch-size": 8,
        "learning-rate": 1e-3,
        "max-steps": 2,
        "save-steps": 1,
        "use-gradient-checkpointing": "false",
    }
    flags |= {name.replace("_", "-"): value for name, value in changes.items()}
    arguments = []
    for name, value in flags.items():
        arguments += [f"--{name}"] if value is True else [f"--{name}", value]
    return arguments
