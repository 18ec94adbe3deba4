"""README.md and README.zh.md agree with the scripts, with each other and with the GPU log.

bash tests/run.sh -k readme
"""

import gzip
import json
import math
import re
import unicodedata
from collections import Counter
from statistics import median
from types import SimpleNamespace

import pytest
from conftest import ROOT, run_script
from scipy.stats import ttest_ind

import rewards
from evaluate import mcnemar, wilson

RUNS = "tests/results/gpu-2026-11-24-h100x2"
JUDGED = "tests/results/gpu-2026-11-28-h100x2"
TUTORIAL = "tests/results/gpu-2026-11-28-h200x2"
ENGLISH = "tests/results/gpu-2026-11-27-h100x2/base-english/results.json"
READMES = ["README.md", "README.zh.md"]
SCRIPTS = ["train.py", "evaluate.py", "export.py", "data.py"]
FLAG = r"(?<![\w-])--[a-z][a-z0-9-]*"
# Flags of other programs: torchrun, modelscope (with an underscore), renew.sh
OTHER_FLAGS = {"--nnodes", "--nproc-per-node"}
OTHER_FLAGS |= {"--rdzv-id", "--rdzv-backend", "--rdzv-endpoint"}
OTHER_FLAGS |= {"--local", "--keep"}


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text):
    """The indented and fenced lines: what a reader copies, without comments."""
    lines = re.findall(r"^    \S.*$", text, re.MULTILINE)
    return [re.sub(r" +#.*", "", line) for line in lines]


def read_texts():
    """The 300 problems of the evaluation with every arm's text."""
    with gzip.open(ROOT / JUDGED / "eval-native" / "samples.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def get_code(text):
    return Counter(re.findall(r"`([^`\n]+)`", text))


def get_flags(text):
    return Counter(re.findall(FLAG, text))


def get_numbers(text):
    text = re.sub(r"https?://\S+|\]\([^)]*\)", "", text)
    return Counter(re.findall(r"\d+(?:[.,]\d+)*(?:e-\d+)?", text))


@pytest.fixture(scope="module")
def known_flags():
    flags = {}
    for script in SCRIPTS:
        done = run_script(script, "--help")
        assert done.returncode == 0, done.stderr
        flags[script] = set(re.findall(FLAG, done.stdout))
    return flags


# --------------------------------------------------------------------------------------------------
# Commands and flags


@pytest.mark.parametrize("name", READMES)
def test_every_flag_is_one_of_a_script(name, known_flags):
    known = set().union(*known_flags.values())
    assert set(get_flags(read(name))) - known - OTHER_FLAGS == set()


@pytest.mark.parametrize("name", READMES)
@pytest.mark.parametrize("script", ["data.py", "evaluate.py", "export.py", "train.py"])
def test_a_command_has_only_flags_of_its_script(name, script, known_flags):
    text = re.sub(r"\\\n\s*", " ", read(name))
    calls = re.findall(rf"(?:python|29500) +{script} ([^`#\n]*)", text)
    assert calls
    for call in calls:
        assert set(get_flags(call)) <= known_flags[script]


@pytest.mark.parametrize("name", READMES)
def test_what_follows_a_recipe_is_a_flag_of_train_py(name, known_flags):
    calls = re.findall(r"bash run\.sh (?:tutorial|fast|improved) ([^`#\n]*)", read(name))
    assert len(calls) == 3
    for call in calls:
        assert set(get_flags(call)) <= known_flags["train.py"]


@pytest.mark.parametrize("name", READMES)
def test_recipes_exist(name):
    recipes = set(re.findall(r"bash run\.sh ([a-z]+)", read(name)))
    assert recipes == {"tutorial", "fast", "improved", "install"}
    for recipe in recipes:
        assert re.search(rf"^ +[a-z| ]*\b{recipe}\b.*\)", read("run.sh"), re.MULTILINE)


@pytest.mark.parametrize("name", READMES)
def test_the_table_of_improved_is_what_run_sh_does(name):
    text = read(name)
    start = text.index("| `--rewards improved`")
    table = text[start : text.index("\n\n", start)]
    shown = re.findall(r"(--[a-z0-9-]+)((?: [a-z0-9./-]+)?)(?=[ `])", table)
    recipe = re.search(r"^improved\(\).*?\"\$@\"", read("run.sh"), re.MULTILINE | re.DOTALL)[0]
    recipe = recipe.replace("$((64 / gpus))", "64")
    done = re.findall(r"(--[a-z0-9-]+)((?: (?!--)[a-z0-9./-]+)?)", recipe.replace("\\\n", ""))
    expected = set(done) - {("--output-dir", " outputs-improved"), ("--resume", "")}
    assert {(flag, value.strip()) for flag, value in shown} == {
        (flag, value.strip()) for flag, value in expected
    }


@pytest.mark.parametrize("name", READMES)
@pytest.mark.parametrize("script", [*SCRIPTS, "rewards.py"])
def test_functions_in_the_table_exist(name, script):
    found = re.findall(rf"`{script}`[:：]([^|;；]*)", read(name))
    assert found
    for cell in found:
        for function in re.findall(r"`([a-z_0-9]+)`", cell):
            assert re.search(rf"^def {function}\(", read(script), re.MULTILINE), function


@pytest.mark.parametrize("name", [*READMES, "tests/DEVIATIONS.md"])
def test_links_lead_to_files(name):
    for link in re.findall(r"\]\(([^)#]+)", read(name)):
        assert link.startswith("https://") or (ROOT / link).exists(), link


@pytest.mark.parametrize("name", READMES)
def test_files_named_in_the_text_exist(name):
    for path in re.findall(r"(?<![\w/-])tests/[\w/.]*\w\.(?:sh|md|png|py)", read(name)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", READMES)
@pytest.mark.parametrize("key", ["rollout_logp_difference", "indonesian_rate", "accuracy"])
def test_metrics_to_watch_are_logged(name, key):
    assert key in read(name)
    assert key in read("train.py") + read("rewards.py")


# --------------------------------------------------------------------------------------------------
# The two READMEs


def test_both_have_the_same_command_blocks():
    assert blocks(read("README.md")) == blocks(read("README.zh.md"))


def test_both_have_the_same_code():
    assert get_code(read("README.md")) == get_code(read("README.zh.md"))


def test_both_have_the_same_flags():
    assert get_flags(read("README.md")) == get_flags(read("README.zh.md"))


def test_both_have_the_same_numbers():
    assert get_numbers(read("README.md")) == get_numbers(read("README.zh.md"))


def test_both_have_the_same_sections():
    assert [len(re.findall(r"^## ", read(name), re.MULTILINE)) for name in READMES] == [9, 9]


@pytest.mark.parametrize("name", READMES)
def test_at_most_170_lines(name):
    assert len(read(name).splitlines()) <= 170


@pytest.mark.parametrize("name", READMES)
def test_the_first_screen_holds_the_result_and_the_picture(name):
    screen = "\n".join(read(name).splitlines()[:45])
    assert "bash run.sh" in screen and "25 %" in screen and "curves_qwen15.png" in screen


@pytest.mark.parametrize("name", READMES)
def test_prose_is_narrow(name):
    for line in read(name).splitlines():
        width = sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in line)
        assert width <= 100 or line.startswith("|") or "https://" in line, line


@pytest.mark.parametrize("name", READMES)
def test_the_pair_is_quoted_from_its_file(name):
    row = next(row for row in read_texts() if row["prompt"].startswith("Ali had $21"))
    pair = re.search(
        r"```text\n(?:before: |训练前：)(.*?)\n(?:after: |训练后：)(.*?)\n```", read(name), re.S
    )
    for arm, text in zip(["base", "improved-1-grpo_lora"], pair.groups()):
        answer = " ".join(row[arm]["text"].split())
        parts = " ".join(text.split()).split(" ... ")
        assert len(parts) == 2
        for part in parts:
            assert part in answer
    assert row["answer"] == "71" and "71" in read(name)


# --------------------------------------------------------------------------------------------------
# Numbers with a source


@pytest.mark.parametrize("name", READMES)
@pytest.mark.parametrize(
    "number, row",
    [
        ("4,710", r"\| \*\*fast\*\*, micro-batch 8.*\| 4,710 \| 71\.1 \|"),
        ("73 s", r"\| \*\*improved\*\* asleep.*73\.0 \| 3,472 \| 74\.5 \|"),
        ("57 GiB", r"\| tutorial \(Unsloth, 4-bit, 10 steps\).*\| 57\.06 \|"),
        ("17 GiB", r"\| 24 GB .*4 x 1,024 \| 0\.6 \| 16\.1 \+ 0\.9 \|"),
        ("21 GiB", r"\| 24 GB .*8 x 2,048 \| 0\.6 \| 20\.3 \+ 0\.9 \|"),
        ("30 GiB", r"\| 40 GB .*8 x 1,024 \| 0\.65 \| 28\.9 \+ 0\.9 \|"),
        ("36 GiB", r"\| 40 GB .*8 x 4,096 \| 0\.6 \| 35\.3 \+ 1\.1 \|"),
    ],
)
def test_a_measured_number_is_in_the_gpu_log(name, number, row):
    assert number in read(name)
    assert re.search(row, read("tests/gpu/RESULTS.md"))


SPEED = "tests/results/gpu-2026-12-01-h200x2"
BEFORE = "tests/results/gpu-2026-11-30-h200x2"


@pytest.mark.parametrize("name", READMES)
def test_speeds_are_those_of_one_run(name):
    """But for tutorial's, which stock TRL connects: the day before both ran on one machine."""

    def measure(run, folder=SPEED):
        """Return (tokens/s, seconds), by medians without the first step if there are more."""
        rows = [json.loads(line) for line in read(f"{folder}/{run}.jsonl").splitlines()]
        rows = [row for row in rows if "reward" in row]
        seconds = median(row["step_time"] for row in rows[1:] or rows)
        tokens = median(row["completions/mean_length"] for row in rows[1:] or rows)
        run = json.loads(read(f"{folder}/{run}.run.json"))
        return run["effective"]["completions_per_step"] * tokens / seconds, seconds

    def measure_stock_trl(folder):
        """Return tokens/s: 128 completions of 908 tokens (trl_baseline.py's --completion)."""
        return 128 * 908 / float(re.search(r"STEP 2 ([\d.]+)s", read(f"{folder}/trl128.txt"))[1])

    text = read(name)
    tokens = measure("fast")[0]
    assert f"{tokens:,.0f} tokens/s" in text
    times_trl = tokens / measure_stock_trl(SPEED)
    assert f"{times_trl:.2f}" in text
    times_tutorial = measure_stock_trl(BEFORE) / measure("tutorial-cold", BEFORE)[0]
    assert f" {times_trl * times_tutorial:.0f} " in text
    for run in ("fast", "improved"):
        one, two = measure(run)[1], measure(f"{run}-ddp2")[1]
        assert f"{one:.1f} -> {two:.1f}" in text and f"{one / two:.2f}" in text
    assert f"{measure('improved')[1]:.0f} s" in text
    memory = read(f"{SPEED}/memory.txt")
    for run, gib in (("fast", 71), ("improved-ddp2", 75)):
        assert round(int(re.search(rf"^{run}: (\d+)$", memory, re.M)[1]) / 1024) == gib
    for page in (text, read("run.sh")):
        assert "71 GiB" in page and "75 GiB" in page


SEEDS = [f"improved-{seed}-grpo_lora" for seed in (1, 2, 3)]


def percent(*rates):
    """Rounded as a table has them."""
    return [f"{math.floor(100 * rate + 0.5)}" for rate in rates]


@pytest.mark.parametrize("name", READMES)
def test_the_first_table_is_the_evaluation_rounded(name):
    results = json.loads(read(f"{JUDGED}/eval-native/results.json"))
    keys = ("indonesian_rate", "accuracy", "indonesian_and_correct")
    base = percent(*[results["base"][key] for key in keys])
    means = percent(*[sum(results[arm][key] for arm in SEEDS) / 3 for key in keys])
    text = read(name).replace("*", "")
    for row in (base, means):
        assert f" | {' % | '.join(row)} % |" in text
    text = " ".join(text.replace("、", ", ").split())
    for before, key in zip(base, keys[:2]):
        after = percent(*[results[arm][key] for arm in SEEDS])
        assert f"{before} -> {', '.join(after)} %" in text
    assert f"| {64 * 80:,} | {' % | '.join(means)} % |" in text
    rows = read_texts()
    pairs = [[(row["base"]["accuracy"], row[arm]["accuracy"]) for row in rows] for arm in SEEDS]
    p_values = [mcnemar(pair.count((True, False)), pair.count((False, True))) for pair in pairs]
    assert [p < 0.01 for p in p_values] == [True, False, True] and "p < 0.01" in text
    assert results["n"] == 300 and "300" in text and results["steps"][SEEDS[0]] == 80


@pytest.mark.parametrize("name", READMES)
def test_what_the_texts_of_the_evaluation_show(name):
    """The share of English words in the thoughts, and the run that calculates behind them."""
    rows = read_texts()
    rewards.configure(("<think>", "</think>"), "id")
    english, behind = [], []
    for arm in SEEDS:
        longer = 0
        for row in rows:
            thought, answer = rewards.split_reasoning(row[arm]["text"])
            words = rewards.find_words(thought)
            foreign = rewards.get_foreign_words(row["prompt"], "id")
            english.append(sum(word in foreign for word in words) / max(1, len(words)))
            longer += len(rewards.find_words(answer or "")) > len(words)
        behind.append(longer / len(rows))
    share = percent(sum(english) / len(english))[0]
    assert re.search(rf"(problem: |英语词占思考的 ){share} %", read(name).replace("\n", " "))
    assert [rate > 0.5 for rate in behind] == [False, False, True]


@pytest.mark.parametrize("name", READMES)
def test_what_the_tutorial_s_rewards_taught(name):
    """Two runs with as many completions a step, judged under the tutorial's own prompt."""
    results = json.loads(read(f"{TUTORIAL}/eval-tutorial/results.json"))
    assert results["n"] == 300 and results["arguments"]["system_prompt"] == "zh"
    keys = ("indonesian_rate", "accuracy", "indonesian_and_correct")
    base, *arms = [results[arm] for arm in results["arms"]]
    means = percent(*[sum(arm[key] for arm in arms) / len(arms) for key in keys])
    completions = 64 * sum(results["steps"].values()) / 2
    text = read(name).replace("*", "")
    assert f" | {' % | '.join(percent(*[base[key] for key in keys]))} % |" in text
    assert f"| {completions:,.0f} | {' % | '.join(means)} % |" in text

    improved = json.loads(read(f"{JUDGED}/eval-native/results.json"))
    theirs = [round(300 * arm[keys[2]]) for arm in arms]
    ours = [round(300 * improved[arm][keys[2]]) for arm in SEEDS]
    ours_low, ours_high = percent(*wilson(sum(ours), 900))
    low, high = percent(*wilson(sum(theirs), 600))
    text = re.sub(r"[^\d%().=p]+", " ", text.replace("（", "(").replace("）", ")"))
    assert f"{ours_low} {ours_high} % {low} {high} %" in text
    p_value = ttest_ind(ours, theirs, equal_var=False).pvalue
    assert f"p = {p_value:.3f}" in read(name)
    shares = [arm[f"{keys[2]}_ci95"] for arm in arms]
    assert max(share[1] for share in shares) < min(
        improved[arm][f"{keys[2]}_ci95"][0] for arm in SEEDS
    )


@pytest.mark.parametrize("name", READMES)
def test_what_was_measured_before_the_runs_files_were_kept(name):
    log = read("tests/gpu/RESULTS.md")
    rows = {}
    for row in ("base, boxed prompt", r"`improved`, lr 2e-5 \(as", "`tutorial`, 100"):
        logged = re.search(rf"^\| {row}[^|]*\|(.*)", log, re.MULTILINE)[1]
        rows[row] = [f"{float(rate):.0f}" for rate in re.findall(r"([\d.]+) %", logged)]
    base, improved, tutorial = rows.values()
    before = re.search(r"base (\d+) / (\d+) / (\d+) %", log)[3]
    text = " ".join(read(name).split())
    assert re.search(rf"400 (completions|条回答) {before} -> {tutorial[2]} %", text)
    assert re.search(
        rf"(first published|`improved`) {base[2]} -> {improved[2]} % ?"
        rf"(\(right|（正确率) {base[1]} -> {improved[1]} %",
        text,
    )


@pytest.mark.parametrize("name", READMES)
def test_what_nine_runs_have(name):
    folders = ["tests/results/gpu-2026-11-27-h100x2", JUDGED, f"{JUDGED}-2"]
    runs = []
    for folder in folders:
        results = json.loads(read(f"{folder}/eval-native/results.json"))
        runs += [results[arm] for arm in SEEDS]
    keys = ("indonesian_rate", "accuracy", "indonesian_and_correct")
    means = percent(*[sum(run[key] for run in runs) / 9 for key in keys])
    both = [run["indonesian_and_correct"] for run in runs]
    low, high = percent(min(both), max(both))
    text = read(name).replace("（", "(").replace("）", ")")
    text = re.sub(r"[^\d%()]+", " ", text).replace(" (", "(")  # the numbers alone, in order
    assert f"{means[0]} % {means[1]} % {means[2]} %({low} {high})" in text


@pytest.mark.parametrize("name", READMES)
def test_what_is_right_under_other_prompts(name):
    results = json.loads(read(f"{JUDGED}/eval-none/results.json"))
    before, *after = percent(*[results[arm]["accuracy"] for arm in ["base", *SEEDS]])
    text = " ".join(read(name).replace("、", ", ").split())
    assert f"{before} -> {', '.join(after)} %" in text
    assert all(results[arm]["indonesian_rate"] == 0 for arm in SEEDS)
    english = json.loads(read(ENGLISH))["base"]["accuracy"]
    assert re.search(
        rf"(told in English has|用英语提示词时基座模型 有) {percent(english)[0]} %", text
    )


@pytest.mark.parametrize("name", READMES)
def test_lengths_in_training_are_in_the_metrics(name):
    """The first 5 and the last 10 steps of the three runs."""
    ends = []
    for seed in (1, 2, 3):
        rows = [json.loads(line) for line in read(f"{JUDGED}/improved-{seed}.jsonl").splitlines()]
        lengths = [row["completions/mean_length"] for row in rows if "reward" in row]
        assert 245 < sum(lengths[:5]) / 5 < 255
        ends.append(sum(lengths[-10:]) / 10)
    assert re.search(r"250 -> 260 (to|到) 370", read(name))
    assert 255 < min(ends) < 270 and 365 < max(ends) < 380


@pytest.mark.parametrize("name", READMES)
def test_extrapolations_follow_from_what_was_measured(name):
    assert f"{8 * 4710:,}" in read(name)
    assert "2 h 5 min" in read(name) and 120 < 100 * 73.0 / 60 < 125
    assert "2 h 5 min" in read("run.sh") and "about 45 minutes on an H200" in read("run.sh")
    assert 40 < 100 * 24.5 / 60 < 45
    trained = json.loads(read(f"{RUNS}/fast-ddp1.run.json"))["effective"]["trainable_parameters"]
    assert f"{4 * trained / 1e9:.2f} GB" in read(name)
    assert f"{5e-6 * (2048 / 4) ** 0.5:.1e}" == "1.1e-04" and "--learning-rate 1.1e-4" in read(name)


@pytest.mark.parametrize("name", READMES)
@pytest.mark.parametrize("package", ["torch", "vllm", "unsloth", "trl", "transformers"])
def test_pins_are_those_of_requirements(name, package):
    pin = re.search(rf"^{package}==(\S+)", read("requirements.txt"), re.MULTILINE)[1]
    assert f"{package} {pin}" in read(name)


@pytest.mark.parametrize("name", READMES)
def test_weights_are_those_of_rewards(name):
    weights = ", ".join(f"{weight:g}" for weight in rewards.REWARDS["improved"].values())
    assert weights in read(name)


# --------------------------------------------------------------------------------------------------
# The wrappers for verl and ms-swift


class ORM:
    """ms-swift's base class as its swift/rewards/orm.py declares it (main, commit 0431a5d)."""

    def __init__(self, args=None, **kwargs):
        self.args = args

    def __call__(self, **kwargs):
        raise NotImplementedError


def run_wrappers():
    """Run the code shown as a file of the user's, and return its names."""
    code = re.search(r"```python\n(.*?)```", read("tests/ENGINES.md"), re.DOTALL)[1]
    scope = {"rewards": rewards, "swift": SimpleNamespace(rewards=SimpleNamespace())}
    scope["swift"].rewards.ORM = ORM
    scope["swift"].rewards.orms = {}
    exec(code, scope)
    return scope


@pytest.mark.parametrize(
    "text, score",
    [
        ("", 0.0),
        ("<think>", 0.0),
        ("<think>a b</think>\\boxed{42}", 2.5),
        ("<think>a b</think>\\boxed{41}", 0.5),
    ],
)
def test_the_wrapper_for_verl_scores(text, score):
    scope = run_wrappers()
    rewards.configure(("<think>", "</think>"), "id")
    assert scope["compute_score"]("gsm8k", text, "42", {"question": "6 * 7?"}) == score
    assert scope["compute_score"](data_source="x", solution_str=text, ground_truth="42") == score


def test_the_wrapper_for_ms_swift_scores():
    """As ms-swift calls it: texts, then each column of the data as a list, and its own columns."""
    reward = run_wrappers()["swift"].rewards.orms["improved"](args=None)
    rewards.configure(("<think>", "</think>"), "id")
    texts = ["", "<think>a b</think>\\boxed{42}", "<think>a b</think>\\boxed{41}"]
    columns = {"messages": [[]] * 3, "solution": ["42", 42, "42"], "trainer_state": None}
    assert reward(texts, **columns) == [0.0, 2.5, 0.5]
