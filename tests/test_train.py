"""train.py as a user runs it: two real GRPO steps on a tiny model, resume, checks and errors. CPU, about a minute.

    bash tests/run.sh -k train
"""
import json
import os
import shutil
from types import SimpleNamespace

import pytest
from conftest import ROOT, run_script, train_arguments

import data
import train


def test_two_steps_train_the_adapter_and_write_everything(trained):
    train.check_adapter(trained / "grpo_lora")
    run = json.loads((trained / "run.json").read_text())
    assert run["effective"] | {"prompts_per_step": 2, "completions_per_step": 8, "load_in_4bit": False, "fast_inference": False} == run["effective"]
    assert run["effective"]["max_prompt_length"] + run["effective"]["max_completion_length"] == 128
    assert run["effective"]["held_out_rows"] == len(run["held_out"]) > 50
    assert run["arguments"]["loss_type"] == "bnpo" and run["arguments"]["beta"] == 0.001 and run["versions"]["trl"]
    steps = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "reward" in row] == [1, 2]
    assert {f"rewards/{name}/mean" for name in run["arguments"]["reward_funcs"]} <= set(steps[0]) and "kl" in steps[0]
    out = (trained / "stdout.txt").read_text()
    assert "你必须用印尼语思考。<｜User｜>" in out and "completions_per_step: 8" in out and "问题:" in out and "adapter:" in out
    assert list(trained.glob("swanlog/run-*"))  # SwanLab works without a key


def test_held_out_questions_were_never_trained_on(trained):
    run = json.loads((trained / "run.json").read_text())
    train_set, held_out, _ = data.load_math_dataset(SimpleNamespace(**run["arguments"]), data.load_tokenizer(run["arguments"]["model"]))
    assert [prompt[-1]["content"] for prompt in held_out["prompt"]] == run["held_out"]
    assert len(train_set) == run["effective"]["train_rows"] and not {prompt[-1]["content"] for prompt in train_set["prompt"]} & set(run["held_out"])


def test_resume_continues_with_the_flags_of_the_run(trained, tiny, tmp_path):
    shutil.copytree(trained, tmp_path / "outputs")
    shutil.rmtree(tmp_path / "outputs" / "checkpoint-2")
    (tmp_path / "outputs" / "checkpoint-90").mkdir()  # of an earlier, longer run
    os.utime(tmp_path / "outputs" / "checkpoint-90", (1, 1))
    done = run_script("train.py", "--resume", "--output-dir", tmp_path / "outputs", "--max-steps", 3, "--report-to", "none")
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [json.loads(line) for line in (tmp_path / "outputs" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if "reward" in row] == [1, 2, 3]
    first = json.loads((trained / "metrics.jsonl").read_text().splitlines()[0])
    assert steps[0] == first  # kept from the first run
    before, after = (json.loads((folder / "run.json").read_text())["arguments"] for folder in (trained, tmp_path / "outputs"))
    assert {name for name in before if before[name] != after[name]} == {"resume", "max_steps", "report_to", "output_dir"}


@pytest.mark.parametrize("accumulation, completions", [(2, 8), (8, 8), (4, 4)])  # 2 * 1 is no group of 4; 8 * 1 and 4 * 1 are
def test_a_batch_of_one_becomes_a_group_only_where_it_must(tiny, tmp_path, accumulation, completions):
    done = run_script("train.py", *train_arguments(tiny, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=accumulation, max_steps=1,
                                                   warmup_ratio=0, report_to="none"))
    assert done.returncode == 0 and f"completions_per_step: {completions}\n" in done.stdout, done.stderr[-3000:]


def test_answers_that_are_no_numbers_are_counted(tiny, tmp_path):
    rows = [json.dumps({"prompt": f"What is {i} + 1?", "solution": str(i + 1) if i % 2 else "a few"}) for i in range(8)]
    (tmp_path / "data.jsonl").write_text("\n".join(rows))
    done = run_script("train.py", *train_arguments(tiny, tmp_path / "out", dataset=tmp_path / "data.jsonl", rewards="improved", eval_fraction=0, max_prompt_quantile=1,
                                                   max_steps=1, warmup_ratio=0, report_to="none"))
    assert done.returncode == 0 and "warning: 4 of 8 answers are no numbers" in done.stdout, done.stderr[-3000:]


def test_stop_if_stuck_names_the_cause(tiny, tmp_path):
    done = run_script("train.py", *train_arguments(tiny, tmp_path, rewards="improved", max_steps=5, max_seq_length=50, stop_if_stuck=2, report_to="none", eval_fraction=0.02,
                                                   eval_steps=1))
    assert done.returncode == 1 and "error: stopped at step 2: for 2 logged steps every completion was cut at the token limit" in done.stderr
    assert any("eval_reward" in line for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_find_stuck():
    row = {"completions/clipped_ratio": 1.0, "frac_reward_zero_std": 0.5}
    assert train.find_stuck([row] * 3, 3).startswith("for 3 logged steps every completion was cut")
    assert train.find_stuck([row] * 2, 3) is None
    assert train.find_stuck([row] * 3 + [row | {"completions/clipped_ratio": 0.9}], 3) is None
    assert "same reward" in train.find_stuck([row, {"train_loss": 0}, {"completions/clipped_ratio": 0, "frac_reward_zero_std": 1.0}], 1)
    assert train.find_stuck([], 5) is None


def test_check_adapter_can_fail(trained, tmp_path, tiny):
    from safetensors.torch import load_file, save_file
    adapter = tmp_path / "adapter"
    shutil.copytree(trained / "grpo_lora", adapter)
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(key for key in tensors if "lora_B" in key)
    for value in (0.0, float("nan")):
        save_file(tensors | {name: tensors[name] * 0 + value}, adapter / "adapter_model.safetensors")
        with pytest.raises(ValueError, match="1 of .* tensors are zero or not finite"):
            train.check_adapter(adapter)
    save_file({}, adapter / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="not trained"):
        train.check_adapter(adapter)
    with pytest.raises(ValueError, match="is not a LoRA adapter"):
        train.check_adapter(tiny / "model")
    shutil.copytree(tiny / "model", tmp_path / "other")
    with pytest.raises(ValueError, match="was trained on"):
        train.check_adapter(trained / "grpo_lora", str(tmp_path / "other"))


@pytest.mark.parametrize("follows", [True, False, "with the same tokens"])
def test_guard_sees_whether_rollouts_follow_the_adapter(tiny, follows):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny / "model", dtype=torch.bfloat16)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny / "model", dtype=torch.bfloat16),
                           LoraConfig(r=32, lora_alpha=64, target_modules=train.LORA_TARGETS, task_type="CAUSAL_LM"))

    class Engine:  # what train.py uses of TRL's VLLMGeneration; a real model generates
        temperature, max_completion_length, synced, first = 1.0, 900, 0, None

        def sync_weights(self):
            self.synced += 1
            model.merge_adapter()  # as TRL does, which rounds
            model.unmerge_adapter()

        def generate(self, prompts, images, num_generations):
            ids = torch.tensor(prompts)
            out = (model if follows else base).generate(input_ids=ids, attention_mask=ids * 0 + 1, do_sample=self.temperature > 0,
                                                        max_new_tokens=self.max_completion_length)
            if follows == "with the same tokens":  # as a model does that is sure of its first sentence
                out = self.first = out if self.first is None else self.first
            logits = (model if follows else base)(out).logits[:, ids.shape[1] - 1:-1]
            logprobs = logits.log_softmax(-1).gather(-1, out[:, ids.shape[1]:, None])
            return None, out[:, ids.shape[1]:].tolist(), logprobs.float().tolist(), None

    engine = Engine()
    trainer = SimpleNamespace(model=model, vllm_generation=engine)
    if follows:
        train.check_rollouts_follow_adapter(trainer, [5, 6, 7])
    else:
        with pytest.raises(SystemExit, match="rollouts do not follow the adapter"):
            train.check_rollouts_follow_adapter(trainer, [5, 6, 7])
    assert (engine.temperature, engine.max_completion_length, engine.synced) == (1.0, 900, 3)
    assert not any(p.any() for name, p in model.named_parameters() if "lora_B" in name)
    assert all(torch.equal(p, q) for p, q in zip(model.unload().parameters(), base.parameters(), strict=True))


@pytest.mark.parametrize("changes, message", [
    ({"engine": "unsloth"}, "--engine unsloth needs an NVIDIA GPU"), ({"dataset": "nowhere.jsonl"}, "cannot load data set nowhere.jsonl"),
    ({"model": "/nowhere"}, "there is no folder /nowhere"), ({"num_generations": 3}, "--num-generations 3 must divide"),
    ({"max_seq_length": 20}, "leaves no token"), ({"resume": True}, "no checkpoint"), ({"reward_weights": 1}, "--reward-weights needs 5 values"),
    ({"temperature": 0}, "--temperature must be above 0"), ({"target_modules": "foo"}, "{'foo'} not found"), ({"lora_rank": 0}, "`r` should be a positive integer"),
    ({"per_device_train_batch_size": 4000}, "a step needs 1000 prompts"), ({"gradient_accumulation_steps": 0}, "must divide"),
    ({"num_generations": 1}, "at least 2"), ({"lr_scheduler_type": "foo"}, "foo"), ({"loss_type": "foo"}, "invalid choice: 'foo'"),
    ({"report_to": "wandb"}, "pip install wandb"), ({"warmup_ratio": 1}, "--warmup-ratio must be at least 0 and less than 1"), ({"eval_fraction": 0, "eval_steps": 1}, "--eval-steps needs --eval-fraction"), ({"target_lang": "xx"}, "invalid choice: 'xx'")])
def test_bad_input_gets_one_line_and_leaves_nothing(tiny, tmp_path, changes, message):
    done = run_script("train.py", *train_arguments(tiny, tmp_path / "outputs", **changes))
    assert done.returncode == 2 and not (tmp_path / "outputs").exists()
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last and "Traceback" not in done.stderr


def test_a_tokenizer_without_reasoning_tokens_in_two_processes(tiny, tmp_path):
    shutil.copytree(tiny / "model", tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (tmp_path / "model" / name).read_text()
        (tmp_path / "model" / name).write_text(text.replace("<think>", "<a>").replace("</think>", "</a>"))
    arguments = train_arguments(tiny, tmp_path / "outputs", model=tmp_path / "model", max_steps=1, report_to="none", warmup_ratio=0,
                                num_generations=8, per_device_train_batch_size=4)
    done = run_script("train.py", *arguments, WORLD_SIZE="2")
    assert done.returncode == 2 and "error: this tokenizer has no <think> and </think>" in done.stderr
    done = run_script("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "train.py", *arguments,
                      "--reasoning-tokens", "<think>", "</think>", ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-3000:]
    run = json.loads((tmp_path / "outputs" / "run.json").read_text())
    assert run["effective"]["completions_per_step"] == 8 and run["effective"]["prompts_per_step"] == 1
    train.check_adapter(tmp_path / "outputs" / "grpo_lora")


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "export.py", "data.py"])
def test_help_needs_nothing_but_python_and_a_second(script):
    import subprocess, sys, time
    started = time.time()
    done = subprocess.run([sys.executable, "-S", str(ROOT / script), "--help"], capture_output=True, text=True)  # -S: no packages
    assert done.returncode == 0 and "--model" in done.stdout and time.time() - started < 1.5
