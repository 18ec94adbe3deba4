"""The statistics against published examples, the grading, and evaluate.py as a user runs it.

On a CPU, with a tiny random model, two minutes:

    bash tests/run.sh -k evaluate
"""

import argparse
import contextlib
import io
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, run_script

import data
import evaluate
import rewards

INDONESIAN = "Baik, mari kita hitung bersama, satu ditambah dua sama dengan tiga."
ENGLISH = "Okay, let us work this out together, one and two make the number three."
MAX_TOKENS = 24


# --------------------------------------------------------------------------------------------------
# A base model, adapters and a run.json as train.py leaves them


def make_model(folder, **changes):
    """Save a random Qwen3 with byte-level tokens, think tags and two tokens that end a text."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*alphabet, "<bos>", "<eos>", "<end>"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>", "<end>"])
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<eos>"
    )
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}"
        "{% endfor %}[assistant]"
    )
    torch.manual_seed(3407)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "initializer_range": 0.3,
    }
    model = Qwen3ForCausalLM(Qwen3Config(**(sizes | changes)))
    end_tokens = tokenizer.convert_tokens_to_ids(["<eos>", "<end>"])
    model.generation_config.eos_token_id = end_tokens
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def make_adapter(model, folder, base, scale):
    """Save a LoRA adapter whose lora_B is noise of size `scale`; return the model without it."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=scale)
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(folder)
    return adapted.unload()


def make_problems(path, first, n):
    """Write n sums whose questions nobody else has."""
    rows = []
    for i in range(first, first + n):
        rows.append({"prompt": f"What is {i} + {i % 7}?", "solution": str(i + i % 7)})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with model/, problems.jsonl, others.jsonl and outputs/ as train.py leaves it."""
    import data

    folder = tmp_path_factory.mktemp("evaluate")
    outputs = folder / "outputs"
    base = folder / "model"
    model = make_model(base)
    model = make_adapter(model, outputs / "checkpoint-2", base, 0.05)
    model = make_adapter(model, outputs / "checkpoint-10", base, 0.2)
    make_adapter(model, outputs / "grpo_lora", base, 0.5)
    make_problems(folder / "problems.jsonl", 10, 40)
    make_problems(folder / "others.jsonl", 60, 12)
    used = {
        "engine": "trl",
        "model": str(base),
        "revision": None,
        "dataset": str(folder / "problems.jsonl"),
        "dataset_config": "en",
        "dataset_split": "train",
        "dataset_revision": None,
        "system_prompt": "zh",
        "target_lang": "id",
        "reasoning_tokens": ["<think>", "</think>"],
        "max_prompt_quantile": 0.9,
        "eval_fraction": 0.4,
        "seed": 3407,
        "load_in_4bit": True,
        "max_seq_length": 128,
        "report_to": "none",
        "swanlab_mode": "local",
        "swanlab_id": "0",
    }
    tokenizer = data.load_tokenizer(str(base))
    trained_on, held_out, _ = data.load_math_dataset(argparse.Namespace(**used), tokenizer)
    run = {
        "state": "finished",
        "arguments": used,
        "held_out": evaluate.get_questions(held_out),
        "trained_on": [evaluate.hash_question(text) for text in evaluate.get_questions(trained_on)],
        "commit": "0123abc",
        "last_step": {"step": 20, "reward": 1.0},
    }
    (outputs / "run.json").write_text(json.dumps(run))
    return folder


def run_evaluate(world, *flags, output_dir=None):
    """Run evaluate.py on a world with short texts, from its folder, and return the process."""
    output_dir = output_dir or world / "outputs"
    short = ["--output-dir", output_dir, "--max-tokens", MAX_TOKENS]
    return run_script("evaluate.py", *short, *flags)


def read_results(folder):
    results = json.loads((folder / "results.json").read_text())
    lines = (folder / "samples.jsonl").read_text().splitlines()
    return results, [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def evaluated(world):
    """The folder and the printed text of one evaluation of 12 held-out prompts."""
    flags = ["--split", "held-out", "--num-samples", 12, "--report-to", "swanlab"]
    done = run_evaluate(world, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    return world / "outputs" / "eval", done.stdout


# --------------------------------------------------------------------------------------------------
# Statistics


@pytest.mark.parametrize(
    "k, n, interval",
    [  # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson(k, n, interval):
    assert evaluate.wilson(k, n) == pytest.approx(interval, abs=5e-5)


@pytest.mark.parametrize(
    "only_first, only_second, p",
    [
        (1, 7, 0.0703),  # Fagerland, Lydersen, Laake (2014), airway hyper-responsiveness
        (7, 1, 0.0703),
        (0, 0, 1.0),
        (0, 6, 0.03125),  # 2 / 2**6
    ],
)
def test_mcnemar(only_first, only_second, p):
    assert evaluate.mcnemar(only_first, only_second) == pytest.approx(p, abs=5e-5)


@pytest.mark.parametrize(
    "counts, difference, interval",
    [
        # Newcombe, Statistics in Medicine 17 (1998) 2635-2650, method 10
        ((36, 12, 2, 0), 0.2, (0.0569, 0.3404)),
        # Fagerland et al. (2014), Newcombe's square-and-add interval
        ((1, 1, 7, 12), -0.286, (-0.507, -0.026)),
        # Altman et al., Statistics with Confidence (2000), chapter 6
        ((14, 5, 0, 22), 0.122, (0.011, 0.226)),
    ],
)
def test_paired_difference(counts, difference, interval):
    found, ends = evaluate.paired_difference(*counts)
    assert found == pytest.approx(difference, abs=5e-4)
    assert ends == pytest.approx(interval, abs=5e-4)


@pytest.mark.parametrize("counts", [(5, 0, 0, 0), (0, 0, 0, 5), (0, 5, 0, 0), (3, 0, 0, 2)])
def test_paired_difference_at_the_edges(counts):
    difference, (low, high) = evaluate.paired_difference(*counts)
    assert -1 <= low <= difference <= high <= 1


@pytest.mark.parametrize("only_first, only_second", [(0.35, 0.15), (0.075, 0.035), (0.0, 0.2)])
def test_samples_needed_show_the_difference_in_about_80_of_100_cases(only_first, only_second):
    difference = only_first - only_second
    n = evaluate.samples_needed(only_first + only_second, difference)
    assert n == evaluate.samples_needed(only_first + only_second, -difference)
    rng = np.random.default_rng(7)
    rates = [only_first, only_second, 1 - only_first - only_second]
    draws = rng.multinomial(n, rates, size=1000)
    shown = sum(evaluate.mcnemar(int(first), int(second)) < 0.05 for first, second, _ in draws)
    assert 650 <= shown <= 860  # exact p: a little less than the formula's


def make_verdicts(both, only_first, only_second, neither):
    """Return two arms' verdicts with these counts of pairs."""
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return first, second


@pytest.mark.parametrize(
    "counts, up, sentence",
    [
        (
            (50, 70, 8, 72),
            "improved",
            "improved by 31 points (95 % CI 23 to 38, n = 200, p < 0.001)",
        ),
        ((50, 70, 8, 72), "rose", "rose by 31 points (95 % CI 23 to 38, n = 200, p < 0.001)"),
        ((0, 0, 6, 0), "rose", "fell by 100 points (95 % CI -100 to -45, n = 6, p = 0.031)"),
        (  # the tutorial's 12 against 8
            (5, 7, 3, 5),
            "improved",
            "no difference shown at n = 20 (p = 0.34); about 96 samples are needed for 20 points",
        ),
        ((0, 0, 6, 244), "rose", "fell by 2 points (95 % CI -5 to 0, n = 250, p = 0.031)"),
        ((5, 5, 5, 5), "improved", "no difference shown at n = 20 (p = 1.00)"),
    ],
)
def test_verdict(counts, up, sentence):
    lora, base = make_verdicts(*counts)
    n = len(lora)
    comparison = evaluate.compare(lora, base)
    assert evaluate.verdict(comparison, n, up) == sentence


@pytest.mark.parametrize(
    "language, accuracy, sentence",
    [
        (
            (50, 70, 8, 72),
            (60, 10, 42, 88),
            "answers in Malay 31 points more often (p < 0.001); "
            "right 16 points less often (p < 0.001)",
        ),
        (
            (5, 7, 3, 5),
            (5, 5, 5, 5),
            "answers in Malay 20 points more often (p = 0.34, which may be chance); "
            "right as often as before (p = 1.00)",
        ),
    ],
)
def test_cost_in_a_sentence(language, accuracy, sentence):
    comparisons = {
        "indonesian_rate": evaluate.compare(*make_verdicts(*language)),
        "accuracy": evaluate.compare(*make_verdicts(*accuracy)),
    }
    assert evaluate.cost_sentence(comparisons, "Malay") == sentence


@pytest.mark.parametrize(
    "p, text",
    [
        (0.0009, "p < 0.001"),
        (0.001, "p = 0.001"),
        (0.049, "p = 0.049"),
        (0.05, "p = 0.05"),
        (0.5, "p = 0.50"),
    ],
)
def test_p_text(p, text):
    assert evaluate.p_text(p) == text


# --------------------------------------------------------------------------------------------------
# Grading


@pytest.fixture
def graded():
    """Settings as for the tutorial's model."""
    rewards.configure(["<think>", "</think>"], "id")


@pytest.mark.parametrize(
    "text, truncated, accuracy, closed",
    [
        ("<think>satu dua</think>Jawabannya \\boxed{34}.", False, True, True),
        ("<think>satu dua</think>34", False, True, True),
        ("<think>satu dua</think>Jawaban: 34 apel, bukan 35", False, True, True),
        ("<think>satu dua</think>35", False, False, True),
        ("<think>34</think>35", False, False, True),
        ("<think>34</think>", False, False, False),
        ("<think></think>34", False, True, False),
        ("Satu dua, jadi \\boxed{34}", False, True, False),
        ("The final answer is 34, as 30 + 4 = 34", False, True, False),
        ("34", False, True, False),
        ("First 34, then 35", False, False, False),
        ("no number", False, False, False),
        ("<think>34 plus something", True, False, False),
        ("<think>it is \\boxed{34}, let me see", True, True, False),
        ("<think>a</think>12<think>b</think>34", False, True, False),
        ("satu dua</think>34", False, True, False),
    ],
)
def test_accuracy_does_not_depend_on_tags(graded, text, truncated, accuracy, closed):
    cell = evaluate.grade(text, truncated, "34", "What is 30 + 4?")
    assert cell["accuracy"] is accuracy
    assert cell["closed_thought_rate"] is closed
    assert cell["truncation_rate"] is truncated


def test_a_prefilled_thought_is_closed():
    rewards.configure(["<think>", "</think>"], "id", prefilled=True)
    cell = evaluate.grade("satu dua</think>34", False, "34", "")
    rewards.configure(["<think>", "</think>"], "id")
    assert cell["closed_thought_rate"] and cell["accuracy"]


@pytest.mark.parametrize(
    "thought, answer, lang, in_target, both",
    [
        (INDONESIAN, "3", "id", True, True),
        (INDONESIAN, "4", "id", True, False),
        (ENGLISH, "3", "en", False, False),
    ],
)
def test_language_of_a_text(graded, thought, answer, lang, in_target, both):
    cell = evaluate.grade(f"<think>{thought}</think>{answer}", False, "3", "")
    assert cell["lang"] == lang
    assert cell["indonesian_rate"] is in_target
    assert cell["indonesian_and_correct"] is both
    assert cell["language_share"] > 0.9 if in_target else cell["language_share"] == 0


def make_cell(thought, answer, truncated=False, tokens=10):
    text = f"<think>{thought}" if truncated else f"<think>{thought}</think>{answer}"
    return {"text": text, "tokens": tokens, "truncated": truncated}


def make_samples():
    """Six samples of three arms, whose numbers can be counted by hand."""
    base = [
        make_cell(INDONESIAN, "3"),
        make_cell(INDONESIAN, "4"),
        make_cell(ENGLISH, "3"),
        make_cell(ENGLISH, "3"),
        make_cell(ENGLISH, "3"),
        make_cell(ENGLISH, "", truncated=True, tokens=16),
    ]
    middle = [make_cell(ENGLISH, "4") for _ in base]
    lora = [make_cell(INDONESIAN, "3"), *(make_cell(INDONESIAN, "4") for _ in base[1:])]
    samples = []
    for i in range(6):
        row = {"prompt": f"What is 1 + 2, the {i}th time?", "answer": "3"}
        row |= {"base": base[i], "checkpoint-5": middle[i], "grpo_lora": lora[i]}
        samples.append(row)
    return samples


def test_summary_counted_by_hand(graded):
    results = evaluate.summarize(make_samples())
    assert results["n"] == 6 and results["arms"] == ["base", "checkpoint-5", "grpo_lora"]
    rates = {arm: [results[arm][rate] for rate in evaluate.RATES] for arm in results["arms"]}
    assert rates["base"] == pytest.approx([1 / 6, 2 / 6, 4 / 6, 5 / 6, 1 / 6])
    assert rates["checkpoint-5"] == [0, 0, 0, 1, 0]
    assert rates["grpo_lora"] == pytest.approx([1 / 6, 1, 1 / 6, 1, 0])
    assert results["base"]["accuracy_ci95"] == evaluate.wilson(4, 6)
    assert results["base"]["mean_tokens"] == 11
    assert results["base"]["language_share"] == pytest.approx(1 / 3, abs=0.03)
    assert results["golds_that_are_no_number"] == 0


def test_what_the_language_cost(graded):
    results = evaluate.summarize(make_samples())
    base, lora = results["base"]["by_language"], results["grpo_lora"]["by_language"]
    assert base["target"]["right"] == 1 and base["target"]["wrong"] == 1
    assert base["other"]["right"] == 3 and base["other"]["wrong"] == 1
    assert base["other"]["accuracy"] == 0.75
    assert base["other"]["accuracy_ci95"] == evaluate.wilson(3, 4)
    assert lora["target"]["right"] == 1 and lora["target"]["wrong"] == 5
    nobody = {"right": 0, "wrong": 0, "accuracy": None, "accuracy_ci95": None}
    assert lora["other"] == nobody


def test_the_last_arm_is_compared_with_the_base(graded):
    results = evaluate.summarize(make_samples())
    changes = results["comparisons"]
    assert changes["indonesian_rate"]["difference"] == pytest.approx(4 / 6)
    assert changes["accuracy"]["difference"] == pytest.approx(-3 / 6)
    assert changes["accuracy"]["mcnemar_p"] == evaluate.mcnemar(3, 0)
    assert changes["accuracy"]["discordant"] == 3 / 6


def test_golds_without_a_number_are_counted(graded):
    samples = make_samples()
    samples[0]["answer"] = "x + 1"
    results = evaluate.summarize(samples)
    assert results["golds_that_are_no_number"] == 1
    assert results["base"]["accuracy"] == 0.5


# --------------------------------------------------------------------------------------------------
# Report


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A folder with the report on make_samples(), and what was printed."""
    rewards.configure(["<think>", "</think>"], "id")
    folder = tmp_path_factory.mktemp("reported")
    samples = make_samples()
    results = evaluate.summarize(samples) | {"steps": {"checkpoint-5": 5, "grpo_lora": 9}}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluate.print_tutorial_result(results)
        evaluate.report(samples, results, str(folder / "samples.jsonl"))
    return folder, printed.getvalue()


def test_report_names_its_files(reported):
    folder, _ = reported
    results, samples = read_results(folder)
    assert sorted(results["files"].values()) == sorted(path.name for path in folder.iterdir())
    assert results["files"]["texts"] == "samples.jsonl" and samples[0]["base"]["accuracy"] is True
    for name in ("eval.png", "curve.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert (folder / name).stat().st_size > 10000


def test_pictures_show_the_numbers(graded, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **options: drawn.append(figure))
    results = evaluate.summarize(make_samples()) | {"steps": {"checkpoint-5": 5, "grpo_lora": 9}}
    evaluate.draw_curve(results, str(tmp_path / "curve.png"))
    lines = drawn[0].axes[0].lines
    assert all(list(line.get_xdata()) == [0, 5, 9] for line in lines)
    assert lines[0].get_label() == "indonesian_rate"
    assert list(lines[0].get_ydata()) == pytest.approx([100 / 3, 0, 100])
    evaluate.draw_rates(results, str(tmp_path / "rates.png"))
    bars, cost = drawn[1].axes
    heights = [bar.get_height() for bar in bars.patches]
    assert heights == pytest.approx(
        [100 * results[arm][rate] for arm in ("base", "grpo_lora") for rate in evaluate.RATES]
    )
    tops = [bar.get_y() + bar.get_height() for bar in cost.patches]
    assert tops[:2] == pytest.approx([100 / 6, 100 / 6])  # right and in the language
    assert tops[-2:] == pytest.approx([100, 100])


@pytest.mark.parametrize(
    "line",
    [
        "在6个样本上比较使用和不使用LoRA的语言使用情况:",
        "使用LoRA - 印尼语响应: 6/6 (100.0%)",
        "不使用LoRA - 印尼语响应: 2/6 (33.3%)",
        "改进: 使用LoRA增加了4个印尼语响应",
        "accuracy                base          66.7 %  (95 % CI 30.0 to 90.3)",
        "accuracy                grpo_lora     16.7 %  (95 % CI 3.0 to 56.4)",
        "                        no difference shown at n = 6 (p = 0.25); "
        "about 14 samples are needed for 50 points",
        "mean_tokens             base         11.0    language_share 0.33",
        "base         Bahasa Indonesia         1      1   50.0 % right (95 % CI 9.5 to 90.5)",
        "base         another language         3      1   75.0 % right (95 % CI 30.1 to 95.4)",
        "grpo_lora    another language         0      0",
        "verdict: grpo_lora answers in Bahasa Indonesia 67 points more often "
        "(p = 0.12, which may be chance); "
        "right 50 points less often (p = 0.25, which may be chance)",
    ],
)
def test_printed_lines(reported, line):
    assert line in reported[1].splitlines()


def test_headline_first(reported):
    lines = reported[1].splitlines()
    rates = [line.split()[0] for line in lines if " base " in line and "95 % CI" in line]
    assert rates[:5] == list(evaluate.RATES)
    assert rates[0] == "indonesian_and_correct"


def test_pairs_page(reported):
    page = (reported[0] / "samples.md").read_text()
    kinds = [line.split()[2] for line in page.splitlines() if line.startswith("## ")]
    assert kinds == ["tie"] * 6
    assert "**base**: en, right, 10 tokens" in page
    assert "**base**: en, wrong, 16 tokens, cut off" in page
    assert "**grpo_lora**: id, wrong, 10 tokens" in page
    assert "checkpoint-5" not in page


def make_pair_rows(wins, losses, ties):
    rows = []
    for kind, before, after, n in (
        ("win", False, True, wins),
        ("loss", True, False, losses),
        ("tie", True, True, ties),
    ):
        for i in range(n):
            row = {"prompt": f"{kind} {i}", "base": {}, "lora": {}}
            row["base"]["indonesian_and_correct"] = before
            row["lora"]["indonesian_and_correct"] = after
            rows.append(row)
    return rows


@pytest.mark.parametrize(
    "wins, losses, ties, shown",
    [
        (20, 20, 20, [4, 3, 3]),
        (20, 1, 20, [5, 1, 4]),
        (0, 0, 20, [0, 0, 10]),
        (2, 1, 1, [2, 1, 1]),
    ],
)
def test_ten_pairs_of_all_kinds(wins, losses, ties, shown):
    rows = make_pair_rows(wins, losses, ties)
    chosen = evaluate.choose_pairs(rows, "lora")
    assert all(row["prompt"].startswith(kind) for kind, row in chosen)
    kinds = [kind for kind, _ in chosen]
    assert [kinds.count(kind) for kind in ("win", "loss", "tie")] == shown
    assert chosen == evaluate.choose_pairs(rows, "lora")
    names = [row["prompt"] for _, row in chosen]
    assert len(set(names)) == len(names)


def test_pairs_are_not_simply_the_first():
    chosen = evaluate.choose_pairs(make_pair_rows(50, 50, 50), "lora")
    assert max(int(row["prompt"].split()[1]) for _, row in chosen) > 10


def test_fence_shows_any_text_literally():
    text = "<think>a\n\n~~~~\n" + "word " * 40
    lines = evaluate.fence(text).splitlines()
    assert lines[0] == lines[-1] == "~~~~~"
    assert lines[1:4] == ["<think>a", "", "~~~~"] and max(map(len, lines)) <= 100
    assert " ".join(lines[4:-1]).split() == ["word"] * 40


def test_a_full_disk_leaves_the_old_report(reported, graded, monkeypatch):
    folder, _ = reported
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def no_space(results, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluate, "draw_curve", no_space)
    samples = make_samples()[:5]
    results = evaluate.summarize(samples) | {"steps": {"checkpoint-5": 5, "grpo_lora": 9}}
    with pytest.raises(OSError):
        evaluate.report(samples, results, str(folder / "samples.jsonl"))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_pair_is_printed(graded, capsys):
    samples = make_samples()
    samples[2]["grpo_lora"] = make_cell(INDONESIAN * 20, "3")  # the only win, and long
    evaluate.summarize(samples)
    evaluate.print_pair(samples, "grpo_lora")
    out = capsys.readouterr().out
    assert "(a win): What is 1 + 2, the 2th time?\nright answer: 3\nbase: <think>" in out
    lora = next(line for line in out.splitlines() if line.startswith("grpo_lora: "))
    assert len(lora) == len("grpo_lora: ") + 400 + len(" ...") and lora.endswith(" ...")


def test_warnings(graded, capsys):
    samples = make_samples()
    for row in samples:
        row["grpo_lora"] = dict(row["base"])
    samples[0]["answer"] = "x"
    evaluate.print_warnings(samples, evaluate.summarize(samples))
    out = capsys.readouterr().out
    assert "warning: every text is the same with and without LoRA" in out
    assert "warning: 1 of 6 answers are no numbers" in out
    evaluate.print_warnings(make_samples(), evaluate.summarize(make_samples()))
    assert capsys.readouterr().out == ""


# --------------------------------------------------------------------------------------------------
# Generation


@pytest.mark.parametrize(
    "named, ends",
    [
        ([257, 258], [257, 258]),
        (258, [257, 258]),
        (None, [257]),
        ("no file", [257]),
    ],
)
def test_end_tokens_of_model_and_tokenizer(world, tmp_path, named, ends):
    import data

    shutil.copytree(world / "model", tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    if named == "no file":
        path.unlink()
    else:
        path.write_text(json.dumps({"eos_token_id": named}))
    args = argparse.Namespace(model=str(tmp_path / "model"), revision=None)
    assert evaluate.get_end_tokens(args, data.load_tokenizer(args.model)) == ends


@pytest.mark.parametrize(
    "ids, tokens, truncated",
    [
        ([65, 66, 257, 257, 257], 3, False),
        ([65, 258, 66, 257], 2, False),
        ([257, 65], 1, False),
        ([65, 66, 67], 3, True),
        ([65, 66, 258], 3, False),
    ],
)
def test_a_text_ends_at_the_first_end_token(world, ids, tokens, truncated):
    import data

    tokenizer = data.load_tokenizer(str(world / "model"))
    completion = evaluate.make_completion(tokenizer, ids, [257, 258])
    assert completion["tokens"] == tokens and completion["truncated"] is truncated
    assert completion["text"] == tokenizer.decode(ids[:tokens]).split("<e")[0]


def make_arguments(world, **changes):
    values = {
        "model": str(world / "model"),
        "revision": None,
        "load_in_4bit": False,
        "max_tokens": MAX_TOKENS,
        "temperature": 0.0,
        "top_k": 50,
        "seed": 7,
        "gpu_memory_utilization": 0.5,
    }
    return argparse.Namespace(**(values | changes))


def test_generation_stops_at_both_end_tokens(world, tmp_path, monkeypatch):
    """A token that the greedy text has becomes the model's second end token."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3ForCausalLM

    import data

    widths = []
    generate = Qwen3ForCausalLM.generate

    def measured(self, *arguments, **options):
        rows = generate(self, *arguments, **options)
        widths.append(rows.shape[1])
        return rows

    monkeypatch.setattr(Qwen3ForCausalLM, "generate", measured)
    tokenizer = data.load_tokenizer(str(world / "model"))
    request = evaluate.make_request("base", "What is 1 + 2?", 7)
    args = make_arguments(world)
    (free,), _ = evaluate.generate_transformers(args, tokenizer, {}, [request])
    model = AutoModelForCausalLM.from_pretrained(world / "model", dtype=torch.float32)
    prompt = torch.tensor([tokenizer(request["prompt"])["input_ids"]])
    ids = model.generate(prompt, do_sample=False, max_new_tokens=MAX_TOKENS)[0].tolist()
    ids = ids[prompt.shape[1] :]
    assert tokenizer.decode(ids, skip_special_tokens=True) == free["text"]
    second = ids[5]
    shutil.copytree(world / "model", tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [257, second]}))
    args = make_arguments(world, model=str(tmp_path / "model"))
    (cut,), _ = evaluate.generate_transformers(args, tokenizer, {}, [request])
    assert cut["tokens"] == ids.index(second) + 1 and cut["truncated"] is False
    assert free["text"].startswith(cut["text"]) and free["tokens"] > cut["tokens"]
    assert widths[-1] == prompt.shape[1] + cut["tokens"]  # it stopped, and was not cut afterwards


def test_each_arm_has_its_adapter(world):
    import data

    tokenizer = data.load_tokenizer(str(world / "model"))
    args = make_arguments(world)
    adapters = {name: str(world / "outputs" / name) for name in ("checkpoint-2", "grpo_lora")}
    texts = {}
    for arm, given in (
        ("base", {}),
        ("checkpoint-2", {"checkpoint-2": adapters["checkpoint-2"]}),
        ("grpo_lora", {"grpo_lora": adapters["grpo_lora"]}),
    ):
        requests = [evaluate.make_request(arm, f"What is {i} + 2?", i) for i in range(4)]
        completions, _ = evaluate.generate_transformers(args, tokenizer, given, requests)
        texts[arm] = [completion["text"] for completion in completions]
    assert texts["base"] != texts["checkpoint-2"] != texts["grpo_lora"] != texts["base"]
    arms = ["grpo_lora", "base", "checkpoint-2", "base", "grpo_lora"]
    requests = []
    for arm in arms:
        requests += [evaluate.make_request(arm, f"What is {i} + 2?", i) for i in range(4)]
    completions, _ = evaluate.generate_transformers(args, tokenizer, adapters, requests)
    together = [completion["text"] for completion in completions]
    assert together == [text for arm in arms for text in texts[arm]]


def test_a_short_prompt_beside_a_long_one_is_answered_as_alone(world):
    import data

    tokenizer = data.load_tokenizer(str(world / "model"))
    args = make_arguments(world)
    requests = [evaluate.make_request("base", "a" * length, 1) for length in (3, 9, 30)]
    together, _ = evaluate.generate_transformers(args, tokenizer, {}, requests)
    for request, completion in zip(requests, together):
        alone, _ = evaluate.generate_transformers(args, tokenizer, {}, [request])
        assert alone == [completion]


@pytest.mark.parametrize("top_k, n", [(1, 1), (-1, 8), (0, 8)])
def test_top_k(world, top_k, n):
    import data

    tokenizer = data.load_tokenizer(str(world / "model"))
    args = make_arguments(world, temperature=1.0, top_k=top_k)
    requests = [evaluate.make_request("base", "What is 1 + 2?", 1) for _ in range(8)]
    completions, _ = evaluate.generate_transformers(args, tokenizer, {}, requests)
    assert len({completion["text"] for completion in completions}) == n


def test_batches_have_their_own_seeds(world):
    import data

    tokenizer = data.load_tokenizer(str(world / "model"))
    requests = [evaluate.make_request("base", "What is 1 + 2?", i) for i in range(128)]
    args = make_arguments(world, temperature=1.0)
    first, _ = evaluate.generate_transformers(args, tokenizer, {}, requests)
    again, _ = evaluate.generate_transformers(args, tokenizer, {}, requests)
    assert first == again
    assert first[:64] != first[64:]


def test_limit_and_truncation_agree(world):
    import data

    tokenizer = data.load_tokenizer(str(world / "model"))
    requests = [evaluate.make_request("base", f"What is {i} + 2?", i) for i in range(70)]
    args = make_arguments(world, temperature=1.0)
    completions, _ = evaluate.generate_transformers(args, tokenizer, {}, requests)
    assert len(completions) == 70
    for completion in completions:
        assert completion["tokens"] <= MAX_TOKENS
        if completion["tokens"] < MAX_TOKENS:
            assert not completion["truncated"]
    assert {completion["truncated"] for completion in completions} == {True, False}


def test_batches_hold_one_arm():
    arms = ["base"] * 5 + ["lora"] * 2 + ["base"]
    requests = [evaluate.make_request(arm, "", i) for i, arm in enumerate(arms)]
    batches = evaluate.make_batches(requests, size=3)
    seeds = [[request["seed"] for request in batch] for batch in batches]
    assert seeds == [[0, 1, 2], [3, 4], [5, 6], [7]]


def test_vllm_gets_each_request_with_its_adapter_and_seed(world, monkeypatch):
    import data

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # generate_vllm sets it
    calls = {}

    class LLM:
        """Answers every prompt with its own ids, as far as the limit goes, and an end token."""

        def __init__(self, **options):
            calls.update(options)

        def generate(self, prompts, sampling_params, lora_request):
            calls["lora"] = lora_request
            calls["sampling"] = sampling_params
            outputs = []
            for prompt, sampling in zip(prompts, sampling_params):
                ids = [*prompt["prompt_token_ids"], sampling.stop_token_ids[-1]]
                row = SimpleNamespace(token_ids=ids[: sampling.max_tokens], finish_reason="")
                outputs.append(SimpleNamespace(outputs=[row]))
            return outputs

    def sampling_params(**options):
        return SimpleNamespace(**options)

    stand_in = SimpleNamespace(LLM=LLM, SamplingParams=sampling_params)
    lora = SimpleNamespace(LoRARequest=lambda name, number, path: (name, number, path))
    monkeypatch.setitem(sys.modules, "vllm", stand_in)
    monkeypatch.setitem(sys.modules, "vllm.lora", SimpleNamespace(request=lora))
    monkeypatch.setitem(sys.modules, "vllm.lora.request", lora)
    tokenizer = data.load_tokenizer(str(world / "model"))
    outputs = world / "outputs"
    adapters = {"checkpoint-2": str(outputs / "checkpoint-2"), "last": str(outputs / "grpo_lora")}
    long_text = "b" * (MAX_TOKENS + 1)
    requests = [
        evaluate.make_request("base", "a", 3),
        evaluate.make_request("last", long_text, 4),
        evaluate.make_request("checkpoint-2", "c", 5),
    ]
    args = make_arguments(world, max_tokens=MAX_TOKENS, load_in_4bit=True)
    completions, _ = evaluate.generate_vllm(args, tokenizer, adapters, requests)
    assert [request and request[0] for request in calls["lora"]] == [None, "last", "checkpoint-2"]
    assert calls["lora"][1][2] == str(outputs / "grpo_lora")
    assert calls["lora"][1][1] != calls["lora"][2][1] and calls["lora"][2][1] >= 1
    assert [sampling.seed for sampling in calls["sampling"]] == [3, 4, 5]
    assert calls["sampling"][0].stop_token_ids == [257, 258]
    assert calls["sampling"][0].temperature == 0 and calls["sampling"][0].top_k == 50
    assert calls["quantization"] == "bitsandbytes"
    assert calls["compilation_config"]["mode"] == 0  # no torch.compile: it is not earned back
    assert calls["compilation_config"]["cudagraph_mode"] == "FULL_DECODE_ONLY"
    assert calls["compilation_config"]["max_cudagraph_capture_size"] == calls["max_num_seqs"]
    assert calls["enable_lora"] is True and calls["max_loras"] == 2 and calls["max_lora_rank"] == 8
    assert calls["max_num_seqs"] == 8 and calls["gpu_memory_utilization"] == 0.5
    assert calls["max_model_len"] >= len(long_text) + MAX_TOKENS
    assert [completion["text"] for completion in completions] == ["a", "b" * MAX_TOKENS, "c"]
    assert [completion["truncated"] for completion in completions] == [False, True, False]
    assert [completion["tokens"] for completion in completions] == [2, MAX_TOKENS, 2]


@pytest.mark.parametrize("ranks, size", [([], 8), ([8], 8), ([9], 16), ([4, 64, 32], 64)])
def test_lora_rank_for_vllm(tmp_path, ranks, size):
    adapters = {}
    for rank in ranks:
        folder = tmp_path / str(rank)
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
        adapters[str(rank)] = str(folder)
    assert evaluate.get_lora_rank(adapters) == size


def test_without_a_gpu_the_results_say_what_ran():
    args = argparse.Namespace(fast_inference=True, load_in_4bit=True)
    assert evaluate.choose_generator(args) is evaluate.generate_transformers
    assert args.fast_inference is False and args.load_in_4bit is False


# --------------------------------------------------------------------------------------------------
# evaluate.py as a user runs it


def read_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_results_and_samples(world, evaluated):
    results, samples = read_results(evaluated[0])
    run = json.loads((world / "outputs" / "run.json").read_text())
    assert results["n"] == len(samples) == 12
    assert {row["prompt"] for row in samples} <= set(run["held_out"])
    assert results["arms"] == ["base", "lora"] and results["split"] == "held-out"
    for arm in results["arms"]:
        for rate in evaluate.RATES:
            assert results[arm][rate] == sum(row[arm][rate] for row in samples) / 12
            low, high = results[arm][f"{rate}_ci95"]
            assert low <= results[arm][rate] <= high
    keys = {"comparisons", "adapters", "arguments", "versions", "seconds", "reasoning_tokens"}
    assert keys <= set(results) and results["commit"] == "0123abc"
    assert results["arguments"]["load_in_4bit"] is False
    assert results["seconds"]["load"] > 0 <= results["seconds"]["generate"]
    assert results["adapters"] == {"lora": str(world / "outputs" / "grpo_lora")}
    assert results["arguments"]["adapter"] is None  # export.py: the folder's own
    assert any(row["base"]["text"] != row["lora"]["text"] for row in samples)
    names = ["eval.png", "results.json", "samples.jsonl", "samples.md"]
    assert sorted(read_files(evaluated[0])) == names
    assert list(world.glob("outputs/swanlog/run-*/media/image/*.png"))


def test_the_four_single_prompts(evaluated):
    results, _ = read_results(evaluated[0])
    singles = results["single_prompts"]
    kinds = [(single["arm"], single["title"]) for single in singles]
    assert kinds == [
        ("base", "no template"),
        ("lora", "no system prompt"),
        ("lora", "system prompt"),
        ("base", "system prompt"),
    ]
    assert singles[0]["prompt"] == "What is the sqrt of 101?"
    assert singles[1]["prompt"] == "<bos>[user]Solve (x + 2)^2 = 0[assistant]"
    assert singles[2]["prompt"].startswith("<bos>[system]你接到一个问题。")
    assert singles[3]["prompt"] == singles[2]["prompt"]
    out = evaluated[1]
    places = [out.index(f"\n{arm}, {title}: ") for arm, title in kinds]
    assert places == sorted(places) and places[-1] < out.index("在12个样本上比较")


@pytest.fixture
def recorded(world, tmp_path, monkeypatch):
    """A way to run main() with an engine that only counts: it returns requests and results."""
    shutil.copytree(world / "outputs", tmp_path / "outputs")

    def run(*flags):
        requests = []

        def generator(args, tokenizer, adapters, given):
            requests.extend(given)
            texts = [f"{INDONESIAN}</think>{i}" for i in range(len(given))]
            return [{"text": text, "tokens": 3, "truncated": False} for text in texts], 0.0

        monkeypatch.setattr(evaluate, "choose_generator", lambda args: generator)
        evaluate.main(parse(monkeypatch, "--output-dir", tmp_path / "outputs", *flags))
        return requests, *read_results(tmp_path / "outputs" / "eval")

    return run


def test_who_is_asked_what(recorded):
    requests, results, samples = recorded("--split", "held-out", "--num-samples", 3, "--seed", 9)
    arms = [request["arm"] for request in requests]
    assert arms == ["base"] * 3 + ["lora"] * 3 + ["base", "lora", "lora", "base"]
    seeds = [request["seed"] for request in requests]
    assert seeds == [9, 10, 11] * 2 + [9] * 4
    for i in range(3):
        assert requests[i]["prompt"] == requests[3 + i]["prompt"]
        assert requests[i]["prompt"].startswith("<bos>[system]你接到一个问题。")
        assert f"[user]{samples[i]['prompt']}[assistant]" in requests[i]["prompt"]
        assert samples[i]["base"]["text"].endswith(f"</think>{i}")
        assert samples[i]["lora"]["text"].endswith(f"</think>{3 + i}")
    ends = [single["text"].split(">")[-1] for single in results["single_prompts"]]
    assert ends == ["6", "7", "8", "9"]
    assert results["think_is_prefilled"] is False and results["base"]["closed_thought_rate"] == 0


def test_another_data_set_is_held_out_as_a_whole(recorded, world):
    flags = ["--dataset", world / "others.jsonl", "--num-samples", 12]
    _, results, samples = recorded(*flags)
    others = [json.loads(line) for line in (world / "others.jsonl").read_text().splitlines()]
    assert sorted(row["prompt"] for row in samples) == sorted(row["prompt"] for row in others)
    assert results["split"] == "held-out"


def test_what_was_trained_on_is_not_held_out_under_another_name(recorded, world, tmp_path, capsys):
    """The run on another machine, its data in another folder, with a problem of other data."""
    run = json.loads((world / "outputs" / "run.json").read_text())
    text = (world / "problems.jsonl").read_text()
    other = (world / "others.jsonl").read_text().splitlines()[0]
    (tmp_path / "copy.jsonl").write_text(f"{other}\n{text}")
    flags = ["--dataset", tmp_path / "copy.jsonl", "--num-samples", 100]
    _, results, samples = recorded(*flags)
    prompts = {row["prompt"] for row in samples}
    assert results["split"] == "held-out" and json.loads(other)["prompt"] in prompts
    assert set(run["held_out"]) <= prompts and len(prompts) < 30
    hashes = [evaluate.hash_question(prompt) for prompt in prompts]
    assert not set(hashes) & set(run["trained_on"])
    note = f"note: {len(run['trained_on'])} of these prompts were trained on: left out\n"
    assert note in capsys.readouterr().out


def test_a_copy_of_what_was_all_trained_on_is_no_other_data_set(recorded, world, tmp_path):
    path = tmp_path / "outputs" / "run.json"
    run = json.loads(path.read_text())
    run["arguments"]["eval_fraction"] = 0.0  # as the tutorial: nothing is held out
    hashes = [evaluate.hash_question(question) for question in run["held_out"]]
    run |= {"held_out": None, "trained_on": run["trained_on"] + hashes}
    path.write_text(json.dumps(run))
    shutil.copy(world / "problems.jsonl", tmp_path / "copy.jsonl")
    _, results, _ = recorded("--dataset", tmp_path / "copy.jsonl")
    assert results["split"] == "train"


def test_all_prompts_are_taken_where_there_are_fewer(recorded, world, capsys):
    _, results, samples = recorded("--dataset", world / "others.jsonl", "--num-samples", 100)
    assert results["n"] == len(samples) == 12
    assert "note: there are 12 held-out prompts, all are taken\n" in capsys.readouterr().out


def test_another_seed_samples_from_the_same_split(recorded, world):
    held_out = set(json.loads((world / "outputs" / "run.json").read_text())["held_out"])
    flags = ["--num-samples", 10, "--seed", 5]
    _, results, samples = recorded(*flags, "--split", "held-out")
    first = [row["prompt"] for row in samples]
    assert set(first) <= held_out
    _, results, samples = recorded(*flags)
    assert results["split"] == "train" and not {row["prompt"] for row in samples} & held_out
    _, _, samples = recorded("--num-samples", 10, "--split", "held-out")
    assert first != [row["prompt"] for row in samples]


def test_prompts_trained_on_are_named_where_others_were_left_out(recorded, world, tmp_path, capsys):
    note = "note: these prompts were trained on; others were left out: --split held-out\n"
    recorded("--num-samples", 2)
    assert capsys.readouterr().out.count(note) == 1
    recorded("--num-samples", 2, "--split", "held-out")
    recorded("--num-samples", 2, "--dataset", world / "others.jsonl")
    path = tmp_path / "outputs" / "run.json"
    run = json.loads(path.read_text())
    run["arguments"]["eval_fraction"] = 0
    path.write_text(json.dumps(run | {"held_out": None}))  # as train.py writes it without
    recorded("--num-samples", 2)
    assert "note: " not in capsys.readouterr().out


def test_the_cloud_needs_a_key_before_anything_is_loaded(world, tmp_path):
    flags = ["--report-to", "swanlab", "--swanlab-mode", "cloud"]
    done = run_script(
        *["evaluate.py", "--output-dir", world / "outputs", *flags, "--name", "eval-cloud"],
        HOME=str(tmp_path),
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and lines[-1].startswith("error: --swanlab-mode cloud: No API key")
    assert not (world / "outputs" / "eval-cloud").exists() and "Traceback" not in done.stderr


def test_prompts_that_were_not_held_out_are_refused(recorded, world, tmp_path, capsys):
    """The run held nothing out, or its data have changed since."""
    path = tmp_path / "outputs" / "run.json"
    run = json.loads(path.read_text())
    for held_out in (None, [*run["held_out"], "a problem that is gone"]):
        path.write_text(json.dumps(run | {"held_out": held_out}))
        with pytest.raises(SystemExit):
            recorded("--split", "held-out", "--num-samples", 2)
        assert "does not show that train.py left these prompts out" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_the_split_is_the_run_s_whatever_the_flags_and_the_tokenizer(recorded, monkeypatch, split):
    _, results, samples = recorded("--num-samples", 100, "--split", split)
    theirs = {row["prompt"] for row in samples}
    assert results["split"] == split and len(theirs) == results["n"] > 10
    encode = data.encode_prompt
    reverse = lambda tokenizer, prompt: [0] * (1000 - len(encode(tokenizer, prompt)))  # noqa: E731
    monkeypatch.setattr(data, "encode_prompt", reverse)
    for fraction in (0, 0.3):
        flags = ["--num-samples", 100, "--split", split, "--eval-fraction", fraction]
        _, results, samples = recorded(*flags)
        assert results["split"] == split and {row["prompt"] for row in samples} == theirs


def test_a_question_counts_once(recorded, world, tmp_path):
    text = (world / "others.jsonl").read_text()
    (tmp_path / "twice.jsonl").write_text(text + text)
    _, results, samples = recorded("--dataset", tmp_path / "twice.jsonl", "--num-samples", 100)
    assert results["n"] == len({row["prompt"] for row in samples}) == 12


def test_the_longest_of_other_data_are_not_left_out(recorded, world, tmp_path):
    rows = [json.loads(line) for line in (world / "others.jsonl").read_text().splitlines()]
    rows[0]["prompt"] += " Say why, at length." * 9
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _, results, samples = recorded("--dataset", tmp_path / "long.jsonl", "--num-samples", 100)
    assert rows[0]["prompt"] in {row["prompt"] for row in samples} and results["n"] == 12


def test_a_template_that_prefills_the_start_tag(recorded, monkeypatch):
    render = evaluate.render_prompt
    prefill = lambda tokenizer, messages: render(tokenizer, messages) + "<think>\n"  # noqa: E731
    monkeypatch.setattr(evaluate, "render_prompt", prefill)
    _, results, _ = recorded("--num-samples", 2)
    assert results["think_is_prefilled"] is True and results["base"]["closed_thought_rate"] == 1


def test_without_system_prompt_beside_the_first_evaluation(world, evaluated):
    before = read_files(evaluated[0])
    flags = ["--split", "held-out", "--num-samples", 12]
    done = run_evaluate(world, *flags, "--system-prompt", "none", "--name", "no-prompt")
    assert done.returncode == 0, done.stderr[-3000:]
    assert read_files(evaluated[0]) == before
    results, samples = read_results(world / "outputs" / "no-prompt")
    _, first = read_results(evaluated[0])
    assert [row["prompt"] for row in samples] == [row["prompt"] for row in first]
    assert any(row["base"]["text"] != old["base"]["text"] for row, old in zip(samples, first))
    assert all("[system]" not in single["prompt"] for single in results["single_prompts"])


def test_curve_of_checkpoints(world, evaluated):
    folders = [world / "outputs" / name for name in ("grpo_lora", "checkpoint-10", "checkpoint-2")]
    flags = ["--split", "held-out", "--num-samples", 12]
    done = run_evaluate(world, *flags, "--adapter", *folders)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = world / "outputs" / "eval-curve"
    results, samples = read_results(folder)
    _, single = read_results(evaluated[0])
    assert results["steps"] == {"checkpoint-2": 2, "checkpoint-10": 10, "grpo_lora": 20}
    assert results["arms"] == ["base", *results["steps"]]
    assert list(results["adapters"]) == ["checkpoint-2", "checkpoint-10", "grpo_lora"]
    # one engine with three adapters says what an engine with one says
    for row, old in zip(samples, single):
        assert row["base"] == old["base"]
        assert row["grpo_lora"] == old["lora"]
    texts = [[row[arm]["text"] for row in samples] for arm in results["arms"]]
    assert all(texts.count(column) == 1 for column in texts)
    assert results["files"]["curve"] == "curve.png"
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_checkpoint_on_another_data_set(world):
    flags = ["--adapter", world / "outputs" / "checkpoint-10", "--name", "other"]
    done = run_evaluate(
        world, *flags, "--dataset", world / "others.jsonl", "--num-samples", 12, "--seed", 5
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results, samples = read_results(world / "outputs" / "other")
    others = [json.loads(line) for line in (world / "others.jsonl").read_text().splitlines()]
    assert {row["prompt"] for row in samples} == {row["prompt"] for row in others}
    assert results["split"] == "held-out" and results["arms"] == ["base", "lora"]


def test_same_prompts_same_seeds_give_the_same_texts(world, tmp_path):
    """An adapter that changes nothing must answer like the base: the arms differ by it only."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(world / "outputs" / "grpo_lora", tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_model.safetensors"
    tensors = load_file(path)
    for key in tensors:
        if "lora_B" in key:
            tensors[key] = tensors[key] * 1e-20
    save_file(tensors, path)
    flags = ["--adapter", tmp_path / "lora", "--name", "nothing", "--num-samples", 8]
    done = run_evaluate(world, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    results, samples = read_results(world / "outputs" / "nothing")
    assert all(row["base"]["text"] == row["lora"]["text"] for row in samples)
    assert len({row["base"]["text"] for row in samples}) == 8
    assert "no difference shown at n = 8 (p = 1.00)" in done.stdout
    assert "warning: every text is the same" in done.stdout
    run = json.loads((world / "outputs" / "run.json").read_text())
    assert results["split"] == "train"
    assert not {row["prompt"] for row in samples} & set(run["held_out"])


def test_ask_something(world):
    questions = ["What is 17 * 23?", "Who are you?"]
    before = sorted(path.name for path in (world / "outputs").iterdir())
    flags = ["--prompt", questions[0], "--prompt", questions[1], "--dataset", "nowhere/nothing"]
    done = run_evaluate(world, *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    for question in questions:
        for arm in ("base", "lora"):
            assert f"{arm}, no system prompt: <bos>[user]{question}[assistant]\n" in done.stdout
            assert f"{arm}, system prompt: <bos>[system]" in done.stdout
    assert done.stdout.count("=" * 60) == 8
    assert sorted(path.name for path in (world / "outputs").iterdir()) == before


def test_a_cut_answer_says_so(capsys):
    request = evaluate.make_request("base", "p", 1, "no template") | {"text": "a", "tokens": 1}
    evaluate.print_answers([request | {"truncated": True}, request | {"truncated": False}])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "a (cut at --max-tokens)" and lines[5] == "a"


def test_one_model_alone_without_a_pad_token(world, tmp_path):
    shutil.copytree(world / "model", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["pad_token"]
    path.write_text(json.dumps(config))
    flags = ["--model", tmp_path / "model", "--dataset", world / "problems.jsonl"]
    done = run_evaluate(
        world, *flags, "--adapter", "none", "--num-samples", 4, output_dir=tmp_path / "new"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results, samples = read_results(tmp_path / "new" / "eval-alone")
    assert results["arms"] == ["base"] and "difference" not in results
    assert [single["arm"] for single in results["single_prompts"]] == ["base"] * 3
    assert list(samples[0]) == ["prompt", "answer", "base"]
    assert "使用LoRA" not in done.stdout and "verdict" not in done.stdout
    page = (tmp_path / "new" / "eval-alone" / "samples.md").read_text()
    assert f"\n{tmp_path}/model, alone; all texts are in samples.jsonl.\n" in page
    assert "## 4. sample\n" in page and "base against" not in page and "A win" not in page


# --------------------------------------------------------------------------------------------------
# --rescore


def test_rescore_gives_identical_numbers(evaluated, tmp_path):
    shutil.copytree(evaluated[0], tmp_path / "eval")
    results_file = tmp_path / "eval" / "results.json"
    before = json.loads(results_file.read_text())
    results_file.write_text(json.dumps(before | {"base": None, "comparisons": None}))
    done = run_script("evaluate.py", "--rescore", tmp_path / "eval" / "samples.jsonl")
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(results_file.read_text()) == before
    assert "使用LoRA" in done.stdout


def test_rescore_of_old_files_gives_the_new_numbers(tmp_path):
    rows = []
    for row in make_samples():
        base = {"text": row["base"]["text"].split("</think>")[-1] + " so the answer is 3"}
        base |= {"tokens": 9, "truncated": False}
        rows.append({"prompt": row["prompt"], "answer": "3", "base": base, "lora": base})
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    old = {"target_lang": "id", "reasoning_tokens": ["<think>", "</think>"], "split": "train"}
    (tmp_path / "results.json").write_text(json.dumps(old))
    done = run_script("evaluate.py", "--rescore", path)
    assert done.returncode == 0, done.stderr[-2000:]
    results, _ = read_results(tmp_path)
    assert results["base"]["accuracy"] == 1 and results["base"]["closed_thought_rate"] == 0
    assert results["split"] == "train"


GOOD_ROW = {"prompt": "p", "answer": "1", "base": {"text": "", "tokens": 1, "truncated": False}}
GOOD_RESULTS = {"target_lang": "id", "reasoning_tokens": ["<think>", "</think>"]}


@pytest.mark.parametrize(
    "row, results",
    [
        ("", GOOD_RESULTS),
        ("[]", GOOD_RESULTS),
        ("{", GOOD_RESULTS),
        ('"text"', GOOD_RESULTS),
        ({"prompt": "p", "answer": "1"}, GOOD_RESULTS),
        (GOOD_ROW | {"answer": 1}, GOOD_RESULTS),
        (GOOD_ROW | {"prompt": None}, GOOD_RESULTS),
        (GOOD_ROW | {"base": "text"}, GOOD_RESULTS),
        (GOOD_ROW | {"base": {"text": ""}}, GOOD_RESULTS),
        (GOOD_ROW | {"base": GOOD_ROW["base"] | {"text": 1}}, GOOD_RESULTS),
        (GOOD_ROW | {"base": GOOD_ROW["base"] | {"truncated": "no"}}, GOOD_RESULTS),
        (GOOD_ROW, None),
        (GOOD_ROW, "{"),
        (GOOD_ROW, []),
        (GOOD_ROW, {}),
        (GOOD_ROW, {"target_lang": "id"}),
        (GOOD_ROW, GOOD_RESULTS | {"target_lang": "xx"}),
        (GOOD_ROW, GOOD_RESULTS | {"reasoning_tokens": None}),
        (GOOD_ROW, GOOD_RESULTS | {"reasoning_tokens": ["<think>"]}),
        (GOOD_ROW, GOOD_RESULTS | {"reasoning_tokens": ["<think>", None]}),
    ],
)
def test_rescore_of_something_else_changes_nothing(tmp_path, capsys, row, results):
    path = tmp_path / "samples.jsonl"
    path.write_text(row if isinstance(row, str) else json.dumps(row) + "\n")
    if results is not None:
        text = results if isinstance(results, str) else json.dumps(results)
        (tmp_path / "results.json").write_text(text)
    before = read_files(tmp_path)
    with pytest.raises(SystemExit) as end:
        evaluate.rescore(str(path))
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: --rescore") and error.count("\n") == 1
    assert read_files(tmp_path) == before


def test_rows_of_different_arms_are_refused(tmp_path, capsys):
    other = dict(GOOD_ROW)
    other["lora"] = other.pop("base")
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(GOOD_ROW) + "\n" + json.dumps(other) + "\n")
    (tmp_path / "results.json").write_text(json.dumps(GOOD_RESULTS))
    with pytest.raises(SystemExit):
        evaluate.rescore(str(path))
    assert "line 2 of" in capsys.readouterr().err


def test_an_error_in_rescore_keeps_its_traceback(tmp_path, monkeypatch):
    (tmp_path / "samples.jsonl").write_text(json.dumps(GOOD_ROW) + "\n")
    (tmp_path / "results.json").write_text(json.dumps(GOOD_RESULTS))

    def broken(text):
        raise KeyError("a fork's bug")

    monkeypatch.setattr(rewards, "get_lang", broken)
    with pytest.raises(KeyError):
        evaluate.rescore(str(tmp_path / "samples.jsonl"))


# --------------------------------------------------------------------------------------------------
# Arguments


def parse(monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, flags)])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # make_parser sets it
    return evaluate.parse_arguments()


def test_tutorial_defaults(monkeypatch, tmp_path):
    args = parse(monkeypatch, "--output-dir", tmp_path)
    assert args.num_samples == 20 and args.seed == 3407 and args.split == "train"
    assert args.temperature == 1.0 and args.top_k == 50 and args.max_tokens == 2048
    assert args.system_prompt == "zh" and args.fast_inference
    assert args.load_in_4bit is False  # no run: the model as it is
    assert args.gpu_memory_utilization == 0.7


def test_defaults_come_from_the_run(monkeypatch, world):
    args = parse(monkeypatch, "--output-dir", world / "outputs")
    assert args.model == str(world / "model") and args.dataset == str(world / "problems.jsonl")
    assert args.eval_fraction == 0.4 and args.reasoning_tokens == ["<think>", "</think>"]
    assert args.load_in_4bit is False  # the run's engine was trl
    args = parse(monkeypatch, "--output-dir", world / "outputs", "--eval-fraction", 0.1)
    assert args.eval_fraction == 0.1


@pytest.mark.parametrize(
    "change, flags, load_in_4bit",
    [
        ({"engine": "unsloth"}, [], True),
        ({"engine": "unsloth", "load_in_4bit": False}, [], False),
        ({"engine": "unsloth"}, ["--no-load-in-4bit"], False),
        ({"engine": "unsloth"}, ["--model", "somebody/else"], False),
        ({"engine": "trl"}, [], False),
        ({"engine": "trl"}, ["--load-in-4bit"], True),
    ],
)
def test_the_base_is_loaded_as_it_was_trained(
    monkeypatch, world, tmp_path, change, flags, load_in_4bit
):
    run = json.loads((world / "outputs" / "run.json").read_text())
    run["arguments"] |= change
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert parse(monkeypatch, "--output-dir", tmp_path, *flags).load_in_4bit is load_in_4bit


@pytest.mark.parametrize(
    "flags, revision, dataset_revision",
    [
        ([], "r1", "d1"),
        (["--model", "somebody/else"], None, "d1"),
        (["--dataset", "some/other"], "r1", None),
        (["--revision", "r2", "--dataset-revision", "d2"], "r2", "d2"),
    ],
)
def test_a_revision_belongs_to_its_repository(
    monkeypatch, world, tmp_path, flags, revision, dataset_revision
):
    run = json.loads((world / "outputs" / "run.json").read_text())
    run["arguments"] |= {"revision": "r1", "dataset_revision": "d1"}
    (tmp_path / "run.json").write_text(json.dumps(run))
    args = parse(monkeypatch, "--output-dir", tmp_path, *flags)
    assert args.revision == revision and args.dataset_revision == dataset_revision


@pytest.mark.parametrize(
    "flags, name",
    [
        ([], "eval"),
        (["--adapter", "a"], "eval"),
        (["--adapter", "a", "b"], "eval-curve"),
        (["--adapter", "none"], "eval-alone"),
        (["--adapter", "a", "b", "--name", "x"], "x"),
    ],
)
def test_folder_of_the_results(monkeypatch, tmp_path, flags, name):
    assert parse(monkeypatch, "--output-dir", tmp_path, *flags).name == name


@pytest.mark.parametrize(
    "other, same",
    [
        ({}, True),
        ({"dataset": "./problems.jsonl", "dataset_config": "xx"}, True),
        ({"dataset": "others.jsonl"}, False),
        ({"dataset": "some/hub-set"}, False),
        ({"dataset_config": "xx"}, True),
    ],
)
def test_same_file(world, monkeypatch, other, same):
    monkeypatch.chdir(world)
    used = {"dataset": str(world / "problems.jsonl"), "dataset_config": "en"}
    used |= {"dataset_split": "train", "dataset_revision": None}
    assert evaluate.is_same_data(argparse.Namespace(**(used | other)), used) is same


@pytest.mark.parametrize(
    "other, same",
    [
        ({}, True),
        ({"dataset_config": "socratic"}, False),
        ({"dataset_split": "test"}, False),
        ({"dataset_revision": "v2"}, False),
        ({"dataset": "openai/other"}, False),
    ],
)
def test_same_part_of_a_hub_data_set(other, same):
    used = {"dataset": "openai/gsm8k", "dataset_config": "main", "dataset_split": "train"}
    args = argparse.Namespace(**({"dataset_revision": None} | used | other))
    assert evaluate.is_same_data(args, used) is same


def test_adapters_in_the_order_of_their_steps(monkeypatch):
    monkeypatch.setattr(evaluate, "check_adapter", lambda folder, model, revision: {})
    folders = ["o/grpo_lora", "o/checkpoint-10", "o/checkpoint-2/"]
    args = argparse.Namespace(adapter=folders, model="m", revision=None, output_dir="o")
    adapters = evaluate.find_adapters(args, {"last_step": {"step": 20}})
    assert list(adapters) == ["checkpoint-2", "checkpoint-10", "grpo_lora"]
    assert adapters["checkpoint-2"] == "o/checkpoint-2/"
    args.adapter = None
    assert evaluate.find_adapters(args, {}) == {"lora": "o/grpo_lora"}
    args.adapter = ["none"]
    assert evaluate.find_adapters(args, {}) == {}


@pytest.mark.parametrize(
    "folder, step",
    [("outputs/checkpoint-40", 40), ("checkpoint-7/", 7), ("outputs/grpo_lora", 20)],
)
def test_step_of_an_adapter(folder, step):
    assert evaluate.get_step(folder, {"last_step": {"step": 20}}) == step


def test_the_step_of_another_runs_adapter_is_that_runs_last(tmp_path):
    run = {"arguments": {"model": "m"}, "last_step": {"step": 12}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "grpo_lora").mkdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "seed-1").symlink_to(tmp_path / "grpo_lora")  # qwen15.sh's
    for folder in ("grpo_lora", "links/seed-1"):
        assert evaluate.get_step(str(tmp_path / folder), {"last_step": {"step": 6}}) == 12
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "links" / "early").symlink_to(tmp_path / "checkpoint-8")
    assert evaluate.get_step(str(tmp_path / "links" / "early"), {}) == 8


BAD_INPUT = [
    (["--num-samples", "0"], "--num-samples"),
    (["--num-samples", "1.5"], "--num-samples"),
    (["--max-tokens", "0"], "--max-tokens"),
    (["--temperature", "-1"], "--temperature"),
    (["--temperature", "nan"], "--temperature"),
    (["--top-k", "-2"], "--top-k"),
    (["--gpu-memory-utilization", "0"], "--gpu-memory-utilization"),
    (["--gpu-memory-utilization", "1.1"], "--gpu-memory-utilization"),
    (["--prompt", ""], "--prompt"),
    (["--name", "a/b"], "not the name of a folder"),
    (["--name", ".."], "not the name of a folder"),
    (["--name", " "], "not the name of a folder"),
    (["--name", "grpo_lora"], "holds something else than an evaluation"),
    (["--adapter", "none", "x"], "--adapter none stands alone"),
    (["--reasoning-tokens", "<a>", "<a>"], "START and END must differ"),
    (["--adapter"], "--adapter"),
    (["--output-d", "x"], "--output-d"),
    (["--output-dir"], "--output-dir"),
    (["--output-dir", "/proc/nothing"], "cannot write to /proc/nothing/eval"),
    (["--output-dir", "{world}/others.jsonl"], "cannot write to"),
    (["--output-dir", "{world}/corrupt"], "run.json"),
    (["--output-dir", "{world}/older"], "it has no target_lang"),
    (["--rescore", "{world}/nothing.jsonl"], "--rescore"),
    (["--adapter", "{world}/model"], "is not a LoRA adapter"),
    (["--adapter", "{world}/outputs/checkpoint-2", "{world}/more/checkpoint-2"], "different names"),
    (["--adapter", "{world}/outputs/checkpoint-2", "{world}/more/x"], "a curve needs checkpoint-N"),
    (["--model", "{world}/wide"], "was trained on"),
    (["--model", "{world}/small/model"], "more than the model's vocabulary"),
    (["--model", "{world}/strange", "--adapter", "none"], "cannot load {world}/strange: "),
    (["--split", "held-out"], "does not show that train.py left these prompts out"),
]


@pytest.fixture(scope="module")
def spoilt(world):
    """The world with folders that must be refused."""
    make_model(world / "wide", hidden_size=64)
    make_model(world / "small" / "model", vocab_size=200)
    shutil.copytree(world / "model", world / "strange")
    (world / "strange" / "config.json").write_text("[]")
    shutil.copytree(world / "outputs" / "checkpoint-2", world / "more" / "checkpoint-2")
    shutil.copytree(world / "outputs" / "checkpoint-2", world / "more" / "x")
    (world / "corrupt").mkdir()
    (world / "corrupt" / "run.json").write_text("{")
    run = json.loads((world / "outputs" / "run.json").read_text())
    del run["arguments"]["target_lang"]
    (world / "older").mkdir()
    (world / "older" / "run.json").write_text(json.dumps(run))
    return world


@pytest.mark.parametrize("flags, message", BAD_INPUT)
def test_bad_input_gets_one_line(spoilt, tmp_path, flags, message):
    outputs = tmp_path / "outputs"
    shutil.copytree(spoilt / "outputs", outputs, ignore=shutil.ignore_patterns("eval*", "swanlog"))
    if "{world}/more/x" in flags:
        run = json.loads((outputs / "run.json").read_text())
        del run["last_step"]
        (outputs / "run.json").write_text(json.dumps(run))
    if "held-out" in flags:
        run = json.loads((outputs / "run.json").read_text())
        (outputs / "run.json").write_text(json.dumps(run | {"held_out": None}))
    before = sorted(outputs.rglob("*"))
    flags = [flag.replace("{world}", str(spoilt)) for flag in flags]
    done = run_script("evaluate.py", "--output-dir", outputs, *flags)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message.replace("{world}", str(spoilt)) in last
    assert sorted(outputs.rglob("*")) == before


def test_help_needs_nothing_but_python():
    command = [sys.executable, "-S", "evaluate.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--rescore outputs/eval/samples.jsonl" in done.stdout
    assert "None" not in done.stdout
