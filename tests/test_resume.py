"""An interrupted run goes on: kills, damage, signals, locks. Real processes on a CPU, minutes.

bash tests/run.sh -k resume
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT, run_script, train_arguments

import train

STEPS = 6


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "train.py", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def resume(output, *flags):
    return run_script("train.py", "--resume", "--output-dir", output, *flags, OMP_NUM_THREADS="1")


def read_adapter(folder):
    return (folder / "grpo_lora" / "adapter_model.safetensors").read_bytes()


def read_steps(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if "reward" in row]


def arguments_of(tiny, output, **changes):
    changes = {"max_steps": STEPS, "save_steps": 2, "report_to": "none", "seed": 7} | changes
    return train_arguments(tiny, output, **changes)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """A run that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole") / "outputs"
    done = run_script("train.py", *arguments_of(tiny, output), OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    return output


@pytest.fixture
def stopped(whole, tmp_path):
    """That run as if it had been killed after step 5: the newest checkpoint is step 4's."""
    output = tmp_path / "outputs"
    shutil.copytree(whole, output)
    shutil.rmtree(output / "checkpoint-6")
    shutil.rmtree(output / "grpo_lora")
    run = json.loads((output / "run.json").read_text()) | {"state": "running"}
    (output / "run.json").write_text(json.dumps(run))
    return output


def test_it_goes_on_bit_equal_with_the_flags_of_the_run(whole, stopped):
    done = resume(stopped)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"resuming {stopped} from {stopped}/checkpoint-4" in done.stdout
    assert read_adapter(stopped) == read_adapter(whole)
    assert read_steps(stopped) == read_steps(whole) == [1, 2, 3, 4, 5, 6]
    before = json.loads((whole / "run.json").read_text())["arguments"]
    after = json.loads((stopped / "run.json").read_text())["arguments"]
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"resume", "output_dir"}


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_a_random_moment(whole, tiny, tmp_path, seed):
    """kill -9 again and again until it is through: the adapter is that of the whole run."""
    output = tmp_path / "outputs"
    moments = random.Random(seed)
    kills = 0
    arguments = [*arguments_of(tiny, output), "--resume"]
    for _ in range(3):
        process = start(*arguments)
        deadline = time.time() + 60
        while not (output / "metrics.jsonl").exists() and time.time() < deadline:
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 2))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    done = run_script("train.py", *arguments, OMP_NUM_THREADS="1")
    assert done.returncode == 0 and kills > 0, done.stderr[-3000:]
    assert read_adapter(output) == read_adapter(whole) and read_steps(output)[-1] == STEPS


FILES = ["optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"]
FILES += ["adapter_model.safetensors", "complete.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_a_damaged_checkpoint_is_not_taken(whole, tmp_path, capsys, name, damage):
    shutil.copytree(whole, tmp_path / "outputs")
    newest = tmp_path / "outputs" / "checkpoint-6"
    assert train.find_checkpoint(tmp_path / "outputs") == str(newest)
    if damage == "missing":
        (newest / name).unlink()
    elif damage == "empty":
        (newest / name).write_bytes(b"")
    else:
        (newest / name).write_bytes((newest / name).read_bytes()[:-3])
    older = tmp_path / "outputs" / "checkpoint-4"
    assert train.find_checkpoint(tmp_path / "outputs") == str(older)
    assert f"{newest} is not complete: trying an older one" in capsys.readouterr().out


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_after_a_power_loss_is_not_taken(whole, tmp_path, name):
    """The file has its size, and only NUL bytes."""
    shutil.copytree(whole, tmp_path / "outputs")
    path = tmp_path / "outputs" / "checkpoint-6" / name
    path.write_bytes(bytes(path.stat().st_size))
    assert train.find_checkpoint(tmp_path / "outputs").endswith("checkpoint-4")


def test_the_end_of_a_trainer_state_lost_in_a_power_loss(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "outputs")
    path = tmp_path / "outputs" / "checkpoint-6" / "trainer_state.json"
    path.write_bytes(path.read_bytes()[:1000] + bytes(path.stat().st_size - 1000))
    assert train.find_checkpoint(tmp_path / "outputs").endswith("checkpoint-4")


def test_a_checkpoint_may_hold_a_folder(whole, tmp_path):
    """TRL saves a second adapter, ref/, where the model has one already."""
    path = tmp_path / "outputs" / "checkpoint-6"
    shutil.copytree(whole, tmp_path / "outputs")
    (path / "ref").mkdir()
    (path / "complete.json").unlink()
    for _ in range(2):  # the second time as a step that is trained again writes over it
        train.mark_complete(str(path))
        assert train.find_checkpoint(tmp_path / "outputs") == str(path)


def test_without_a_complete_checkpoint_it_starts_again(whole, stopped):
    (stopped / "checkpoint-4" / "complete.json").unlink()
    done = resume(stopped)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "it has no complete checkpoint" in done.stdout
    assert read_adapter(stopped) == read_adapter(whole)


def test_at_the_last_step_no_step_is_added(whole, tmp_path):
    output = tmp_path / "outputs"
    shutil.copytree(whole, output)
    shutil.rmtree(output / "grpo_lora")
    run = json.loads((output / "run.json").read_text()) | {"state": "running"}
    (output / "run.json").write_text(json.dumps(run))
    done = resume(output)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_adapter(output) == read_adapter(whole) and read_steps(output)[-1] == STEPS


def test_a_finished_run_is_left_alone_or_trained_on(whole, tmp_path):
    output = tmp_path / "outputs"
    shutil.copytree(whole, output)
    done = resume(output)
    assert done.returncode == 0 and done.stdout.endswith("this run is finished, nothing to do\n")
    done = resume(output, "--max-steps", STEPS + 1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_steps(output)[-1] == STEPS + 1


def test_a_finished_run_without_checkpoints_is_not_overwritten(whole, tmp_path):
    output = tmp_path / "outputs"
    shutil.copytree(whole, output)
    for checkpoint in output.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    done = resume(output, "--max-steps", STEPS + 1)
    assert done.returncode == 2 and "no checkpoint is left to go on from" in done.stderr
    assert read_adapter(output) == read_adapter(whole)


def test_data_that_grew_cannot_be_resumed_on(tiny, tmp_path):
    """The new split trained on prompts that had been held out, and the evaluation took them."""
    path, output = tmp_path / "rows.jsonl", tmp_path / "outputs"
    shutil.copy(tiny / "train.jsonl", path)
    changes = {"dataset": path, "max_steps": 2, "save_steps": 1}
    done = run_script("train.py", *arguments_of(tiny, output, **changes))
    assert done.returncode == 0, done.stderr[-3000:]
    before = (output / "run.json").read_text()
    with open(path, "a") as file:
        for i in range(40):
            file.write(json.dumps({"prompt": f"What is {i} + 1?", "solution": str(i + 1)}) + "\n")
    done = resume(output, "--max-steps", 4)
    assert done.returncode == 2 and "is not what this run began with" in done.stderr
    assert (output / "run.json").read_text() == before


def test_a_finished_run_is_trained_on_by_epochs(tiny, tmp_path):
    """8 prompts, 4 a step: 2 steps an epoch."""
    rows = [{"prompt": f"What is {i} + 1?", "solution": str(i + 1)} for i in range(8)]
    path, output = tmp_path / "rows.jsonl", tmp_path / "outputs"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"dataset": path, "eval_fraction": 0, "max_prompt_quantile": 1, "max_steps": 1}
    changes |= {"per_device_train_batch_size": 16, "warmup_ratio": 0}
    done = run_script("train.py", *arguments_of(tiny, output, **changes))
    assert done.returncode == 0, done.stderr[-3000:]
    for flags, steps in ((["--max-steps", -1], 2), (["--num-train-epochs", 2], 4)):
        done = resume(output, *flags)
        assert done.returncode == 0 and read_steps(output)[-1] == steps, done.stderr[-3000:]
        assert resume(output, *flags).stdout.endswith("this run is finished, nothing to do\n")


@pytest.mark.parametrize(
    "flags",
    [
        ["--seed", 8],
        ["--learning-rate", 1e-4],
        ["--rewards", "improved"],
        ["--system-prompt", "en"],
        ["--eval-fraction", 0.3],
        ["--lora-rank", 8],
        ["--dataset", "nowhere.jsonl"],
        ["--num-generations", 8],
        ["--beta", 0.1],
    ],
)
def test_what_the_run_is_cannot_change(whole, flags):
    done = resume(whole, *flags)
    assert done.returncode == 2 and done.stderr.startswith("error: --resume: the run in ")
    assert flags[0] in done.stderr and done.stderr.count("\n") == 1


def write_run_json(folder, given, **derived):
    """A run that was started and has no checkpoint yet."""
    run = {"state": "running", "arguments": given | derived, "given": given}
    (folder / "run.json").write_text(json.dumps(run))


def parse_resume(monkeypatch, folder, *flags):
    command = ["train.py", "--resume", "--output-dir", str(folder), "--report-to", "none", *flags]
    monkeypatch.setattr(sys, "argv", command)
    return train.parse_arguments()


def test_the_same_command_may_name_a_batch_of_one(tmp_path, monkeypatch):
    """The tutorial's value, which became a group of 4 in the run."""
    given = {"model": "m", "per_device_train_batch_size": 1, "lora_alpha": None}
    write_run_json(tmp_path, given, per_device_train_batch_size=4, lora_alpha=64)
    (tmp_path / "checkpoint-20").mkdir()
    args = parse_resume(monkeypatch, tmp_path, "--per-device-train-batch-size", "1")
    assert (args.model, args.per_device_train_batch_size, args.lora_alpha) == ("m", 4, 64)


def test_one_step_without_warm_up_may_be_said_again(tmp_path, monkeypatch, capsys):
    """It was refused by the default of a flag that the run has otherwise."""
    write_run_json(tmp_path, {"model": "m", "max_steps": 1, "warmup_ratio": 0.0})
    args = parse_resume(monkeypatch, tmp_path, "--max-steps", "1")
    assert (args.max_steps, args.warmup_ratio) == (1, 0.0)
    with pytest.raises(SystemExit):
        parse_resume(monkeypatch, tmp_path, "--max-steps", "1", "--warmup-ratio", "0.1")
    assert "add --warmup-ratio 0" in capsys.readouterr().err


def test_before_the_first_checkpoint_every_flag_may_change(tmp_path, monkeypatch):
    """Out of memory at the first step: the command with smaller flags goes, no folder is moved."""
    write_run_json(tmp_path, {"model": "m", "num_generations": 8, "seed": 3})
    args = parse_resume(monkeypatch, tmp_path, "--num-generations", "4")
    assert (args.model, args.seed, args.num_generations) == ("m", 3, 4)
    (tmp_path / "checkpoint-20").mkdir()
    with pytest.raises(SystemExit):
        parse_resume(monkeypatch, tmp_path, "--num-generations", "4")


@pytest.mark.parametrize(
    "flags, name, value",
    [
        (["--num-generations", "2"], "per_device_train_batch_size", 2),
        (["--num-generations", "3"], "per_device_train_batch_size", 3),
        (["--lora-rank", "16"], "lora_alpha", 32),
        (["--rewards", "improved"], "reward_weights", None),  # check_names sets them
        (["--model", "other"], "reasoning_tokens", None),  # and main these, from the tokenizer
    ],
)
def test_what_follows_from_a_changed_flag_follows_again(tmp_path, monkeypatch, flags, name, value):
    monkeypatch.setattr(sys, "argv", ["train.py", "--model", "m"])
    first = train.parse_arguments()
    derived = {"reward_weights": [1.0] * 5, "reasoning_tokens": ["<think>", "</think>"]}
    write_run_json(tmp_path, first.given, **derived, per_device_train_batch_size=4, lora_alpha=64)
    assert getattr(parse_resume(monkeypatch, tmp_path, *flags), name) == value


def test_a_new_run_moves_the_old_one_aside(whole, tiny, tmp_path):
    output = tmp_path / "outputs"
    shutil.copytree(whole, output)
    (tmp_path / "outputs-1").mkdir()
    changes = {"max_steps": 1, "warmup_ratio": 0}
    done = run_script("train.py", *arguments_of(tiny, output, **changes))
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"the earlier run in {output} is now in {output}-2" in done.stdout
    assert read_adapter(tmp_path / "outputs-2") == read_adapter(whole)
    assert read_steps(output) == [1] and not (output / "checkpoint-6").exists()


def test_a_wrong_flag_leaves_the_old_run_where_it_is(whole, tiny, tmp_path):
    """The data are read late, since the tokenizer comes with the model: nothing has moved then."""
    output = tmp_path / "outputs"
    shutil.copytree(whole, output)
    done = run_script("train.py", *arguments_of(tiny, output, dataset=tmp_path / "typo.jsonl"))
    assert done.returncode == 2 and "cannot load data set" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    assert read_adapter(output) == read_adapter(whole)


def earlier(folder, **others):
    arguments = {"output_dir": str(folder), "resume": False, "model": "a/b", "dataset": "c/d"}
    return SimpleNamespace(**arguments | others)


@pytest.mark.parametrize("name", ["model", "dataset"])
def test_what_is_trained_on_is_not_moved_away(tmp_path, capsys, name):
    """The next stage of a run, by its default folder: --model outputs/export/merged_16bit."""
    output = tmp_path / "outputs"
    path = output / "export" / "merged_16bit"
    path.mkdir(parents=True)
    with pytest.raises(SystemExit) as stopped:
        train.move_earlier_run(earlier(output, **{name: str(path)}))
    assert stopped.value.code == 2 and path.exists()
    assert f"{path} is in it: take another --output-dir" in capsys.readouterr().err


def test_only_a_run_is_moved_aside(tmp_path, capsys):
    (tmp_path / "photos" / "2026").mkdir(parents=True)
    (tmp_path / "photos" / "export").mkdir()
    with pytest.raises(SystemExit) as stopped:
        train.move_earlier_run(earlier(tmp_path / "photos"))
    assert stopped.value.code == 2 and (tmp_path / "photos" / "2026").exists()
    assert "holds something else than a run" in capsys.readouterr().err


def test_a_link_to_the_output_folder_stays_one(tmp_path, capsys):
    (tmp_path / "disk" / "completions").mkdir(parents=True)
    link = tmp_path / "outputs"
    link.symlink_to(tmp_path / "disk")
    train.move_earlier_run(earlier(link))
    assert (tmp_path / "disk-1" / "completions").exists() and link.is_symlink()
    assert (tmp_path / "disk").is_dir() and not list(link.iterdir())
    assert "is now in" in capsys.readouterr().out


def test_checkpoints_without_a_run_are_nobodys(whole, tiny, tmp_path):
    output = tmp_path / "outputs"
    shutil.copytree(whole, output)
    (output / "run.json").unlink()
    changes = {"max_steps": 1, "warmup_ratio": 0, "resume": True}
    done = run_script("train.py", *arguments_of(tiny, output, **changes))
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_steps(output) == [1] and (tmp_path / "outputs-1" / "checkpoint-6").exists()


def test_two_runs_do_not_share_a_folder(stopped, tiny):
    process = start("--resume", "--output-dir", stopped, "--max-steps", 500)
    time.sleep(6)
    done = resume(stopped)
    process.kill()
    process.communicate()
    assert done.returncode == 2 and "another run is writing to" in done.stderr


@pytest.mark.parametrize(
    "name, status",
    [
        ("SIGINT", 130),
        ("SIGTERM", 143),
    ],
)
def test_a_signal_saves_and_says_how_to_go_on(whole, tiny, tmp_path, name, status):
    output = tmp_path / "outputs"
    process = start(*arguments_of(tiny, output, save_steps=100))
    while not (output / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(getattr(signal, name))
    out, _ = process.communicate(timeout=60)
    assert process.returncode == status, out[-3000:]
    assert f"stopped: python train.py --resume --output-dir {output} goes on" in out
    assert train.find_checkpoint(output) is not None
    done = resume(output)
    assert done.returncode == 0 and read_adapter(output) == read_adapter(whole)


def test_sigterm_ends_all_processes(tiny, tmp_path):
    output = tmp_path / "outputs"
    changes = {"max_steps": 200, "per_device_train_batch_size": 4, "save_steps": 1000}
    process = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        + ["train.py", *map(str, arguments_of(tiny, output, **changes))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    while not (output / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    again = "torchrun --nproc-per-node 2 --nnodes 1 train.py --resume"
    assert process.returncode != 0, out[-3000:]
    assert f"stopped: {again} --output-dir {output} goes on" in out
    assert train.find_checkpoint(output) is not None


def test_a_folder_that_cannot_be_written_is_told_before_the_model_loads(tiny):
    done = run_script("train.py", *arguments_of(tiny, "/proc/nothing"))
    assert done.returncode == 2 and "error: cannot write to /proc/nothing" in done.stderr
    assert "Loading weights" not in done.stderr and "Traceback" not in done.stderr


def test_a_folder_of_something_else_is_told_before_the_model_loads(tiny, tmp_path):
    (tmp_path / "train.log").touch()  # python train.py | tee outputs/train.log
    done = run_script("train.py", *arguments_of(tiny, tmp_path))
    assert done.returncode == 2 and "holds something else than a run" in done.stderr
    assert "Loading weights" not in done.stderr and os.listdir(tmp_path) == ["train.log"]


def test_a_folder_that_cannot_be_moved_aside(tmp_path, monkeypatch, capsys):
    """The folder one is in, or a mount point: it was a traceback."""
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        train.move_earlier_run(earlier("."))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith(f"error: cannot move {tmp_path} aside, ")
    assert error.count("\n") == 1 and (tmp_path / "notes.txt").exists()


@pytest.mark.parametrize(
    "state, lost",
    [
        ("finished", "effective"),
        ("running", "train_rows"),
        ("running", "held_out"),
    ],
)
def test_a_run_json_that_has_lost_parts(whole, tmp_path, state, lost):
    """It was a KeyError, in part after the model had been loaded."""
    output = tmp_path / "outputs"
    shutil.copytree(whole, output)
    run = json.loads((output / "run.json").read_text()) | {"state": state}
    run["effective"].pop(lost, None)
    run.pop(lost, None)
    (output / "run.json").write_text(json.dumps(run))
    before = sorted(output.rglob("*"))
    done = resume(output, "--max-steps", STEPS + 1)
    assert done.returncode == 2 and "run.json has lost parts" in done.stderr
    assert "Traceback" not in done.stderr and sorted(output.rglob("*")) == before


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"arguments": {}}',
        '{"arguments": []}',
        '{"arguments": {"model": "m"}, "given": []}',  # these were tracebacks
        '{"arguments": {"model": "m"}, "effective": [1]}',
        '{"arguments": {"model": "m"}, "effective": "x"}',
    ],
)
def test_an_unreadable_run_json(whole, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    done = resume(tmp_path)
    assert done.returncode == 2 and "run.json is not readable as train.py's" in done.stderr
    assert "Traceback" not in done.stderr
