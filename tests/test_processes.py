"""Two machines, and a killed run of two processes: real agents and processes on a CPU.

bash tests/run.sh -k processes
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

from conftest import ROOT, run_script, train_arguments

import train

ON_CPU = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
LAUNCH = ["-m", "torch.distributed.run"]
TWO = [*LAUNCH, "--standalone", "--nproc-per-node", 2]
CHANGES = {"num_generations": 8, "loss_type": "dapo", "beta": 0, "report_to": "none", "seed": 7}
CHANGES |= {"warmup_ratio": 0}


def get_free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def read_adapter(output):
    return (output / "grpo_lora" / "adapter_model.safetensors").read_bytes()


def read_rewards(output):
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [row["reward"] for row in rows if "reward" in row]


def start_agent(endpoint, processes, *arguments):
    """One machine's command of README."""
    launch = [*LAUNCH, "--nnodes", 2, "--nproc-per-node", processes]
    launch += ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "grpo"]
    return subprocess.Popen(
        [sys.executable, *map(str, [*launch, *arguments])],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | ON_CPU,
    )


def run_two_agents(processes, *commands):
    """Run one command on each of two machines; return their exit statuses and outputs."""
    endpoint = f"127.0.0.1:{get_free_port()}"
    agents = [start_agent(endpoint, processes, *command) for command in commands]
    try:
        outputs = [agent.communicate(timeout=120)[0] for agent in agents]
    finally:
        for agent in agents:
            agent.terminate()  # torchrun then ends its processes
    return [agent.returncode for agent in agents], outputs


def test_two_agents_of_two_processes_train_the_adapter_of_one_agent_of_four(tiny, tmp_path):
    """As two machines of one folder: 16 completions a step, 4 in each process; bit-equal."""
    changes = CHANGES | {"max_steps": 2, "save_steps": 2, "per_device_train_batch_size": 4}
    one, four = tmp_path / "one", tmp_path / "four"
    alone = train_arguments(tiny, one, **changes)
    shared = train_arguments(tiny, four, **changes)
    command = ["tests/fixed_rollouts.py", *shared]
    codes, outputs = run_two_agents(2, command, command)
    assert codes == [0, 0], "\n".join(outputs)
    progress = sorted(output.count("2/2  reward") for output in outputs)
    assert progress == [0, 1]  # global rank 0 alone prints, not local rank 0 of each machine
    run = json.loads((four / "run.json").read_text())
    assert run["state"] == "finished" and run["effective"]["completions_per_step"] == 16
    assert len(list(four.glob("checkpoint-2/rng_state_*.pth"))) == 4
    train.check_adapter(four / "grpo_lora")

    four_processes = [*LAUNCH, "--standalone", "--nproc-per-node", 4, "tests/fixed_rollouts.py"]
    done = run_script(*four_processes, *alone, **ON_CPU)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_rewards(four) == read_rewards(one)
    assert read_adapter(four) == read_adapter(one)


def test_rank_0_alone_writes_the_card(tmp_path, monkeypatch):
    """TRL calls it in all processes: they moved each other's README.md.partial away, and died."""
    args = argparse.Namespace(output_dir=str(tmp_path), model="org/base", rewards="tutorial")
    monkeypatch.setenv("RANK", "1")
    train.write_card(args)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("RANK", "0")
    train.write_card(args)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_machine_without_the_checkpoint_is_told_at_resume(trained, tmp_path):
    """Two machines that do not share the folder: one line on both, in place of waiting for ever."""
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(trained, here)
    shutil.copytree(trained, there, ignore=shutil.ignore_patterns("checkpoint-*"))
    again = ["train.py", "--resume", "--max-steps", 3, "--output-dir"]
    codes, outputs = run_two_agents(1, [*again, here], [*again, there])
    assert codes == [1, 1]  # torchrun's; the processes' is 2
    cause = "error: processes see different checkpoints, None and checkpoint-2: let all"
    assert all(cause in output for output in outputs), "\n".join(outputs)
    assert not (here / "checkpoint-3").exists()


def test_a_killed_run_of_two_processes_goes_on_bit_equal(tiny, tmp_path):
    """SIGKILL of agent and processes after step 3; step 2 has the newest checkpoint."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    changes = CHANGES | {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 8}
    changes |= {"max_seq_length": 64}
    script = "tests/fixed_rollouts.py"
    done = run_script(*TWO, script, *train_arguments(tiny, whole, **changes), **ON_CPU)
    assert done.returncode == 0, done.stderr[-3000:]

    process = subprocess.Popen(
        [sys.executable, *map(str, [*TWO, script, *train_arguments(tiny, killed, **changes)])],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | ON_CPU,
    )
    for line in process.stdout:
        if "3/4  reward" in line:
            break
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    assert len(children) >= 2  # in sessions of their own, so no group holds all
    for pid in [process.pid, *map(int, children)]:
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (killed / "grpo_lora").exists()
    shutil.rmtree(killed / "checkpoint-4", ignore_errors=True)  # if step 4 was quicker than us

    again = [script, "--resume", "--output-dir", killed]
    done = run_script(*TWO, *again, **ON_CPU)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"resuming {killed} from {killed}/checkpoint-2" in done.stdout
    assert read_rewards(killed) == read_rewards(whole)
    assert read_adapter(killed) == read_adapter(whole)
