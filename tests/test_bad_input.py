"""Bad input: one clear line, exit code 2, no traceback, nothing left behind. A case a line.

    bash tests/run.sh -k bad_input

evaluate.py and export.py have tables of their own in their tests.
"""

import json
import os
import shutil
import sys
from types import SimpleNamespace

import pytest
from conftest import run_script, train_arguments

import data
import evaluate
import rewards
import train

NUMBERS = {  # flag: values that are none
    "--max-steps": ["0", "-2", "-5", "1.5", "nan", "x", ""],
    "--output-dir": ["", " "],
    "--learning-rate": ["0", "-1e-5", "nan", "inf", "1e30", "x"],
    "--max-seq-length": ["0", "-1", "1e3", "nan"],
    "--gpu-memory-utilization": ["0", "-0.1", "1.1", "nan", "inf"],
    "--lora-rank": ["0", "-8", "8.5", "nan", "513"],
    "--lora-alpha": ["0", "-1", "nan", "inf"],
    "--temperature": ["0", "-1", "nan", "inf"],
    "--min-p": ["-0.1", "1.1", "nan"],
    "--top-p": ["0", "2", "-1", "nan"],
    "--top-k": ["-2", "1.5", "nan"],
    "--num-generations": ["0", "1", "-4", "2.5"],
    "--beta": ["-0.1", "nan", "inf"],
    "--weight-decay": ["-0.1", "nan", "inf"],
    "--warmup-ratio": ["-0.1", "1", "nan"],
    "--per-device-train-batch-size": ["0", "-1", "1.5"],
    "--gradient-accumulation-steps": ["0", "-1", "x"],
    "--num-train-epochs": ["0", "-1", "nan", "inf"],
    "--stop-if-stuck": ["-1", "0.5"],
    "--logging-steps": ["0", "-1"],
    "--save-steps": ["0", "-1"],
    "--save-total-limit": ["0", "-1"],
    "--max-prompt-quantile": ["0", "1.1", "nan"],
    "--eval-fraction": ["-0.1", "1", "2", "nan"],
    "--seed": ["-1", "1.5", "x", "4294967296"],
    "--reward-weights": ["nan", "inf", "x"],
}
OTHERS = [
    ["--max-steps", "1"],
    ["--optim", "sgdx"],
    ["--loss-type", "foo"],
    ["--lr-scheduler-type", "foo"],
    ["--engine", "jax"],
    ["--scale-rewards", "all"],
    ["--target-lang", "xx"],
    ["--report-to", "paper"],
    ["--report-to", "wandb"],
    ["--swanlab-mode", "moon"],
    ["--use-gradient-checkpointing", "maybe"],
    ["--system-prompt", ""],
    ["--system-prompt", os.fsdecode(b"\xff\xfe")],
    ["--system-prompt", "  "],
    ["--reasoning-tokens", "<think>"],
    ["--reasoning-tokens", "<a>", "<a>"],
    ["--reasoning-tokens", "", "</a>"],
    ["--model", ""],
    ["--model", "/nowhere"],
    ["--model", "./nowhere"],
    ["--output-d", "x"],
    ["--out=x"],
    ["--resum"],
    ["--nonsense"],
    ["stray"],
    ["--num-generations", "3", "--per-device-train-batch-size", "4"],
]
CASES = [[flag, value] for flag, values in NUMBERS.items() for value in values] + OTHERS


@pytest.mark.parametrize("flags", CASES, ids=lambda flags: ascii(" ".join(flags)))
def test_flags_of_train(flags, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        train.parse_arguments()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1
    assert flags[0].split("=")[0].lstrip("-") in error or len(flags) > 2


def test_every_number_of_train_has_its_cases(monkeypatch):
    """A new numeric flag needs a line above."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    args = train.parse_arguments()
    for name, value in vars(args).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            assert "--" + name.replace("_", "-") in NUMBERS, name


@pytest.mark.parametrize(
    "flags",
    [
        ["--num-samples", "0"],
        ["--max-tokens", "-1"],
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--top-k", "-2"],
        ["--gpu-memory-utilization", "nan"],
        ["--name", "../x"],
        ["--name", ""],
        ["--prompt", ""],
        ["--adapter", "none", "x"],
        ["--output-d", "x"],
    ],
    ids=" ".join,
)
def test_flags_of_evaluate(flags, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *flags])
    with pytest.raises(SystemExit) as stopped:
        evaluate.parse_arguments()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def damage_model(tiny, folder, change):
    """Return a copy of the model with one thing wrong."""
    shutil.copytree(tiny / "model", folder)
    config = json.loads((folder / "config.json").read_text())
    if change == "config is a list":
        (folder / "config.json").write_text("[]")
    elif change == "no config":
        (folder / "config.json").unlink()
    elif change == "a layer more":
        config["num_hidden_layers"] += 1
        if config.get("layer_types"):
            config["layer_types"].append(config["layer_types"][0])
        (folder / "config.json").write_text(json.dumps(config))
    elif change == "no weights":
        (folder / "model.safetensors").unlink()
    elif change == "weights cut off":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
    elif change == "no tokenizer":
        (folder / "tokenizer.json").unlink()
    elif change == "tokenizer is a list":
        (folder / "tokenizer.json").write_text("[]")
    elif change == "template raises":
        (folder / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    elif change == "no template":
        (folder / "chat_template.jinja").unlink()
    return folder


@pytest.mark.parametrize(
    "change, message",
    [
        ("config is a list", "cannot load"),
        ("no config", "cannot load"),
        ("a layer more", "weights that its config.json asks for, as model.layers.3."),
        ("no weights", "cannot load"),
        ("weights cut off", "cannot load"),
        ("no tokenizer", "cannot load the tokenizer"),
        ("tokenizer is a list", "cannot load the tokenizer"),
        ("template raises", "no system role"),
        ("no template", "has no chat template"),
    ],
)
def test_models(tiny, tmp_path, change, message):
    model = damage_model(tiny, tmp_path / "model", change)
    expect_one_line(train_arguments(tiny, tmp_path / "outputs", model=model), message, tmp_path)


def test_a_folder_whose_weights_have_other_names_than_the_model(tmp_path):
    """transformers 5 fuses a mixture's experts on loading: names in the file tell nothing."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8, "head_dim": 8}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen3MoeConfig(vocab_size=32, num_experts=4, num_experts_per_tok=2, **sizes)
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    args = SimpleNamespace(model=str(tmp_path), revision=None, target_modules=["q_proj"])
    train.check_model(args)
    train.load_model(args.model)


def expect_one_line(arguments, message, tmp_path):
    done = run_script("train.py", *arguments, OMP_NUM_THREADS="1")
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2, done.stderr[-2000:]
    assert last.startswith("error: ") and message in last and "Traceback" not in done.stderr
    outputs = tmp_path / "outputs"
    assert not outputs.exists() or not (outputs / "run.json").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"engine": "unsloth"}, "--engine unsloth needs an NVIDIA GPU"),
        ({"dataset": "nowhere.jsonl"}, "cannot load data set nowhere.jsonl"),
        ({"max_seq_length": 20}, "leaves no token"),
        ({"rewards": "best"}, "rewards.REWARDS has tutorial, improved"),
        ({"rewards": "best", "reward_weights": 1}, "rewards.REWARDS has tutorial, improved"),
        ({"system_prompt": "native", "target_lang": "th"}, "no system prompt in"),
        ({"system_prompt": "naitve"}, "--system-prompt naitve: there is zh, en, boxed, native"),
        ({"reward_weights": 1}, "--reward-weights needs 5 values"),
        ({"target_modules": "lm_head"}, "--target-modules lm_head"),
        ({"target_modules": "nope"}, "--target-modules nope"),
        ({"per_device_train_batch_size": 4000}, "a step needs 1000 prompts"),
        ({"eval_fraction": 0.001}, "is less than one row"),
        ({"model": "nobody/nothing"}, "nobody/nothing"),
    ],
)
def test_runs(tiny, tmp_path, changes, message):
    expect_one_line(train_arguments(tiny, tmp_path / "outputs", **changes), message, tmp_path)


def test_the_cloud_needs_a_key_before_anything_is_loaded(tiny, tmp_path):
    arguments = train_arguments(tiny, tmp_path / "outputs", swanlab_mode="cloud")
    done = run_script("train.py", *arguments, HOME=str(tmp_path))
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: --swanlab-mode cloud: No API key")
    assert done.returncode == 2 and not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], "is empty"),
        ([{"prompt": "", "solution": "1"}], "every prompt must be text"),
        ([{"prompt": "  ", "solution": "1"}], "every prompt must be text"),
        ([{"prompt": None, "solution": "1"}], "every prompt must be text"),
        ([{"prompt": 3, "solution": "1"}], "every prompt must be text"),
        ([{"prompt": ["a"], "solution": "1"}], "every prompt must be text"),
        ([{"prompt": "a", "solution": None}], "every answer must be text or a number"),
        ([{"prompt": "a", "solution": ["1"]}], "every answer must be text or a number"),
        ([{"prompt": "a", "solution": ""}], "every answer must be text or a number"),
        ([{"prompt": "a", "solution": True}], "every answer must be text or a number"),
        ([{"prompt": "a", "solution": float("nan")}], "every answer must be text or a number"),
        ([{"text": "a"}], "needed: prompt and solution"),
    ],
)
def test_data(tmp_path, capsys, rows, message):
    with pytest.raises(SystemExit) as stopped:
        data.read_dataset(str(write_rows(tmp_path / "rows.jsonl", rows)))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and message in error and "Traceback" not in error


def test_answers_of_which_none_is_a_number(tiny, tmp_path):
    rows = [{"prompt": f"What is {i}?", "solution": "many"} for i in range(40)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    arguments = train_arguments(tiny, tmp_path / "outputs", dataset=path, rewards="improved")
    expect_one_line(arguments, "no answer of the data is a number", tmp_path)


def test_the_answers_of_a_fork_that_pays_for_right_ones_are_checked_too(tiny, monkeypatch, capsys):
    from datasets import Dataset

    monkeypatch.setitem(rewards.REWARDS, "mine", {rewards.answer_reward: 1.0})
    args = SimpleNamespace(
        rewards="mine",
        reasoning_tokens=("<think>", "</think>"),
        max_seq_length=64,
        num_generations=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
    )
    tokenizer = data.load_tokenizer(str(tiny / "model"))
    with pytest.raises(SystemExit):
        train.check_sizes(args, tokenizer, Dataset.from_dict({"answer": ["many"]}), 10)
    assert "no answer of the data is a number: --rewards mine" in capsys.readouterr().err


def test_a_language_that_langid_does_not_know(monkeypatch, capsys):
    """It was a traceback of the first reward, after vLLM had started."""
    monkeypatch.setitem(data.LANGUAGES, "yue", ("粤语", "Cantonese"))
    args = SimpleNamespace(rewards="improved", reward_weights=None, system_prompt="en")
    args.target_lang = "yue"
    with pytest.raises(SystemExit) as stopped:
        train.check_names(args)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("error: --target-lang yue: langid does not")
    for args.target_lang in data.LANGUAGES.keys() - {"yue"}:
        train.check_names(args)


def test_two_rewards_of_one_name(monkeypatch, capsys):
    """TRL logged the mean of both under it."""
    functions = [lambda completions, **kwargs: [1.0], lambda completions, **kwargs: [100.0]]
    monkeypatch.setitem(rewards.REWARDS, "mine", dict.fromkeys(functions, 1.0))
    with pytest.raises(SystemExit) as stopped:
        train.check_names(SimpleNamespace(rewards="mine", reward_weights=None))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "two functions have one name: <lambda>, <lambda>" in error


def test_unsloth_in_several_processes(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stopped:
        train.check_hardware(SimpleNamespace(engine="unsloth"))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "--engine unsloth trains in one process" in error


def test_ctrl_c_is_one_line(tmp_path, capsys):
    data.explain_exception(str(tmp_path), KeyboardInterrupt, KeyboardInterrupt(), None)
    assert capsys.readouterr().err == "stopped\n"


def test_a_full_disk_is_one_line(tmp_path, capsys, monkeypatch):
    def explain(error, free):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
        data.explain_exception(str(tmp_path / "outputs"), type(error), error, None)
        return capsys.readouterr().err

    for error in (OSError(28, "No space left on device", "x"), Exception("No space left (os 28)")):
        line = explain(error, 2e6)
        assert line.startswith(f"error: cannot write to {tmp_path} (2 MB are free): ")
        assert line.count("\n") == 1
    by_torch = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 2 vs 1")
    assert explain(by_torch, 1e6).startswith("error: cannot write to ")
    assert "RuntimeError" in explain(by_torch, 1e12) and "ValueError" in explain(ValueError(), 1e6)
    # another file's, for instance: its traceback says where
    assert "PermissionError" in explain(PermissionError(13, "Permission denied", "x"), 1e6)


def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")
    with pytest.raises(OSError), data.whole_file(path) as name:
        with open(name, "w") as file:
            file.write("half")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
