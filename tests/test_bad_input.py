"""Nonsense on the command line of train.py and data.py, and in models and data: one line, exit 2.

bash tests/run.sh -k bad_input
"""

import json
import shutil
import sys

import pytest
from conftest import run_script, train_arguments

import data
import train

NUMBERS = {  # flag: values that are refused beside nan, inf, -inf, "", x
    "--max-steps": ["-5", "-2", "0", "1.5", "1e3"],
    "--learning-rate": ["0", "-1e-6"],
    "--max-seq-length": ["0", "-1", "1.5"],
    "--gpu-memory-utilization": ["0", "-0.1", "1.1"],
    "--lora-rank": ["0", "-8", "1.5"],
    "--lora-alpha": ["0", "-64"],
    "--temperature": ["0", "-1"],
    "--min-p": ["-0.1", "1.1"],
    "--top-p": ["0", "-1", "2"],
    "--top-k": ["-2", "1.5"],
    "--num-generations": ["1", "0", "-4", "2.5"],
    "--reward-weights": [],
    "--beta": ["-0.1"],
    "--weight-decay": ["-0.1"],
    "--warmup-ratio": ["-0.1", "1", "10"],
    "--per-device-train-batch-size": ["0", "-1", "1.5"],
    "--gradient-accumulation-steps": ["0", "-1", "1.5"],
    "--num-train-epochs": ["0", "-1"],
    "--stop-if-stuck": ["-1", "1.5"],
    "--logging-steps": ["0", "-1", "0.5"],
    "--save-steps": ["0", "-1", "0.5"],
    "--save-total-limit": ["0", "-1", "0.5"],
    "--eval-steps": ["-1", "0.5"],
    "--min-held-out": ["-1", "0.5"],
    "--max-prompt-quantile": ["0", "-0.5", "1.5"],
    "--eval-fraction": ["-0.1", "1", "2"],
    "--seed": ["-1", "0.5"],
}
NUMBER_CASES = [
    (flag, value) for flag in NUMBERS for value in NUMBERS[flag] + ["nan", "inf", "-inf", "", "x"]
]


def refuse(script, monkeypatch, capsys, arguments):
    """Parse arguments that must be refused, and return the line that says so."""
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    with pytest.raises(SystemExit) as end:
        script.parse_arguments()
    lines = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
    assert lines[0] == lines[0].rstrip()
    return lines[0]


@pytest.mark.parametrize("flag, value", NUMBER_CASES)
def test_numbers(monkeypatch, capsys, flag, value):
    arguments = ["--report-to", "none", f"{flag}={value}"]
    assert flag in refuse(train, monkeypatch, capsys, arguments)


ARGUMENTS = [
    (["--rewards", "none"], "invalid choice"),
    (["--engine", "vllm"], "invalid choice"),
    (["--optim", "nope"], "invalid choice"),
    (["--optim", "adamw_8bit", "--optim="], "invalid choice"),
    (["--loss-type", "nope"], "invalid choice"),
    (["--lr-scheduler-type", "nope"], "invalid choice"),
    (["--scale-rewards", "nope"], "invalid choice"),
    (["--use-gradient-checkpointing", "maybe"], "invalid choice"),
    (["--report-to", "nope"], "invalid choice"),
    (["--swanlab-mode", "nope"], "invalid choice"),
    (["--target-lang", "xx"], "invalid choice"),
    (["--target-modules"], "expected at least one argument"),
    (["--reward-weights"], "expected at least one argument"),
    (["--model"], "expected one argument"),
    (["--model", ""], "there is no folder"),
    (["--model", "/nowhere"], "there is no folder"),
    (["--model", "./nowhere"], "there is no folder"),
    (["--system-prompt", " "], "must not be empty"),
    (["--reasoning-tokens", "<t>"], "expected 2 arguments"),
    (["--reasoning-tokens", "<t>", "<t>"], "must differ"),
    (["--reasoning-tokens", "", "</t>"], "must not be empty"),
    (["--reasoning-tokens", "<t>", " "], "must not be empty"),
    (["--num-generations", "3", "--per-device-train-batch-size", "4"], "must divide"),
    (["--eval-steps", "1"], "--eval-steps needs --eval-fraction"),
    (["--output-d", "x"], "--output-d"),
    (["--out=x"], "--out=x"),
    (["--learning_rate", "1"], "--learning_rate"),
    (["x"], "unrecognized"),
    (["--resume=yes"], "--resume"),
    (["--report-to", "wandb"], "pip install wandb"),
]


@pytest.mark.parametrize("arguments, message", ARGUMENTS)
def test_arguments(monkeypatch, capsys, arguments, message):
    assert message in refuse(train, monkeypatch, capsys, ["--report-to", "none", *arguments])


DATA_FLAGS = {"--max-prompt-quantile", "--eval-fraction", "--seed"}
DATA_CASES = [[f"{flag}={value}"] for flag, value in NUMBER_CASES if flag in DATA_FLAGS]
DATA_CASES += [case for case, _ in ARGUMENTS if case[0] in ("--reasoning-tokens", "--model")]


@pytest.mark.parametrize("arguments", DATA_CASES)
def test_arguments_of_data(monkeypatch, capsys, arguments):
    refuse(data, monkeypatch, capsys, arguments)


ROWS = [
    ("", "is empty"),
    ("{}", "cannot load|columns"),
    ("[1, 2]", "cannot load|columns"),
    ("not json", "cannot load"),
    ('{"prompt": "", "solution": "1"}', "every prompt must be text"),
    ('{"prompt": " ", "solution": "1"}', "every prompt must be text"),
    ('{"prompt": null, "solution": "1"}', "every prompt must be text"),
    ('{"prompt": 5, "solution": "1"}', "every prompt must be text"),
    ('{"prompt": ["a"], "solution": "1"}', "every prompt must be text"),
    ('{"prompt": "a", "solution": [1]}', "every answer must be text or a number"),
    ('{"prompt": "a", "solution": {"x": 1}}', "every answer must be text or a number"),
    ('{"prompt": "a", "solution": null}', "every answer must be text or a number"),
    ('{"prompt": "a", "solution": ""}', "every answer must be text or a number"),
    ('{"prompt": "a", "solution": NaN}', "every answer must be|cannot load"),
    ('{"prompt": "a", "solution": true}', "every answer must be text or a number"),
    ('{"problem": "a", "solution": "1"}', "needed: prompt and solution"),
    ('{"prompt": "a", "answer": "1"}', "needed: prompt and solution"),
]


@pytest.mark.parametrize("rows, message", ROWS)
def test_data(tmp_path, capsys, rows, message):
    (tmp_path / "x[1].JSONL").write_text(rows)
    with pytest.raises(SystemExit) as end:
        data.read_dataset(str(tmp_path / "x[1].JSONL"))
    last = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and any(words in last for words in message.split("|")), last


def test_good_names_of_files_are_taken(tmp_path):
    (tmp_path / "x[1].JSONL").write_text('{"prompt": "a", "solution": 1}')
    assert data.read_dataset(str(tmp_path / "x[1].JSONL"))[0] == {"prompt": "a", "solution": "1"}


def spoil(name, folder):
    """Damage a copy of the tiny model, or of a run, in the way of `name`."""
    config = json.loads((folder / "config.json").read_text())
    if name == "one layer more":
        config["num_hidden_layers"] += 1
        if "layer_types" in config:
            config["layer_types"].append(config["layer_types"][-1])
    if name == "a list":
        config = []
    (folder / "config.json").write_text(json.dumps(config))
    if name == "no weights":
        (folder / "model.safetensors").unlink()
    if name == "half the weights":
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    if name == "template raises":
        for path in folder.glob("chat_template*"):
            path.write_text("{{ raise_exception('no such role') }}")
    if name == "no config":
        (folder / "config.json").unlink()


@pytest.mark.parametrize(
    "name, message",
    [
        ("one layer more", "its .safetensors lack model.layers.3."),
        ("a list", "cannot load"),
        ("no weights", "lack"),
        ("half the weights", "cannot load"),
        ("template raises", "chat template"),
        ("no config", "cannot load"),
    ],
)
def test_models(tiny, tmp_path, name, message):
    shutil.copytree(tiny / "model", tmp_path / "model")
    spoil(name, tmp_path / "model")
    refused_run(tiny, tmp_path, message, model=tmp_path / "model")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"engine": "unsloth"}, "--engine unsloth needs an NVIDIA GPU"),
        ({"dataset": "nowhere.jsonl"}, "cannot load data set nowhere.jsonl"),
        ({"target-modules": "nope"}, "--target-modules nope"),
        ({"reward-weights": 1}, "--reward-weights needs 5 values"),
        ({"max-seq-length": 20}, "leaves no token"),
        ({"per-device-train-batch-size": 4000}, "a step needs 1000 prompts"),
        ({"eval-fraction": 1e-9}, "less than one row"),
        ({"min-held-out": 5000}, "raise --eval-fraction"),
    ],
)
def test_flags_that_do_not_fit(tiny, tmp_path, changes, message):
    refused_run(tiny, tmp_path, message, **changes)


def refused_run(tiny, tmp_path, message, **changes):
    arguments = train_arguments(tiny, tmp_path / "outputs", report_to="none", **changes)
    done = run_script("train.py", *arguments)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert last.startswith("error: ") and message in last


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"arguments": []}', "null"])
def test_run_json_that_is_none(tmp_path, capsys, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(SystemExit) as end:
        train.read_run(str(tmp_path))
    assert end.value.code == 2 and "run.json is not readable" in capsys.readouterr().err
