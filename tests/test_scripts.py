"""run.sh, the locks, README and the scripts do not drift apart. No training; seconds.

bash tests/run.sh -k scripts
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_script

SCRIPTS = ["train.py", "evaluate.py", "export.py", "data.py", "tests/make_demo_model.py"]
SHELL_SCRIPTS = ["run.sh", "tests/run.sh", "tests/seeds.sh", "tests/locks/renew.sh", ".ci/run"]
RECIPES = ["tutorial", "fast", "improved", "demo"]
TOP = {
    ".ci",
    ".github",
    ".gitignore",
    ".ruff.toml",
    "LICENSE",
    "README.md",
    "README.zh.md",
    "README.zh.md",
    "data.py",
    "evaluate.py",
    "export.py",
    "requirements.txt",
    "rewards.py",
    "run.sh",
    "tests",
    "train.py",
}


# --------------------------------------------------------------------------------------------------
# Commands and flags


def known_flags(script):
    done = run_script(script, "--help")
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", done.stdout))


def commands(text):
    """Every call of one of our scripts in a shell text, as (script, flags)."""
    text = re.sub(r"\\\n\s*", " ", text)
    for line in text.splitlines():
        call = r"(?:\"\$python\"|python3?|on_all_gpus) ((?:tests/)?\w+\.py)([^#|`]*)"
        match = re.search(call, line)
        if match and match[1] in SCRIPTS:
            yield match[1], re.findall(r"(?<!\w)--[a-z][a-z0-9-]*", match[2])


@pytest.mark.parametrize(
    "name", ["run.sh", "README.md", "README.zh.md", *SCRIPTS, "tests/gpu/RESULTS.md"]
)
def test_every_flag_in_a_command_exists(name):
    found = list(commands((ROOT / name).read_text()))
    assert found, f"{name} shows no command"
    for script, flags in found:
        assert set(flags) <= known_flags(script), (name, script, set(flags) - known_flags(script))


def test_the_flag_test_sees_every_call_of_run_sh():
    calls = [script for script, flags in commands((ROOT / "run.sh").read_text())]
    assert [calls.count(script) for script in ("train.py", "evaluate.py")] == [5, 6]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_nothing_but_python(script):
    done = subprocess.run([sys.executable, "-S", ROOT / script, "--help"], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "export.py", "data.py"])
@pytest.mark.parametrize("argument", ["--output-di=x", "--out=x", "--nonsense", "--mod=x"])
def test_abbreviations_and_unknown_flags_are_refused(script, argument):
    done = run_script(script, argument)
    assert done.returncode == 2
    assert done.stderr == f"error: unrecognized arguments: {argument}\n"


@pytest.mark.parametrize(
    "name, value",
    [
        ("model", "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"),
        ("dataset", "open-r1/DAPO-Math-17k-Processed"),
        ("dataset_config", "en"),
        ("system_prompt", "zh"),
        ("target_lang", "id"),
        ("max_prompt_quantile", 0.9),
        ("max_seq_length", 1024),
        ("load_in_4bit", True),
        ("fast_inference", True),
        ("gpu_memory_utilization", 0.7),
        ("lora_rank", 32),
        ("lora_alpha", 64),
        ("seed", 3407),
        ("min_p", 0.1),
        ("top_p", 1.0),
        ("top_k", -1),
        ("temperature", 1.0),
        ("learning_rate", 5e-6),
        ("weight_decay", 0.01),
        ("warmup_ratio", 0.1),
        ("lr_scheduler_type", "linear"),
        ("optim", "adamw_8bit"),
        ("num_generations", 4),
        ("per_device_train_batch_size", 4),  # what Unsloth makes of the tutorial's 1
        ("gradient_accumulation_steps", 1),
        ("max_steps", 100),
        ("report_to", "swanlab"),
        ("output_dir", "outputs"),
        ("engine", "unsloth"),
        ("rewards", "tutorial"),
        ("loss_type", "bnpo"),
        ("beta", 0.001),
    ],
)
def test_tutorial_defaults(monkeypatch, name, value):
    import train

    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert vars(train.parse_arguments())[name] == value


def test_nothing_else_at_the_top():
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    tracked = done.stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    assert {name.split("/")[0] for name in tracked} <= TOP


@pytest.mark.parametrize("name", SHELL_SCRIPTS)
def test_shell_scripts_parse_and_are_narrow(name):
    subprocess.run(["bash", "-n", ROOT / name], check=True)
    assert max(len(line) for line in (ROOT / name).read_text().splitlines()) <= 100


def test_actions_are_pinned_by_commit():
    workflow = (ROOT / ".github/workflows/test.yml").read_text()
    uses = re.findall(r"uses: (.*)", workflow)
    assert uses and all(re.match(r"[\w-]+/[\w-]+@[0-9a-f]{40} ", use) for use in uses)


# --------------------------------------------------------------------------------------------------
# Requirements and locks


def pins(path):
    """Return {package: version} of a requirement file or a lock; names as pip compares them."""
    found = {}
    for line in (ROOT / path).read_text().splitlines():
        match = re.match(r"([\w.-]+)(?:\[[\w,]+\])?==([^\s;\\]+)", line)
        if match:
            name = re.sub(r"[-_.]+", "-", match[1]).lower()
            found.setdefault(name, set()).add(match[2])
        else:
            assert not line or line.startswith(("#", "    --hash=sha256:")), line
    return found


CPU_LOCKS = ["tests/locks/cpu.txt", "tests/locks/cpu-torch.txt"]


def cpu_lock():
    return pins(CPU_LOCKS[0]) | pins(CPU_LOCKS[1])


def test_both_requirement_files_agree():
    gpu = pins("requirements.txt")
    cpu = pins("tests/requirements.txt")
    different = [name for name in gpu if name in cpu and gpu[name] != cpu[name]]
    assert different == ["torch"] and len(gpu) > 15 and len(cpu) > 15


@pytest.mark.parametrize("environment", ["gpu", "cpu"])
def test_locks_hold_what_the_requirements_name(environment):
    gpu = environment == "gpu"
    wanted = pins("requirements.txt" if gpu else "tests/requirements.txt")
    locked = pins("tests/locks/gpu.txt") if gpu else cpu_lock()
    assert {name: locked.get(name) for name in wanted} == wanted
    assert "swanboard" in locked  # SwanLab's local page, from swanlab[dashboard]


@pytest.mark.parametrize("path", ["tests/locks/gpu.txt", *CPU_LOCKS])
def test_every_locked_package_has_a_hash(path):
    lines = (ROOT / path).read_text().splitlines()
    for line, following in zip(lines, [*lines[1:], ""]):
        if not line.startswith(" "):
            assert line.endswith(" \\") and re.match(r"    --hash=sha256:[0-9a-f]{64}", following)


def test_the_small_torch_is_the_same_version():
    small = pins("tests/locks/cpu-torch-small.txt")["torch"]
    assert small == {f"{version}+cpu" for version in pins("tests/requirements.txt")["torch"]}


def test_the_environment_is_the_lock():
    from importlib.metadata import distributions

    if not (ROOT / ".venv-cpu").exists() or not Path(sys.prefix).samefile(ROOT / ".venv-cpu"):
        pytest.skip("run in another environment than run.sh's")
    locked = cpu_lock()
    for distribution in distributions():
        name = re.sub(r"[-_.]+", "-", distribution.name).lower()
        if name not in ("pip", "setuptools", "wheel", "torch"):
            assert distribution.version in locked.get(name, ()), name


# --------------------------------------------------------------------------------------------------
# run.sh with stand-ins for the programs that it calls

SMI = """case "$*" in
  *--id=MIG*) exit 6 ;;
  *--query-gpu*) echo "asked $*" >> {log}; printf '{memories}\\n' ;;
  *) echo '| NVIDIA-SMI 580.65   Driver Version: 580.65   CUDA Version: {cuda}   |' ;;
esac"""
SAY = 'echo "$@ on=${CUDA_VISIBLE_DEVICES-all}"'


@pytest.fixture
def copy(tmp_path):
    """A folder with run.sh and what it reads, to run without touching this checkout."""
    folder = tmp_path / "repository"
    shutil.copytree(ROOT / "tests/locks", folder / "tests/locks")
    for name in ("run.sh", "requirements.txt", "tests/requirements.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def gpus(folder, *memories, cuda="13.0"):
    log = folder / "nvidia-smi.log"
    return {"nvidia-smi": SMI.format(log=log, memories="\\n".join(map(str, memories)), cuda=cuda)}


def run_sh(folder, *arguments, programs={}, **environment):
    """Run FOLDER/run.sh with shell scripts in place of the named programs."""
    stand_ins = folder / "stand-ins"
    stand_ins.mkdir(exist_ok=True)
    for name, text in programs.items():
        (stand_ins / name).write_text(f"#!/bin/sh\n{text}\n")
        (stand_ins / name).chmod(0o755)
    known = {name: os.environ[name] for name in ("HOME", "PATH")}
    known["PATH"] = f"{stand_ins}:{known['PATH']}"
    return subprocess.run(
        ["bash", folder / "run.sh", *arguments],
        capture_output=True,
        text=True,
        env=known | environment,
    )


def calls(folder, *arguments, programs={}, **environment):
    """The calls that run.sh makes of our scripts, one line each, where python3 only says them."""
    programs = {"python3": SAY} | (programs or gpus(folder, 81559))
    done = run_sh(folder, *arguments, programs=programs, SKIP_INSTALL="1", **environment)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if re.search(r"\w\.py .* on=", line)]


def refused(done, message):
    """One line on stderr that names the cause, exit 2, and nothing installed."""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.returncode == 2 and message in done.stderr


def test_help(copy):
    done = run_sh(copy, "--help")
    assert done.returncode == 0 and "set -e" not in done.stdout
    for word in [*(f"bash run.sh {recipe} " for recipe in RECIPES), "HF_ENDPOINT", "outputs-fast"]:
        assert word in done.stdout
    read = set(re.findall(r"\$\{([A-Z_]{4,})", (copy / "run.sh").read_text())) - {"BASH_SOURCE"}
    assert read and all(f"\n  {name}" in done.stdout for name in read)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nonsense"], "unknown recipe nonsense"),
        (["tutorial"], "tutorial needs an NVIDIA GPU"),
        (["improved"], "improved needs an NVIDIA GPU"),
        (["demo", "--output-dir", "x"], "run.sh names the folder itself"),
        (["demo", "--output-dir=x"], "run.sh names the folder itself"),
        (["install"], "say which"),
        (["install", "tpu"], "say which"),
    ],
)
def test_refuses_in_one_line(copy, arguments, message):
    assert refused(run_sh(copy, *arguments, programs={"nvidia-smi": "exit 9"}), message)


def test_no_visible_gpu_is_no_gpu(copy):
    done = run_sh(copy, "fast", programs=gpus(copy, 81559), CUDA_VISIBLE_DEVICES="")
    assert refused(done, "fast needs an NVIDIA GPU")


@pytest.mark.parametrize("recipe", ["", *RECIPES])
def test_further_flags_go_to_train(copy, recipe):
    made = calls(copy, *([recipe, "--seed", "7"] if recipe else []))
    made = [line for line in made if "make_demo" not in line]
    scripts = [line.split()[0] for line in made]
    twice = ["evaluate.py"] * (2 if recipe == "improved" else 1)
    assert scripts == ["train.py", *twice, "export.py"]
    folders = {re.search(r"--output-dir (\S+)", line)[1] for line in made}
    assert folders == {"outputs" if recipe in ("", "tutorial") else f"outputs-{recipe}"}
    for line in made:
        assert (" --seed 7 on=" in line) == (line.startswith("train.py") and recipe != "")
        assert (" --resume " in line) == line.startswith("train.py")


def test_improved_is_evaluated_without_a_system_prompt_too(copy):
    with_prompt, without = calls(copy, "improved")[1:3]
    added = " --system-prompt none --name eval-no-system-prompt"
    assert added not in with_prompt and without == with_prompt.replace(" on=", f"{added} on=")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_command_again_skips_what_is_done(copy, recipe):
    out = copy / ("outputs" if recipe == "tutorial" else f"outputs-{recipe}")
    results = ["eval/results.json", "export/export.json", "grpo_lora/adapter_model.safetensors"]
    if recipe == "improved":
        results.append("eval-no-system-prompt/results.json")
    for name in results:
        (out / name).parent.mkdir(parents=True)
        (out / name).touch()
    adapter = out / results[2]
    os.utime(adapter, (1e9, 1e9))  # older than the results
    made = [line.split()[0] for line in calls(copy, recipe) if "make_demo" not in line]
    assert made == ["train.py"]
    programs = {"python3": SAY} | gpus(copy, 81559)
    done = run_sh(copy, recipe, programs=programs, SKIP_INSTALL="1")
    assert done.stdout.count("skipped: outputs") == len(results) - 1
    os.utime(adapter, (3e9, 3e9))  # trained on: newer than them
    assert len([line for line in calls(copy, recipe) if "make_demo" not in line]) == len(results)


@pytest.mark.parametrize("recipe", ["tutorial", "fast", "improved"])
@pytest.mark.parametrize("given", ["--gpu-memory-utilization 0.6", "--gpu-memory-utilization=0.6"])
def test_evaluation_gets_the_share_of_memory_that_training_got(copy, recipe, given):
    made = calls(copy, recipe, *given.split(), programs=gpus(copy, 24564))
    assert len(made) >= 3
    for line in made:
        assert (given in line) == line.startswith(("train.py", "evaluate.py"))
    assert "--gpu-memory" not in calls(copy, recipe)[1]


@pytest.mark.parametrize(
    "recipe, memory, fits",
    [
        ("tutorial", 24564, "bash run.sh tutorial --gpu-memory-utilization 0.6"),
        ("tutorial", 40960, "bash run.sh tutorial --gpu-memory-utilization 0.6"),
        ("fast", 40960, "utilization 0.65 --no-load-in-4bit --num-generations 8"),
        ("improved", 46068, "utilization 0.65 --no-load-in-4bit --num-generations 8"),
        ("improved", 24564, "bash run.sh tutorial --gpu-memory-utilization 0.6"),
        ("tutorial", 16376, "bash run.sh demo"),
        ("fast", "81559\\n24564", "bash run.sh tutorial --gpu-memory-utilization 0.6"),
    ],
)
def test_a_smaller_card_is_told_what_fits(copy, recipe, memory, fits):
    done = run_sh(copy, recipe, programs=gpus(copy, memory))
    assert refused(done, fits) and not (copy / ".venv").exists()


@pytest.mark.parametrize("model", [["--model", "m"], ["--model=m"]])
def test_with_another_model_a_smaller_card_is_only_a_note(copy, model):
    """A smaller model may fit; the tutorial's from a folder does not, and passed in silence."""
    programs = {"python3": SAY} | gpus(copy, 24564)
    done = run_sh(copy, "tutorial", *model, programs=programs, SKIP_INSTALL="1")
    note = "note: tutorial is made for an 8B model and 80 GB of GPU memory, here are 23; what fits"
    assert done.returncode == 0 and done.stdout.startswith(note), done.stderr
    assert "bash run.sh tutorial --gpu-memory-utilization 0.6\n" in done.stdout
    share = ["--gpu-memory-utilization", "0.6"]
    done = run_sh(copy, "tutorial", *model, *share, programs=programs, SKIP_INSTALL="1")
    assert done.returncode == 0 and "note: " not in done.stdout
    programs |= gpus(copy, 81559)
    done = run_sh(copy, "tutorial", *model, programs=programs, SKIP_INSTALL="1")
    assert done.returncode == 0 and "note: " not in done.stdout


@pytest.mark.parametrize("memory", [81559, 143771, "[N/A]"])
def test_large_or_unknown_cards_pass(copy, memory):
    assert len(calls(copy, "fast", programs=gpus(copy, memory))) == 3


def test_visible_gpus_are_asked_for(copy):
    calls(copy, "fast", CUDA_VISIBLE_DEVICES="3")
    assert "--id=3" in (copy / "nvidia-smi.log").read_text()
    assert len(calls(copy, "fast", CUDA_VISIBLE_DEVICES="MIG-1234")) == 3


@pytest.mark.parametrize("count, used", [(1, 1), (2, 2), (3, 2), (4, 4), (8, 8)])
def test_fast_and_improved_take_all_gpus_and_keep_the_completions_of_a_step(copy, count, used):
    for recipe, accumulation in (("fast", 16), ("improved", 64)):
        train, *others = calls(copy, recipe, programs=gpus(copy, *[81559] * count))
        assert f"--gradient-accumulation-steps {accumulation // used} " in train
        launcher = f"-m torch.distributed.run --standalone --nproc-per-node {used} train.py"
        assert train.startswith(launcher if used > 1 else "train.py")
        assert all(re.match(r"e\w+\.py", line) for line in others)


@pytest.mark.parametrize("visible, first", [(None, "0"), ("2,3,4", "2")])
def test_tutorial_takes_one_gpu(copy, visible, first):
    environment = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
    for line in calls(copy, "tutorial", programs=gpus(copy, 81559, 81559), **environment):
        assert re.match(r"\w+\.py", line) and line.endswith(f"on={first}")


def test_demo_takes_no_gpu(copy):
    assert all(line.endswith("on=") for line in calls(copy, "demo"))


def test_a_failing_stage_ends_the_recipe(copy):
    fails = 'echo "$@"; case "$1" in train.py) exit 1 ;; esac'
    programs = {"python3": fails} | gpus(copy, 81559)
    done = run_sh(copy, "tutorial", programs=programs, SKIP_INSTALL="1")
    assert done.returncode == 1 and "evaluate.py" not in done.stdout


# --------------------------------------------------------------------------------------------------
# run.sh: the machine and the environment


PYTHON = f"""case "$*" in
  *version_info*) exit 0 ;;
  *sysconfig*) exec {sys.executable} "$@" ;;
  *urlopen*) exit $HUB_IS_AWAY ;;
  "-m venv"*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
  *download*) exit $INDEX_IS_AWAY ;;
  *cpu-torch-small*) echo "$@" >> pip.log; exit $ONLY_LARGE_TORCH ;;
  *"pip install"*) echo "$@" >> pip.log ;;
esac"""
HERE = {"HUB_IS_AWAY": "0", "INDEX_IS_AWAY": "0", "ONLY_LARGE_TORCH": "0", "PYTHON": "base"}
MACHINE = {"gcc": "exit 0", "df": "echo; echo disk 1 1 99000000", "base": PYTHON}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"gcc": "exit 1"}, "a C compiler and Python's headers"),
        ({"df": "echo; echo disk 1 1 40000000"}, "38 GB of disk are free here and 43 are needed"),
        ({"base": "exit 1"}, "Python 3.11, 3.12 or 3.13 is needed (PYTHON=base is not)"),
        ({"cuda": "12.8"}, "this driver supports CUDA 12, needed is 13"),
        ({"HUB_IS_AWAY": "1"}, "no answer from https://huggingface.co: set HF_ENDPOINT="),
        ({"INDEX_IS_AWAY": "1"}, "pip cannot download: name a mirror"),
    ],
)
def test_checks_before_it_installs(copy, changes, message):
    programs = MACHINE | gpus(copy, 81559, cuda=changes.get("cuda", "13.0"))
    programs |= {name: text for name, text in changes.items() if name in programs}
    environment = HERE | {name: text for name, text in changes.items() if name in HERE}
    done = run_sh(copy, "fast", programs=programs, **environment)
    assert refused(done, message) and not (copy / "pip.log").exists()


@pytest.mark.parametrize(
    "arguments, environment",
    [
        (["--model", "m", "--dataset", "d"], {}),
        (["--dataset=d", "--model=m"], {}),
        ([], {"HF_HUB_OFFLINE": "1"}),
    ],
)
def test_no_hub_is_needed_for_what_is_here(copy, arguments, environment):
    environment = HERE | {"HUB_IS_AWAY": "1"} | environment
    programs = MACHINE | gpus(copy, 81559)
    assert run_sh(copy, "fast", *arguments, programs=programs, **environment).returncode == 0


def installed(folder, *arguments, **environment):
    """The lines of pip's log after one more run of run.sh."""
    (folder / "pip.log").unlink(missing_ok=True)
    (folder / "pip.log").touch()
    done = run_sh(folder, *arguments, programs=MACHINE | gpus(folder, 81559), **environment)
    assert done.returncode == 0, done.stderr
    lines = (folder / "pip.log").read_text().splitlines()
    assert all(("--require-hashes --no-deps" in line) == ("/locks/" in line) for line in lines)
    return [line.split("--requirement ")[1] for line in lines]


def test_environments_are_made_once_from_the_locks(copy):
    locks = "tests/locks"
    gpu = [f"{locks}/gpu.txt", "requirements.txt"]
    assert installed(copy, "install", "gpu", **HERE) == gpu
    assert installed(copy, "fast", **HERE) == []
    with (copy / "requirements.txt").open("a") as file:
        file.write("einops\n")
    assert installed(copy, "fast", **HERE) == gpu
    assert installed(copy, "demo", **HERE) == [
        f"{locks}/cpu-torch-small.txt",
        f"{locks}/cpu.txt",
        "tests/requirements.txt",
    ]
    assert installed(copy, "install", "cpu", **HERE) == []
    shutil.rmtree(copy / ".venv-cpu")
    assert installed(copy, "install", "cpu", **(HERE | {"ONLY_LARGE_TORCH": "1"})) == [
        f"{locks}/cpu-torch-small.txt",
        f"{locks}/cpu-torch.txt",
        f"{locks}/cpu.txt",
        "tests/requirements.txt",
    ]


def test_the_gpu_environment_can_be_made_without_a_gpu(copy):
    """On a login node, for instance."""
    programs = MACHINE | {"nvidia-smi": "exit 9"}
    done = run_sh(copy, "install", "gpu", programs=programs, **HERE)
    assert done.returncode == 0 and (copy / ".venv/installed.txt").exists()


def test_the_next_commands_are_named(copy):
    text = run_sh(copy, "demo", programs=MACHINE, **HERE).stdout
    assert "\n  source .venv-cpu/bin/activate\n  python evaluate.py --output-dir outputs-" in text


def test_an_interrupted_installation_is_made_again(copy):
    broken = MACHINE | {"base": PYTHON.replace('"pip install"*)', '"pip install"*) exit 1;')}
    done = run_sh(copy, "install", "gpu", programs=broken | gpus(copy, 81559), **HERE)
    assert done.returncode == 1 and not (copy / ".venv/installed.txt").exists()
    assert len(installed(copy, "install", "gpu", **HERE)) == 2


def test_a_driver_that_pytorch_does_not_see(copy):
    programs = {"python3": "exit 1"} | gpus(copy, 81559)
    done = run_sh(copy, "fast", programs=programs, SKIP_INSTALL="1")
    assert refused(done, "PyTorch does not see the GPU")


def test_python_is_looked_for(copy):
    none = {name: "exit 1" for name in ("python3", "python3.11", "python3.12", "python3.13")}
    done = run_sh(copy, "install", "cpu", programs=none)
    assert refused(done, "is needed. To get one: pip install uv && uv python install 3.12")
    some = MACHINE | none | {"python3.13": PYTHON}
    environment = {name: value for name, value in HERE.items() if name != "PYTHON"}
    assert run_sh(copy, "install", "cpu", programs=some, **environment).returncode == 0
