"""train.py as a user runs it: real GRPO steps on a tiny model, checks and errors. CPU, minutes.

bash tests/run.sh -k train
"""

import inspect
import json
import math
import shutil
import sqlite3
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT, run_script, train_arguments

import data
import rewards
import train


def read_metrics(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def read_run(folder):
    return json.loads((folder / "run.json").read_text())


# --- a run ----------------------------------------------------------------------------------------


def test_two_steps_train_the_adapter_and_write_everything(trained):
    train.check_adapter(trained / "grpo_lora")
    run = read_run(trained)
    effective = run["effective"]
    assert run["state"] == "finished"
    assert effective["prompts_per_step"] == 2 and effective["completions_per_step"] == 8
    assert effective["load_in_4bit"] is False and effective["fast_inference"] is False
    assert effective["max_prompt_length"] + effective["max_completion_length"] == 128
    assert effective["held_out_rows"] == len(run["held_out"]) > 50
    held_out = {train.hash_question(question) for question in run["held_out"]}
    assert effective["train_rows"] == len(run["trained_on"]) > 50
    assert not held_out & set(run["trained_on"])
    assert effective["steps"] == 2 and effective["optim"] == "adamw_torch"
    assert run["arguments"]["loss_type"] == "bnpo" and run["arguments"]["beta"] == 0.001
    assert run["arguments"]["lora_alpha"] == 64
    assert run["arguments"]["reasoning_tokens"] == ["<think>", "</think>"]
    assert run["arguments"]["reward_weights"] == [1.0] * 5
    assert run["versions"]["trl"] and len(run["base_fingerprint"]) == 64
    steps = [row for row in read_metrics(trained) if "reward" in row]
    assert [row["step"] for row in steps] == [1, 2]
    names = [*rewards.REWARDS["tutorial"], *rewards.MEASURED]
    assert {f"rewards/{function.__name__}/mean" for function in names} <= set(steps[0])
    assert "kl" in steps[0]
    assert len(list(trained.glob("completions/*.parquet"))) == 2
    assert (trained / "curves.png").stat().st_size > 10000
    assert "grpo_lora/" in (trained / "README.md").read_text()
    assert list(trained.glob("swanlog/run-*"))  # SwanLab works without a key


def test_swanlab_shows_what_matters_first(trained):
    with sqlite3.connect(trained / "swanlog/runs.swanlab") as base:
        charts = base.execute("select name from chart where experiment_id = 1 order by id")
    names = [name.removeprefix("train/") for (name,) in charts]
    assert names[:3] == ["reward", "rewards/indonesian_rate/mean", "rewards/accuracy/mean"]
    assert names[3:5] == ["completions/mean_length", "completions/clipped_ratio"]
    assert all(name.startswith("rewards/") for name in names[5:10]) and names[10] == "loss"
    assert "completions" in names
    assert len(list(trained.glob("swanlog/run-*/media/text/*.txt"))) >= 2 * 2


def test_what_is_printed(trained):
    out = (trained / "stdout.txt").read_text()
    assert "你必须用印尼语思考。<｜User｜>" in out and "completions_per_step: 8" in out
    assert "问题:" in out and "adapter:" in out
    assert "\n1/2  reward " in out and "  Indonesian 0." in out and "  ETA 0 min" in out
    assert "means of the first and last 1 logged steps:" in out


def test_the_measured_are_not_paid(trained):
    for row in read_metrics(trained):
        if "reward" in row:
            names = [function.__name__ for function in rewards.REWARDS["tutorial"]]
            paid = sum(row[f"rewards/{name}/mean"] for name in names)
            assert row["reward"] == pytest.approx(paid, abs=1e-4)


def test_held_out_questions_were_never_trained_on(trained):
    run = read_run(trained)
    args = SimpleNamespace(**run["arguments"])
    train_set, held_out, _ = data.load_math_dataset(args, data.load_tokenizer(args.model))
    assert train.get_questions(held_out) == run["held_out"]
    assert len(train_set) == run["effective"]["train_rows"]
    assert not set(train.get_questions(train_set)) & set(run["held_out"])


def test_the_settings_that_reach_trl(trained):
    import torch

    settings = torch.load(trained / "checkpoint-2" / "training_args.bin", weights_only=False)
    run = read_run(trained)
    expected = {
        "temperature": 1.0,
        "min_p": 0.1,
        "top_p": 1.0,
        "top_k": 0,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "warmup_steps": 0.1,
        "lr_scheduler_type": "linear",
        "logging_steps": 1,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "num_generations": 4,
        "max_completion_length": run["effective"]["max_completion_length"],
        "max_steps": 2,
        "save_steps": 1,
        "save_total_limit": 2,
        "seed": 3407,
        "bf16": False,
        "gradient_checkpointing": False,
        "loss_type": "bnpo",
        "beta": 0.001,
        "scale_rewards": "group",
        "mask_truncated_completions": False,
        "reward_weights": [1.0] * 5 + [0.0] * 2,
        "use_vllm": False,
        "vllm_gpu_memory_utilization": 0.7,
        "vllm_max_model_length": 2048,
        "vllm_importance_sampling_correction": False,
        "eval_strategy": "no",
    }
    assert {name: getattr(settings, name) for name in expected} == expected


def test_the_longest_prompt_bounds_the_completions(trained):
    run = read_run(trained)
    args = SimpleNamespace(**run["arguments"])
    tokenizer = data.load_tokenizer(args.model)
    train_set, held_out, longest = data.load_math_dataset(args, tokenizer)
    lengths = [len(data.encode_prompt(tokenizer, p)) for p in train_set["prompt"]]
    lengths += [len(data.encode_prompt(tokenizer, p)) for p in held_out["prompt"]]
    assert max(lengths) == longest == run["effective"]["max_prompt_length"] - 1


@pytest.mark.parametrize(
    "accumulation, completions",
    [
        (1, 4),  # 1 * 1 is no group of 4: the batch becomes 4
        (8, 8),
        (4, 4),
        (6, None),  # 6 * 4 would be a batch that nobody asked for, and may not fit
    ],
)
def test_a_batch_of_one_becomes_a_group_only_where_it_must(accumulation, completions):
    args = SimpleNamespace(
        lora_alpha=None,
        lora_rank=8,
        max_steps=100,
        warmup_ratio=0.1,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=1,
        num_generations=4,
        report_to="none",
        reasoning_tokens=None,
    )
    if completions is None:
        with pytest.raises(SystemExit):
            train.check_arguments(args)
        return
    train.check_arguments(args)
    assert train.get_completions_per_step(args) == completions and args.lora_alpha == 16


OWN_REWARD = """
import rewards, train
def own_reward(prompts, completions, first, **kwargs):
    for prompt, number in zip(prompts, first, strict=True):
        assert f" {number} + 1?" in prompt[-1]["content"]
    return [float(len(completion[0]["content"])) for completion in completions]
rewards.REWARDS["own"] = {own_reward: 1.0}
train.main(train.parse_arguments())
import torch
assert not torch.backends.cuda.cudnn_sdp_enabled()
"""


def test_a_reward_of_a_fork_gets_the_columns_of_its_data(tiny, tmp_path):
    rows = []
    for i in range(20):
        question = {"question": f"What is {i} + 1?", "answer": str(i + 1), "first": i}
        rows.append(question | {"prompts": "a", "completions": "b", "images": ["c"]})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"dataset": tmp_path / "data.jsonl", "rewards": "own", "report_to": "none"}
    changes |= {"max_steps": 1, "warmup_ratio": 0}
    done = run_script("-c", OWN_REWARD, *train_arguments(tiny, tmp_path / "out", **changes))
    assert done.returncode == 0, done.stderr[-3000:]


def test_answers_that_are_no_numbers_are_counted(tiny, tmp_path):
    rows = []
    for i in range(8):
        rows.append({"prompt": f"What is {i} + 1?", "solution": "a few" if i % 2 else str(i + 1)})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "data.jsonl").write_text(text)
    changes = {"dataset": tmp_path / "data.jsonl", "rewards": "improved", "eval_fraction": 0}
    changes |= {"max_prompt_quantile": 1, "max_steps": 1, "warmup_ratio": 0, "report_to": "none"}
    done = run_script("train.py", *train_arguments(tiny, tmp_path / "out", **changes))
    assert "warning: 4 of 8 answers are no numbers" in done.stdout, done.stderr[-3000:]
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10000  # of one step, too


def test_stop_if_stuck_ends_all_processes_and_names_the_cause(tiny, tmp_path):
    """Rank 0 alone stopped: the others waited for it in the next step."""
    changes = {"rewards": "improved", "max_steps": 5, "max_seq_length": 50, "stop_if_stuck": 2}
    changes |= {"report_to": "none", "per_device_train_batch_size": 4}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "train.py"]
    arguments = train_arguments(tiny, tmp_path, **changes)
    done = run_script(*launch, *arguments, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    cause = "error: stopped at step 2: for 2 logged steps every completion was cut at the token"
    assert done.returncode == 1 and cause in done.stderr
    assert read_run(tmp_path)["state"] == "stuck"


def test_an_adapter_that_is_not_trained_is_no_finished_run(tiny, tmp_path):
    """Cut texts all earn the same; --resume then said that the run is finished."""
    changes = {"rewards": "improved", "max_steps": 2, "max_seq_length": 50, "report_to": "none"}
    arguments = train_arguments(tiny, tmp_path, **changes)
    for flags in ([], ["--resume"]):
        done = run_script("train.py", *arguments, *flags, OMP_NUM_THREADS="1")
        assert done.returncode == 1 and "grpo_lora is not trained" in done.stderr
        assert read_run(tmp_path)["state"] == "running"


def test_a_tokenizer_without_reasoning_tokens_in_two_processes(tiny, tmp_path):
    shutil.copytree(tiny / "model", tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tmp_path / "model" / name).read_text()
        text = text.replace("<think>", "<a>").replace("</think>", "</a>")
        (tmp_path / "model" / name).write_text(text)
    changes = {"model": tmp_path / "model", "max_steps": 1, "warmup_ratio": 0}
    changes |= {"num_generations": 8, "per_device_train_batch_size": 4, "report_to": "none"}
    arguments = train_arguments(tiny, tmp_path / "outputs", **changes)
    done = run_script("train.py", *arguments, WORLD_SIZE="2")
    assert done.returncode == 2 and "this tokenizer has no <think> and </think>" in done.stderr
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "train.py"]
    tags = ["--reasoning-tokens", "<think>", "</think>"]
    done = run_script(*launch, *arguments, *tags, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    run = read_run(tmp_path / "outputs")
    assert run["effective"]["completions_per_step"] == 8
    assert run["effective"]["prompts_per_step"] == 1 and run["state"] == "finished"
    train.check_adapter(tmp_path / "outputs" / "grpo_lora")
    assert done.stdout.count("1/1  reward") == 1  # rank 0 alone prints


def test_two_processes_train_the_adapter_of_one(tiny, tmp_path):
    """The same 16 completions a step, in one process and in two with 8 each, three steps.

    Gradients are summed in another order, so float32 differs in its last digits, and where one is
    nearly zero Adam makes a whole step of its sign: 0.1 % of a tensor's norm is allowed.
    """
    from safetensors.torch import load_file

    changes = {"num_generations": 8, "max_steps": 3, "loss_type": "dapo", "beta": 0}
    changes |= {"report_to": "none", "save_steps": 3, "learning_rate": 1e-3, "warmup_ratio": 0}
    adapters = {}
    for processes in (1, 2):
        output = tmp_path / str(processes)
        changes["per_device_train_batch_size"] = 16 // processes
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes]
        script = [*launch, "tests/fixed_rollouts.py", *train_arguments(tiny, output, **changes)]
        done = run_script(*script, ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr[-3000:]
        assert read_run(output)["effective"]["completions_per_step"] == 16
        adapters[processes] = load_file(output / "grpo_lora" / "adapter_model.safetensors")
    rewards_of = {n: [r["reward"] for r in read_metrics(tmp_path / str(n))[:3]] for n in (1, 2)}
    assert rewards_of[1] == pytest.approx(rewards_of[2], abs=1e-6)
    for key, one in adapters[1].items():
        distance = (one - adapters[2][key]).norm() / one.norm()
        assert distance <= 1e-3, key  # measured: 3e-5


# --- functions ------------------------------------------------------------------------------------


def test_find_stuck():
    row = {"completions/clipped_ratio": 1.0, "frac_reward_zero_std": 0.5}
    free = row | {"completions/clipped_ratio": 0.9}
    alike = {"completions/clipped_ratio": 0, "frac_reward_zero_std": 1.0}
    assert train.find_stuck([row] * 3, 3).startswith("for 3 logged steps every completion was cut")
    assert train.find_stuck([row] * 2, 3) is None
    assert train.find_stuck([row] * 3 + [free], 3) is None
    assert "same reward" in train.find_stuck([row, {"train_loss": 0}, alike], 1)
    assert train.find_stuck([], 5) is None


def test_describe_step():
    logs = {"reward": 3.104, "rewards/indonesian_rate/mean": 0.42, "rewards/accuracy/mean": 0.25}
    logs |= {"completions/clipped_ratio": 0.1, "completions/mean_length": 843.4, "step_time": 14.0}
    state = SimpleNamespace(global_step=12, max_steps=100)
    rewards.configure(("<think>", "</think>"), "vi")
    assert "  Vietnamese 0.42  " in train.describe_step(logs, state)
    rewards.configure(("<think>", "</think>"), "id")
    assert train.describe_step(logs, state) == (
        "12/100  reward 3.10  Indonesian 0.42  right 0.25  cut 0.10  843 tokens  14.0 s  ETA 21 min"
    )
    del logs["rewards/accuracy/mean"]  # a fork's, of rewards.MEASURED
    assert "  Indonesian 0.42  right nan  cut 0.10  " in train.describe_step(logs, state)


def test_swanlab_gets_what_a_fork_still_measures(monkeypatch):
    logged = []
    swanlab = SimpleNamespace(
        log=lambda values, step: logged.append(values), Text=lambda *a, **b: a
    )
    monkeypatch.setitem(sys.modules, "swanlab", swanlab)
    texts = {"prompt": ["?"], "completion": ["!"], "advantages": [0.0]}
    trainer = SimpleNamespace(_logs=texts, args=SimpleNamespace(num_generations=1))
    logs = {"reward": 1.0, "completions/mean_length": 9.0, "loss": 0.0}
    train.log_what_matters(trainer, logs, 1)
    assert logged[0] == {"train/reward": 1.0, "train/completions/mean_length": 9.0}
    assert logs == {"loss": 0.0}  # for SwanLab's own callback


def make_watch(tmp_path):
    """Return the callback that train.py adds to a trainer."""
    trainer = SimpleNamespace(
        remove_callback=lambda callback: None,
        callback_handler=SimpleNamespace(callbacks=[]),
        _logs={"prompt": ["a question"], "completion": ["an answer"]},
    )
    args = SimpleNamespace(
        engine="unsloth",
        output_dir=tmp_path,
        report_to="none",
        rewards="improved",
        stop_if_stuck=2,
    )
    return train.make_watch(args, trainer, 0.0)


ROW = {"reward": 1.0, "completions/clipped_ratio": 0.0, "completions/mean_length": 9.0}
ROW |= {"rewards/indonesian_rate/mean": 0.5, "rewards/accuracy/mean": 0.5}


def test_every_tenth_logged_step_shows_a_text(tmp_path, capsys):
    """Of steps 5, 10, 15, ... none is the first of ten."""
    watch = make_watch(tmp_path)
    state = SimpleNamespace(log_history=[], global_step=0, max_steps=100)
    for step in range(5, 60, 5):
        state.global_step = step
        state.log_history.append(ROW | {"step": step})
        watch.on_log(None, state, SimpleNamespace(), dict(ROW))
    assert capsys.readouterr().out.count("an answer") == 2


def test_every_process_stops_a_stuck_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    watch = make_watch(tmp_path)
    row = ROW | {"completions/clipped_ratio": 1.0}
    state = SimpleNamespace(log_history=[row, row], global_step=2, max_steps=100)
    control = SimpleNamespace(should_training_stop=False)
    watch.on_log(None, state, control, dict(row))
    assert control.should_training_stop and capsys.readouterr().out == ""


@pytest.mark.parametrize("key", ["grad_norm", "reward"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_stops(key, value, capsys):
    train.check_finite({key: 1.0}, 3)
    with pytest.raises(SystemExit) as stopped:
        train.check_finite({key: value}, 3)
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {key} is {value} at step 3")


@pytest.mark.parametrize("rank, size", [(1, 8), (8, 8), (9, 16), (32, 32), (33, 64), (512, 512)])
def test_vllm_rank(rank, size):
    assert train.get_vllm_rank(rank) == size


def damage(adapter, change):
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(key for key in tensors if "lora_B" in key)
    if change == "zero":
        tensors[name] = tensors[name] * 0
    elif change == "nan":
        tensors[name] = tensors[name] * float("nan")
    elif change == "half":
        tensors = {key: tensors[key] for key in list(tensors)[::2]}
    elif change == "rank":
        tensors[name] = tensors[name][:, :16].contiguous()
    elif change == "empty":
        tensors = {}
    save_file(tensors, adapter / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        ("zero", "1 of 42 tensors are zero or not finite"),
        ("nan", "1 of 42 tensors are zero or not finite"),
        ("empty", "is not trained: 0 of 0 tensors"),
        ("half", "was trained on"),
        ("rank", "was trained on"),
    ],
)
def test_check_adapter_can_fail(trained, tiny, tmp_path, capsys, change, message):
    shutil.copytree(trained / "grpo_lora", tmp_path / "adapter")
    train.check_adapter(tmp_path / "adapter", str(tiny / "model"))
    damage(tmp_path / "adapter", change)
    with pytest.raises(SystemExit):
        train.check_adapter(tmp_path / "adapter", str(tiny / "model"))
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("text", [None, "", "[]", "{"])
def test_what_is_no_adapter(trained, tmp_path, capsys, name, text):
    shutil.copytree(trained / "grpo_lora", tmp_path / "adapter")
    (tmp_path / "adapter" / name).unlink()
    if text is not None:
        (tmp_path / "adapter" / name).write_text(text)
    with pytest.raises(SystemExit) as stopped:
        train.check_adapter(tmp_path / "adapter")
    assert stopped.value.code == 2 and "is not a LoRA adapter" in capsys.readouterr().err


def test_bases_are_told_apart_by_content(trained, tiny, tmp_path, capsys):
    """Another folder name is no other model; other weights under the same name are."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny / "model", tmp_path / "snapshots" / "0123abc")
    train.check_adapter(trained / "grpo_lora", str(tmp_path / "snapshots" / "0123abc"))
    shutil.copytree(tiny / "model", tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    save_file({key: tensor + 0.01 for key, tensor in tensors.items()}, path)
    with pytest.raises(SystemExit):
        train.check_adapter(trained / "grpo_lora", str(tmp_path / "model"))
    assert "was trained on another model" in capsys.readouterr().err
    path.unlink()  # as in the hub's cache before the first download
    train.check_adapter(trained / "grpo_lora", str(tmp_path / "model"))


# --- rollouts from the adapter --------------------------------------------------------------------


def make_model(tiny):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny / "model", dtype=torch.bfloat16)
    config = LoraConfig(
        r=32, lora_alpha=64, target_modules=train.LORA_TARGETS, task_type="CAUSAL_LM"
    )
    return get_peft_model(base, config)


class Engine:
    """What train.py uses of TRL's VLLMGeneration; the real model generates."""

    temperature = 1.0
    max_completion_length = 900

    def __init__(self, model, kind):
        self.model = model
        self.kind = kind
        self.synced = 0
        self.first = None

    def sync_weights(self):
        self.synced += 1

    def generate(self, prompts, images, num_generations, profiler=None):
        import contextlib

        import torch

        base_only = self.model.disable_adapter() if self.kind == "base" else None
        with base_only or contextlib.nullcontext():
            ids = torch.tensor(prompts)
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=self.temperature > 0,
                max_new_tokens=self.max_completion_length,
            )
            if self.kind == "sure of its tokens":
                out = self.first if self.first is not None else out
                self.first = out
            start = ids.shape[1]
            logits = self.model(out).logits[:, start - 1 : -1]
        logprobs = logits.log_softmax(-1).gather(-1, out[:, start:, None])
        return prompts, out[:, start:].tolist(), logprobs.float().tolist(), None


def test_the_stand_in_engine_has_the_real_signature():
    pytest.importorskip("trl")
    from trl.generation.vllm_generation import VLLMGeneration

    for name in ("generate", "sync_weights"):
        real = inspect.signature(getattr(VLLMGeneration, name)).parameters
        assert list(inspect.signature(getattr(Engine, name)).parameters) == list(real)
    source = inspect.getsource(VLLMGeneration.generate)
    assert "return prompt_ids, completion_ids, logprobs, logprob_token_ids" in source
    init = inspect.signature(VLLMGeneration.__init__).parameters
    assert {"temperature", "max_completion_length", "generation_kwargs"} <= set(init)
    assert "self.llm = LLM(" in inspect.getsource(VLLMGeneration._init_vllm)
    assert "self.llm.generate(" in source  # what send_adapters_to_vllm replaces


@pytest.mark.parametrize("kind, follows", [("lora", 1), ("base", 0), ("sure of its tokens", 1)])
def test_guard_sees_whether_rollouts_follow_the_adapter(tiny, capsys, kind, follows):
    import torch

    model = make_model(tiny)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    engine = Engine(model, kind)
    trainer = SimpleNamespace(model=model, vllm_generation=engine)
    if follows:
        train.check_rollouts_follow_adapter(trainer, [5, 6, 7])
    else:
        with pytest.raises(SystemExit) as stopped:
            train.check_rollouts_follow_adapter(trainer, [5, 6, 7])
        assert stopped.value.code == 1
        assert "rollouts do not follow the adapter" in capsys.readouterr().err
    assert (engine.temperature, engine.max_completion_length) == (1.0, 900)
    assert engine.synced == 3
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_vllm_gets_the_adapter_itself(tiny, monkeypatch):
    """A new name at every sync, the tensors as they are, the base untouched."""
    import torch
    from safetensors.torch import load_file

    class LoRARequest:
        def __init__(self, name, number, path):
            self.name, self.number, self.path = name, number, path

    module = SimpleNamespace(LoRARequest=LoRARequest)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(lora=module))
    monkeypatch.setitem(sys.modules, "vllm.lora", module)
    monkeypatch.setitem(sys.modules, "vllm.lora.request", module)
    calls = []
    resets = []

    def generate(prompts, lora_request=None):
        tensors = load_file(f"{lora_request.path}/adapter_model.safetensors")
        calls.append((lora_request.name, lora_request.number, tensors))

    llm = SimpleNamespace(generate=generate, reset_prefix_cache=lambda: resets.append(1))
    llm.wake_up = lambda tags: woken.append(tags)
    woken = []
    model = make_model(tiny)
    base = {name: p.detach().clone() for name, p in model.named_parameters() if "lora" not in name}
    vllm = SimpleNamespace(llm=llm, generation_kwargs={}, _llm_weights_sleeping=False)
    trainer = SimpleNamespace(model=model, vllm_generation=vllm)
    train.send_adapters_to_vllm(trainer)
    assert vllm.generation_kwargs == {"detokenize": False}
    lora_b = [p for name, p in model.named_parameters() if "lora_B" in name]
    for value in (0.0, 3e-5):
        for p in lora_b:
            p.data.fill_(value)
        trainer.vllm_generation.sync_weights()
        llm.generate([[1, 2, 3]])
    (first, one, before), (second, two, after) = calls
    assert first != second and one != two and len(resets) == 2
    keys = [key for key in before if "lora_B" in key]
    assert len(keys) == len(lora_b) == 21
    assert all(not before[key].any() for key in keys)
    assert all((after[key] == after[key].new_full((), 3e-5)).all() for key in keys)
    assert all(torch.equal(values, model.get_parameter(name)) for name, values in base.items())
    assert woken == []
    vllm._llm_weights_sleeping = True
    for _ in range(2):  # memory that is there already must not be taken again
        vllm.sync_weights()
    assert woken == [["weights"]] and not vllm._llm_weights_sleeping


@pytest.mark.parametrize("unsloth", [False, True])
def test_rollout_difference_is_logged(monkeypatch, unsloth):
    """0.5 on the tokens that count, whatever the padding holds."""
    import collections

    import torch

    class Trainer(SimpleNamespace):
        pass

    class Loss:  # Unsloth's: the text's own columns, after left padding; logps and mask 0 and 6
        @staticmethod
        def apply(logps, old, ref, sampling, lm_head, ids, mask, advantages):
            return logps

    trainer = Trainer(
        _metrics={"train": collections.defaultdict(list)},
        accelerator=SimpleNamespace(gather=lambda value: value),
    )
    inputs = {
        "sampling_per_token_logps": torch.tensor([[-1.5, -1.5, 0.0]]),
        "completion_mask": torch.tensor([[1, 1, 0]]),
    }
    if unsloth:
        logps = torch.tensor([[-8.0, -1.0, -2.0, -9.0]], requires_grad=True)
        mask = torch.tensor([[0, 1, 1, 0]])
        module = SimpleNamespace(UnslothEfficientGRPO=Loss)
        trainer.compute_loss = lambda model, inputs, num_items_in_batch: (
            module.UnslothEfficientGRPO.apply(logps, *5 * [None], mask, None)
        )
    else:
        logps = torch.tensor([[-1.0, -2.0, -9.0]], requires_grad=True)
        module = SimpleNamespace()
        trainer.compute_loss = lambda model, inputs, num_items_in_batch: (
            trainer._get_per_token_logps_and_entropies()[0]
        )
    monkeypatch.setitem(sys.modules, "made_by_unsloth", module)
    Trainer.__module__ = "made_by_unsloth"
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (logps, None, None)
    train.log_rollout_difference(trainer)
    assert trainer.compute_loss(None, inputs, num_items_in_batch=1) is logps
    assert trainer._metrics["train"]["rollout_logp_difference"] == [0.5]
    inputs["completion_mask"] = torch.tensor([[0, 0, 0]])  # cut off and masked: nothing to compare
    if unsloth:
        mask[:] = 0
    trainer.compute_loss(None, inputs, num_items_in_batch=1)
    logged = trainer._metrics["train"]["rollout_logp_difference"]
    assert len(logged) == 2 and math.isnan(logged[1])  # which TRL leaves out of a step's mean
    if unsloth:
        mask[:] = 1  # another number of tokens than the rollout's: nothing is logged
        trainer.compute_loss(None, inputs, num_items_in_batch=1)
        assert len(logged) == 2


def test_trl_still_has_what_log_rollout_difference_replaces():
    from trl import GRPOTrainer

    assert "self._compute_loss(model, inputs)" in inspect.getsource(GRPOTrainer.compute_loss)
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert "self._get_per_token_logps_and_entropies(" in source
    assert 'output["sampling_per_token_logps"]' in inspect.getsource(GRPOTrainer)
    assert "math.isnan(v)" in inspect.getsource(GRPOTrainer.log)


def test_trl_can_start_vllm_with_adapters(monkeypatch):
    from trl.generation import vllm_generation

    class LLM:
        def __init__(self, **options):
            self.options = options

        def sleep(self, level=1, mode="abort"):
            self.level = level

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=LLM))
    monkeypatch.setattr(vllm_generation, "LLM", None, raising=False)
    train.let_vllm_take_adapters(20)
    llm = vllm_generation.LLM(model="x")
    assert llm.options == {"model": "x", "enable_lora": True, "max_loras": 1, "max_lora_rank": 32}
    llm.sleep(level=2)  # as TRL does
    assert llm.level == 1  # which keeps the base
    source = inspect.getsource(vllm_generation.VLLMGeneration)
    assert "self.llm.sleep(level=2)" in source and "self._llm_weights_sleeping = True" in source


def test_only_warnings_that_do_not_hold_are_silenced():
    import logging
    import warnings

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        train.set_environment()
        warnings.warn("WARNING: Unsloth should be imported before [transformers] to")
        warnings.warn("Unsloth: another warning")
    assert [str(warning.message) for warning in shown] == ["Unsloth: another warning"]
    rope = logging.getLogger("transformers.modeling_rope_utils")
    assert not rope.filter(logging.makeLogRecord({"msg": "Unrecognized keys: {'attn_factor'}"}))
    assert rope.filter(logging.makeLogRecord({"msg": "Missing required keys: {'factor'}"}))
    from transformers import modeling_rope_utils  # whose logger that still is

    assert modeling_rope_utils.logger is rope


@pytest.mark.parametrize("gpu", [True, False])
def test_trl_gets_fused_layers_on_a_gpu_but_keeps_its_own_loss(monkeypatch, gpu):
    import torch
    from transformers.integrations import liger

    applied = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(liger, "apply_liger_kernel", lambda *options: applied.append(options))
    monkeypatch.setattr(train, "load_model", lambda name, revision: "a model")
    monkeypatch.setattr(data, "load_tokenizer", lambda name, revision: None)
    args = SimpleNamespace(
        model="x", revision=None, seed=1, lora_rank=8, lora_alpha=16, target_modules=["q_proj"]
    )
    assert train.load_with_trl(args)[0] == "a model"
    # with Liger's own loss the model would return no logits to compare with vLLM's
    assert applied == ([("a model", {"fused_linear_cross_entropy": False})] if gpu else [])


@pytest.mark.parametrize(
    "rope, scale",
    [
        ({}, 1.0),
        ({"rope_type": "yarn", "factor": 4.0}, 1.1386),
        # DeepSeek-R1-0528-Qwen3-8B: vLLM multiplies, 0.1 ln 4 + 1 times this is 1
        ({"rope_type": "yarn", "factor": 4.0, "attn_factor": 0.8782488562869419}, 1.0),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.9, "attn_factor": 0.8}, 0.9),
    ],
)
def test_the_trainer_s_attention_is_scaled_as_vllm_scales_it(tiny, tmp_path, rope, scale):
    shutil.copytree(tiny / "model", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    window = {"original_max_position_embeddings": 32768, "rope_theta": 1e6} if rope else {}
    config["rope_parameters"] |= rope | window
    path.write_text(json.dumps(config))
    for _ in range(2):  # loading twice multiplies once
        model = train.load_model(str(tmp_path / "model"))
    assert abs(model.model.rotary_emb.attention_scaling - scale) < 1e-4


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "export.py", "data.py"])
def test_help_needs_nothing_but_python(script):
    done = run_script("-S", ROOT / script, "--help")  # -S: no packages
    assert done.returncode == 0 and "--model" in done.stdout and "python " in done.stdout
    assert "None" not in done.stdout


@pytest.mark.parametrize("loss_type", ["bnpo", "grpo", "dr_grpo", "dapo"])
def test_without_padding_loss_and_gradient_are_the_same(tiny, tmp_path, monkeypatch, loss_type):
    """And attention has no mask, which flash attention could not take."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    trainer = GRPOTrainer(
        model=train.load_model(str(tiny / "model")),
        processing_class=data.load_tokenizer(str(tiny / "model")),
        reward_funcs=lambda completions, **kwargs: [0.0 for _ in completions],
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=2,
            num_generations=2,
            max_completion_length=12,
            loss_type=loss_type,
            beta=0.01,
            bf16=False,
            use_cpu=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": "a"}] * 4),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
    )
    generator = torch.Generator().manual_seed(0)
    for name, p in trainer.model.named_parameters():
        if "lora_B" in name:
            p.data = 0.1 * torch.randn(p.shape, generator=generator)
    trainer.current_gradient_accumulation_steps = 1  # which trainer.train() sets
    seen = []
    attention = torch.nn.functional.scaled_dot_product_attention

    def watch(query, key, value, attn_mask=None, **options):
        seen.append((query.shape[2], attn_mask is None and options["is_causal"]))
        return attention(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watch)
    padded = trainer._get_per_token_logps_and_entropies
    train.skip_padding(trainer)
    unpadded = trainer._get_per_token_logps_and_entropies
    # prompts, completions: uneven, even, one text masked as cut off, both
    lengths = [((3, 5), (4, 9)), ((8, 8), (12, 12)), ((6, 5), (4, 0)), ((6, 2), (0, 0))]
    widths = [14, 20, 10, 6]
    for (prompts, completions), width in zip(lengths, widths):
        prompt_mask = torch.tensor([[0] * (8 - n) + [1] * n for n in prompts])
        completion_mask = torch.tensor([[1] * n + [0] * (12 - n) for n in completions])
        batch = {
            "prompt_ids": torch.randint(5, 300, (2, 8), generator=generator),
            "prompt_mask": prompt_mask,
            "completion_ids": torch.randint(5, 300, (2, 12), generator=generator),
            "completion_mask": completion_mask,
            "advantages": torch.tensor([1.0, -0.5]),
            "num_items_in_batch": torch.tensor(18),
            "ref_per_token_logps": -torch.rand((2, 12), generator=generator),
            "sampling_per_token_logps": -torch.rand((2, 12), generator=generator),
        }
        losses, gradients = [], []
        for get_logps in (padded, unpadded):
            trainer._get_per_token_logps_and_entropies = get_logps
            trainer.model.zero_grad()
            loss = trainer._compute_loss(trainer.model, dict(batch))
            loss.backward()
            losses.append(loss.item())
            lora = [p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad]
            gradients.append(torch.cat(lora))
        assert seen[-1] == (width, True) and seen[-4][0] == 20  # of three layers
        assert losses[0] == pytest.approx(losses[1], rel=1e-5, abs=1e-7)
        assert torch.allclose(*gradients, rtol=1e-4, atol=1e-6)
        assert (gradients[0].abs().max() > 1e-4) == (max(completions) > 0)
    # in this order, as main: TRL's columns are back where the rollouts' are compared
    main = inspect.getsource(train.main)
    assert main.index("skip_padding(trainer)") < main.index("log_rollout_difference(trainer)")
    trainer._get_per_token_logps_and_entropies = unpadded
    train.log_rollout_difference(trainer)
    batch["completion_mask"] = torch.ones_like(completion_mask)
    trainer.compute_loss(trainer.model, batch)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    logps, entropies, _ = padded(trainer.model, ids, mask, 12, compute_entropy=True)
    difference = logps - batch["sampling_per_token_logps"]
    logged = trainer._metrics["train"]["rollout_logp_difference"]
    assert logged == [pytest.approx(difference.abs().mean().item(), rel=1e-4)]
    mask[0, -3:] = 0  # columns without a token are TRL's zeros
    here = unpadded(trainer.model, ids, mask, 12, compute_entropy=True)
    for values, expected in zip(here, (logps, entropies)):
        assert torch.allclose(values, expected * mask[:, -12:], atol=1e-4)
