"""`bash run.sh demo` learns, survives being killed, and does nothing twice. Minutes on a CPU.

bash tests/run.sh -k demo
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

ADAPTER = "outputs-demo/grpo_lora/adapter_model.safetensors"


def start(folder):
    """Start `bash run.sh demo` in a copy of the repository, with this Python."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", folder / "run.sh", "demo"],
        env=os.environ | {"SKIP_INSTALL": "1", "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """(folder, text of the killed run, text of the same command after it)."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "tests").mkdir()
    for name in ("run.sh", *(path.name for path in ROOT.glob("*.py"))):
        shutil.copy(ROOT / name, folder)
    shutil.copy(ROOT / "tests/make_demo_model.py", folder / "tests")

    killed = []
    run = start(folder)
    for line in run.stdout:
        killed.append(line)
        if re.match(r"\s*2[3-9]/40 ", line):
            os.killpg(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, "".join(killed)

    run = start(folder)
    text = run.communicate(timeout=1200)[0]
    assert run.returncode == 0, text
    return folder, "".join(killed), text


def test_a_killed_run_goes_on(demo):
    folder, killed, text = demo
    assert "skipped: demo/train.jsonl" not in killed and "skipped: demo/train.jsonl" in text
    assert "resuming outputs-demo from outputs-demo/checkpoint-20" in text
    steps = [int(step) for step in re.findall(r"^\s*(\d+)/40 ", text, re.MULTILINE)]
    assert steps == list(range(21, 41))
    assert json.loads((folder / "outputs-demo/run.json").read_text())["state"] == "finished"


def test_the_demo_learns(demo):
    folder, _, _ = demo
    results = json.loads((folder / "outputs-demo/eval/results.json").read_text())
    before, after = results["base"], results["lora"]
    assert results["n"] == 200
    assert before["indonesian_rate"] <= 0.5 and after["indonesian_rate"] >= 0.8
    assert after["indonesian_and_correct"] - before["indonesian_and_correct"] >= 0.3


def test_the_demo_ends_with_a_model_and_the_next_commands(demo):
    folder, _, text = demo
    assert [*(folder / "outputs-demo/export/merged_16bit").glob("*.safetensors")]
    assert "python evaluate.py --output-dir outputs-demo --prompt" in text


def test_the_same_command_again_does_nothing(demo):
    folder, _, _ = demo
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in files if "__pycache__" not in path.parts]
    before = {path: path.stat().st_mtime_ns for path in files}
    run = start(folder)
    text = run.communicate(timeout=300)[0]
    assert run.returncode == 0 and text.count("skipped: ") == 3
    assert "outputs-demo: this run is finished, nothing to do" in text
    assert {path: path.stat().st_mtime_ns for path in files} == before
