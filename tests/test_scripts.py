"""run.sh, README and the scripts do not drift apart. No training; seconds.

    bash tests/run.sh -k scripts
"""
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

SCRIPTS = ("train.py", "evaluate.py", "export.py", "data.py", "tests/make_demo_model.py")


def known_flags(script):
    done = subprocess.run([sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", done.stdout))


def commands(text):
    """Every call of one of our scripts in a shell text, as (script, flags); comment signs and line ends are joined."""
    text = re.sub(r"\\\n\s*", " ", text)
    for line in text.splitlines():
        match = re.search(r"(?:\"\$python\"|python3?) ((?:tests/)?\w+\.py)([^#|`]*)", line)
        if match and match[1] in SCRIPTS:
            yield match[1], re.findall(r"(?<!\w)--[a-z][a-z0-9-]*", match[2])


@pytest.mark.parametrize("name", ["run.sh", "README.md", *SCRIPTS, "tests/gpu/RESULTS.md"])
def test_every_flag_in_a_command_exists(name):
    text = (ROOT / name).read_text()
    found = list(commands(text))
    assert found, f"{name} shows no command"
    for script, flags in found:
        assert set(flags) <= known_flags(script), (name, script, set(flags) - known_flags(script))


@pytest.mark.parametrize("arguments, path, message", [
    (["nonsense"], None, "unknown recipe nonsense"), (["tutorial"], "/usr/bin:/bin", "tutorial needs an NVIDIA GPU"), (["improved"], "/usr/bin:/bin", "needs an NVIDIA GPU"),
    (["demo", "--output-dir", "x"], None, "run.sh sets --output-dir")])
def test_run_sh_refuses_in_one_line(arguments, path, message, tmp_path):
    done = subprocess.run(["bash", str(ROOT / "run.sh"), *arguments], capture_output=True, text=True, cwd=tmp_path, env=os.environ | ({"PATH": path} if path else {}))
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr and len(done.stderr.splitlines()) == 1


def run_with_stand_ins(folder, *arguments, run_sh=ROOT / "run.sh", environment={"SKIP_INSTALL": "1"}, **programs):
    """Run run.sh with shell scripts in place of the named programs; unless told otherwise, without making an environment."""
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return subprocess.run(["bash", str(run_sh), *arguments], capture_output=True, text=True,
                          env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | environment)


@pytest.mark.parametrize("recipe", ["tutorial", "fast", "improved", "demo"])
def test_run_sh_gives_further_flags_to_train(recipe, tmp_path):
    done = run_with_stand_ins(tmp_path, recipe, "--seed", "7", **{"nvidia-smi": "exit 0", "python3": 'echo "$@"'})
    calls = [line for line in done.stdout.splitlines() if line.startswith(("train.py", "evaluate.py", "export.py"))]
    assert done.returncode == 0 and [call.split()[0] for call in calls] == ["train.py", "evaluate.py", "export.py"]
    assert [call.endswith(" --seed 7") for call in calls] == [True, False, False]


def test_run_sh_names_a_driver_that_is_too_old(tmp_path):
    done = run_with_stand_ins(tmp_path, "fast", **{"nvidia-smi": "exit 0", "python3": "exit 1"})
    assert done.returncode == 2 and done.stderr.startswith("error: PyTorch does not see the GPU") and done.stderr.count("\n") == 1


def test_run_sh_names_a_missing_compiler_before_it_installs(tmp_path):
    for name in ("run.sh", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    done = run_with_stand_ins(tmp_path, "fast", run_sh=tmp_path / "run.sh", environment={"CC": "gcc", "SKIP_INSTALL": ""},
                              **{"nvidia-smi": "exit 0", "gcc": "exit 1"})
    assert done.returncode == 2 and done.stderr.startswith("error: a C compiler and Python's headers") and done.stderr.count("\n") == 1
    assert not (tmp_path / ".venv").exists()


def test_run_sh_help():
    done = subprocess.run(["bash", str(ROOT / "run.sh"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and all(f"bash run.sh {recipe} " in done.stdout for recipe in ("tutorial", "fast", "improved", "demo")) and "set -e" not in done.stdout


def test_shell_scripts_parse():
    for name in ("run.sh", "tests/run.sh", "tests/gpu/measure.sh", "tests/gpu/smollm2.sh", "tests/seeds.sh", ".ci/run"):
        subprocess.run(["bash", "-n", str(ROOT / name)], check=True)


def test_pins_are_exact_and_agree():
    pins = {}
    for name in ("requirements.txt", "tests/requirements.txt"):
        for line in (ROOT / name).read_text().splitlines():
            line = line.split("#")[0].strip()
            if line:
                package, version = line.split("==")
                if package != "torch":
                    assert pins.setdefault(package, version) == version, package


def test_nothing_else_at_the_top():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    assert {name.split("/")[0] for name in tracked} <= {
        "train.py", "evaluate.py", "export.py", "rewards.py", "data.py", "run.sh", "requirements.txt", "tests", "README.md", "LICENSE", ".gitignore", ".ci"}


def test_tutorial_defaults():
    help_text = subprocess.run([sys.executable, str(ROOT / "train.py"), "--help"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "400"}).stdout
    for flag, value in {"max-seq-length": 1024, "lora-rank": 32, "gpu-memory-utilization": 0.7, "seed": 3407, "min-p": 0.1, "top-p": 1.0, "top-k": -1, "temperature": 1.0,
                        "learning-rate": 5e-06, "weight-decay": 0.01, "warmup-ratio": 0.1, "lr-scheduler-type": "linear", "optim": "adamw_8bit", "num-generations": 4,
                        "per-device-train-batch-size": 1, "gradient-accumulation-steps": 1, "max-steps": 100, "save-steps": 100, "report-to": "swanlab", "output-dir": "outputs",
                        "load-in-4bit": True, "fast-inference": True, "engine": "unsloth", "loss-type": "bnpo", "beta": 0.001, "max-prompt-quantile": 0.9,
                        "dataset": "open-r1/DAPO-Math-17k-Processed", "system-prompt": "zh"}.items():
        assert re.search(rf"\n  --{flag}\b.*?\(default: ([^)]*)\)", help_text, re.DOTALL)[1] == str(value), flag
