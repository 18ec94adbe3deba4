"""The statistics against published examples, and evaluate.py as a user runs it. CPU, about a minute.

    bash tests/run.sh -k evaluate
"""
import json
import shutil

import pytest
from conftest import run_script

import evaluate


@pytest.mark.parametrize("k, n, interval", [  # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3
    (81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611)), (1, 29, (0.0061, 0.1718))])
def test_wilson(k, n, interval):
    assert evaluate.wilson(k, n) == pytest.approx(interval, abs=5e-5)


def test_mcnemar():  # Fagerland, Lydersen, Laake (2014), airway hyper-responsiveness: 1 against 7 discordant pairs
    assert evaluate.mcnemar(1, 7) == pytest.approx(0.0703, abs=5e-5)
    assert evaluate.mcnemar(0, 0) == 1.0


@pytest.mark.parametrize("counts, difference, interval", [
    ((36, 12, 2, 0), 0.2, (0.0569, 0.3404)),      # Newcombe, Statistics in Medicine 17 (1998) 2635-2650, method 10
    ((1, 1, 7, 12), -0.286, (-0.507, -0.026)),    # Fagerland et al. (2014), Newcombe's square-and-add interval
    ((14, 5, 0, 22), 0.122, (0.011, 0.226))])     # Altman et al., Statistics with Confidence (2000), chapter 6
def test_paired_difference(counts, difference, interval):
    d, ends = evaluate.paired_difference(*counts)
    assert d == pytest.approx(difference, abs=5e-4) and ends == pytest.approx(interval, abs=5e-4)


def test_paired_difference_at_the_edges():
    for counts in ((5, 0, 0, 0), (0, 0, 0, 5), (0, 5, 0, 0), (3, 0, 0, 2)):
        d, (low, high) = evaluate.paired_difference(*counts)
        assert -1 <= low <= d <= high <= 1


def test_samples_needed():  # 40 % against 60 % at 80 % power
    assert evaluate.samples_needed(0.4, 0.6) == 97 == evaluate.samples_needed(0.6, 0.4)


def test_verdicts():
    def make(both, first, second, neither):
        n = both + first + second + neither
        d, ends = evaluate.paired_difference(both, first, second, neither)
        return evaluate.verdict({"difference": d, "difference_ci95": ends, "mcnemar_p": evaluate.mcnemar(first, second)}, n,
                                (both + second) / n, (both + first) / n)
    assert make(50, 70, 8, 72) == "improved by 31 points (95 % CI 23 to 38, n = 200, p < 0.001)"
    assert make(0, 0, 6, 0) == "fell by 100 points (95 % CI -100 to -45, n = 6, p = 0.031)"
    assert make(5, 7, 3, 5) == "no difference shown at n = 20 (p = 0.34); about 97 per arm are needed for 20 points"  # the tutorial's 12 against 8
    assert evaluate.verdict({"difference": 0.5, "difference_ci95": (0.3, 0.6), "mcnemar_p": 0.01}, 20, 0.1, 0.6, "rose").startswith("rose by 50 points")
    assert make(5, 5, 5, 5) == "no difference shown at n = 20 (p = 1.00)"


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluated") / "outputs"
    shutil.copytree(trained, output)
    done = run_script("evaluate.py", "--output-dir", output, "--split", "held-out", "--num-samples", 12, "--max-tokens", 24, "--report-to", "swanlab")
    assert done.returncode == 0, done.stderr[-3000:]
    (output / "eval.txt").write_text(done.stdout)
    return output


def test_results_and_samples(evaluated):
    results = json.loads((evaluated / "eval" / "results.json").read_text())
    samples = [json.loads(line) for line in (evaluated / "eval" / "samples.jsonl").read_text().splitlines()]
    held_out = json.loads((evaluated / "run.json").read_text())["held_out"]
    assert results["n"] == len(samples) == 12 and {row["prompt"] for row in samples} <= set(held_out)
    for arm in ("base", "lora"):
        for rate in evaluate.RATES:
            assert results[arm][rate] == sum(row[arm][rate] for row in samples) / 12
            low, high = results[arm][f"{rate}_ci95"]
            assert low <= results[arm][rate] <= high
        assert all(set(row[arm]) >= {"text", "lang", "tokens", "truncated"} for row in samples)
    assert {"mcnemar_p", "difference", "difference_ci95", "arguments", "versions", "commit", "seconds"} <= set(results)
    assert [p["arm"] for p in results["single_prompts"]] == ["base", "lora", "lora", "base"]
    assert results["single_prompts"][0]["prompt"] == "What is the sqrt of 101?"
    assert (evaluated / "eval" / "eval.png").stat().st_size > 10000
    out = (evaluated / "eval.txt").read_text()
    assert "在12个样本上比较使用和不使用LoRA的语言使用情况:" in out and "使用LoRA - 印尼语响应: " in out and "indonesian_and_correct" in out


def test_same_prompts_same_seeds_give_the_same_texts(evaluated, tmp_path):
    """An adapter that changes nothing must answer like the base: the arms differ by the adapter only."""
    from safetensors.torch import load_file, save_file
    output = tmp_path / "outputs"
    shutil.copytree(evaluated, output)
    path = output / "grpo_lora" / "adapter_model.safetensors"
    save_file({key: value * 1e-20 if "lora_B" in key else value for key, value in load_file(path).items()}, path)
    done = run_script("evaluate.py", "--output-dir", output, "--num-samples", 8, "--max-tokens", 24)
    assert done.returncode == 0, done.stderr[-3000:]
    samples = [json.loads(line) for line in (output / "eval" / "samples.jsonl").read_text().splitlines()]
    assert all(row["base"]["text"] == row["lora"]["text"] for row in samples) and len({row["base"]["text"] for row in samples}) > 1
    assert "no difference shown at n = 8 (p = 1.00)" in done.stdout and "warning: every text is the same" in done.stdout


def test_rescore_gives_identical_numbers(evaluated, tmp_path):
    shutil.copytree(evaluated, tmp_path / "outputs")
    results = tmp_path / "outputs" / "eval" / "results.json"
    before = json.loads(results.read_text())
    results.write_text(json.dumps(before | {"base": None, "difference": None}))
    done = run_script("evaluate.py", "--rescore", tmp_path / "outputs" / "eval" / "samples.jsonl")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(results.read_text()) == before


def test_rescore_grades_two_written_samples(tmp_path):
    rows = [{"prompt": "1+1?", "answer": "2", "base": {"text": "<think>One and one make the number two.</think>2", "tokens": 9, "truncated": False},
             "lora": {"text": "<think>Baik, mari kita hitung bersama, satu ditambah satu sama dengan dua.</think>2", "tokens": 11, "truncated": False}},
            {"prompt": "1+2?", "answer": "3", "base": {"text": "<think>One and two make three, and then", "tokens": 8, "truncated": True},
             "lora": {"text": "<think>Baik, mari kita hitung bersama, satu ditambah dua sama dengan tiga.</think>4", "tokens": 11, "truncated": False}}]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "results.json").write_text(json.dumps({"target_lang": "id", "reasoning_tokens": ["<think>", "</think>"]}))
    done = run_script("evaluate.py", "--rescore", tmp_path / "samples.jsonl")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert [results[arm][rate] for arm in ("base", "lora") for rate in evaluate.RATES] == [0, 0.5, 0, 0.5, 1, 0.5, 0.5, 0]
    assert results["base"]["language_share"] == 0 < 0.9 < results["lora"]["language_share"]


def test_rescore_of_something_else_changes_nothing(evaluated, tmp_path):
    shutil.copytree(evaluated / "eval", tmp_path / "eval")
    (tmp_path / "eval" / "bad.jsonl").write_text("[]\n")
    before = {path: path.read_bytes() for path in (tmp_path / "eval").iterdir()}
    done = run_script("evaluate.py", "--rescore", tmp_path / "eval" / "bad.jsonl")
    assert done.returncode == 2 and done.stderr.startswith("error: --rescore") and done.stderr.count("\n") == 1
    assert {path: path.read_bytes() for path in (tmp_path / "eval").iterdir()} == before


def test_one_model_alone_without_a_pad_token(tiny, tmp_path):
    shutil.copytree(tiny / "model", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["pad_token"]
    path.write_text(json.dumps(config))
    done = run_script("evaluate.py", "--output-dir", tmp_path, "--model", tmp_path / "model", "--dataset", tiny / "train.jsonl", "--adapter", "none",
                      "--num-samples", 4, "--max-tokens", 8)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "eval-alone" / "results.json").read_text())
    assert "lora" not in results and "difference" not in results and results["base"]["truncation_rate_ci95"]


@pytest.mark.parametrize("flags, message", [
    (["--num-samples", "100000"], "the train split has"), (["--num-samples", "0"], "the train split has"), (["--adapter", "{tiny}/model"], "is not a LoRA adapter"),
    (["--adapter", "{tiny}/nothing"], "is not a LoRA adapter"), (["--model", "{tiny}/wide"], "was trained on"),
    (["--model", "{tiny}/small/model"], "more than the model's vocabulary"), (["--split", "held-out", "--eval-fraction", "0.3"], "does not show that train.py left"),
    (["--rescore", "{tiny}/nothing.jsonl"], "--rescore"), (["--max-tokens", "0"], "--max-tokens must be at least 1"), (["--output-dir", "/proc/nothing"], "error: ")])
def test_bad_input_gets_one_line(trained, tiny, flags, message):
    if not (tiny / "wide").exists():
        from transformers import AutoConfig, AutoModelForCausalLM
        shutil.copytree(tiny / "model", tiny / "small" / "model")
        shutil.copytree(tiny / "model", tiny / "wide")
        for folder, change in ((tiny / "wide", {"hidden_size": 64}), (tiny / "small" / "model", {"vocab_size": 300})):
            config = AutoConfig.from_pretrained(tiny / "model")
            for key, value in change.items():
                setattr(config, key, value)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    arguments = [flag.replace("{tiny}", str(tiny)) for flag in flags]
    done = run_script("evaluate.py", "--output-dir", trained, *arguments)
    assert not (trained / "eval").exists()
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
