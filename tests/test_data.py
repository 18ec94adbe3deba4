"""Data formats, system prompts, tags, length filter, split, template, argument types. CPU, seconds.

bash tests/run.sh -k data
"""

import argparse
import json
import math
from types import SimpleNamespace

import pytest
from conftest import ROOT, run_script

import data

TAGS = ("<think>", "</think>")
ROW = {"prompt": "What is 1+1?", "solution": "2"}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fails(capsys, function, *arguments):
    """Return the one line with which a call ends; data sets' progress stands above it."""
    with pytest.raises(SystemExit) as stop:
        function(*arguments)
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    return last


# --------------------------------------------------------------------------------------------------
# Prompts and tags


@pytest.mark.parametrize(
    "name, language, prompt",
    [
        ("zh", "id", "你接到一个问题。\n请思考这个问题并提供你的解题过程。\n你必须用印尼语思考。"),
        ("zh", "vi", "你接到一个问题。\n请思考这个问题并提供你的解题过程。\n你必须用越南语思考。"),
        (
            "en",
            "id",
            "You are given a problem.\nThink about the problem and provide your working out.\n"
            "You must think in Bahasa Indonesia.",
        ),
        (
            "boxed",
            "de",
            "You are given a problem.\nThink about it between <a> and </a>. "
            "You must think in German.\nAfter </a>, give the final answer as \\boxed{number}.",
        ),
        ("Denke auf {en}!", "de", "Denke auf German!"),
        ("{start} {end} {zh} {other}", "id", "<a> </a> 印尼语 {other}"),
        ("none", "id", None),
    ],
)
def test_system_prompts(name, language, prompt):
    assert data.make_system_prompt(name, language, ("<a>", "</a>")) == prompt


def test_messages():
    user = {"role": "user", "content": "1+1?"}
    system = {"role": "system", "content": "Think!"}
    assert data.make_messages("1+1?", "Think!") == [system, user]
    assert data.make_messages("1+1?", None) == [user]


@pytest.mark.parametrize(
    "text, answer",
    [
        ("He pays 3*4=<<3*4=12>>12\n#### 1,012", "1,012"),
        ("34", "34"),
        ("#### 4", "4"),
        ("a # b", "a # b"),
    ],
)
def test_extract_hash_answer(text, answer):
    assert data.extract_hash_answer(text) == answer


@pytest.mark.parametrize(
    "answer, joined",
    [
        ("1,440", "1440"),
        ("-1,234,567.5", "-1234567.5"),
        ("1,44", "1,44"),
        ("0,123", "0,123"),
        ("(1,440)", "(1,440)"),
        ("1440", "1440"),
        ("1440,1450", "1440,1450"),
        ("x = 1,440", "x = 1,440"),
    ],
)
def test_thousands_are_joined(answer, joined):
    """For the tutorial's check_answer and check_numbers, which compare digits."""
    assert data.join_thousands(answer) == joined


def test_answers_of_a_file_have_no_thousands_commas(tiny, tmp_path):
    write(tmp_path / "a.jsonl", [{"question": "a", "answer": "2,000 + 1\n#### 2,001"}])
    train, _, _ = load(tiny, tmp_path / "a.jsonl")
    assert train["answer"] == ["2001"]


def make_vocabulary(*tokens):
    """A tokenizer as far as get_reasoning_tokens reads it."""
    return SimpleNamespace(get_added_vocab=lambda: dict.fromkeys(tokens))


@pytest.mark.parametrize(
    "tokens, found",
    [
        (["<s>", "</think>", "<think>"], TAGS),
        (["<|begin_of_thinking|>", "<|/thinking|>"], ("<|begin_of_thinking|>", "<|/thinking|>")),
    ],
)
def test_reasoning_tokens(tokens, found):
    assert data.get_reasoning_tokens(make_vocabulary(*tokens)) == found


@pytest.mark.parametrize("tokens", [[], ["<think>"], ["</think>"], ["<s>", "</s>"]])
def test_no_reasoning_tokens(tokens, capsys):
    line = fails(capsys, data.get_reasoning_tokens, make_vocabulary(*tokens))
    assert "has no <think> and </think>" in line and "--reasoning-tokens" in line


# --------------------------------------------------------------------------------------------------
# Files


DAPO = [ROW, {"prompt": "What is 2+2?", "solution": "4"}]
GSM8K = [{"question": "What is 1+1?", "answer": "so\n#### 2"}, {"question": "b", "answer": "4"}]


def read(path, *arguments):
    return data.read_dataset(str(path), *arguments).to_list()


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.JSONL", "x[1].jsonl", "a*b?.jsonl", "a b.jsonl", "train.json.jsonl"]
)
def test_files_by_any_name(tmp_path, name):
    path = write(tmp_path / name, DAPO)
    write(tmp_path / "x1.jsonl", GSM8K)  # what the pattern x[1].jsonl would match
    assert read(path) == DAPO


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "folder"])
def test_formats(tmp_path, kind):
    from datasets import Dataset

    path = tmp_path / f"a.{kind}"
    rows = [row | {"source": "x"} for row in DAPO]
    if kind == "jsonl":
        write(path, rows)
    elif kind == "json":
        path.write_text(json.dumps(rows))
    elif kind == "parquet":
        Dataset.from_list(rows).to_parquet(str(path))
    else:
        path.mkdir()
        for name, row in zip("ab", rows):
            write(path / f"{name}.jsonl", [row])
    assert read(path) == rows


@pytest.mark.parametrize(
    "ours, taken",
    [
        (("prompt", "solution"), ["answer", "prompts", "completions"]),
        (("question", "answer"), ["prompt", "image"]),
        (("question", "answer"), ["solution", "images"]),
    ],
)
def test_further_columns_are_kept_and_change_nothing_else(tiny, tmp_path, ours, taken):
    """The same rows are trained on and held out; names that ours or TRL's take are left out."""
    rows, more = [], []
    for row in make_rows(20):
        rows.append(dict(zip(ours, row.values())))
        further = {"level": row["solution"], "info": {"a": [1, None]}}
        more.append(dict.fromkeys(taken, 7) | rows[-1] | further)
    plain = load(tiny, write(tmp_path / "rows.jsonl", rows), "--eval-fraction", "0.3")
    kept = load(tiny, write(tmp_path / "more.jsonl", more), "--eval-fraction", "0.3")
    for before, after in zip(plain[:2], kept[:2]):
        assert set(after.column_names) == {"prompt", "answer", "level", "info"}
        assert after["level"] == after["answer"] and after[0]["info"] == {"a": [1, None]}
        assert after.select_columns(["prompt", "answer"]).to_list() == before.to_list()


def test_gsm8k(tmp_path, tiny):
    path = write(tmp_path / "gsm8k.jsonl", GSM8K)
    assert read(path)[0] == {"prompt": "What is 1+1?", "solution": "so\n#### 2"}
    train, held_out, length = load(tiny, path, "--max-prompt-quantile", "1")
    assert train["answer"] == ["2", "4"]


def test_a_downloaded_hub_folder(tmp_path, capsys):
    """CONFIG/SPLIT-*: the configuration is a sub-folder; other splits are not read with train."""
    (tmp_path / "main").mkdir()
    write(tmp_path / "main" / "train-0.jsonl", [ROW])
    write(tmp_path / "main" / "test-0.jsonl", [ROW | {"solution": "3"}])
    for folder in (tmp_path, tmp_path / "main"):
        assert read(folder, "main", "train") == [ROW]
        assert read(folder, "main", "test") == [ROW | {"solution": "3"}]
        line = fails(capsys, read, folder, "main", "validation")
        assert "Unknown split" in line


def test_a_flat_folder(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train-00000-of-00001.jsonl", [ROW])
    assert read(tmp_path) == [ROW]


@pytest.mark.parametrize(
    "configs, asked, taken",
    [
        (["en", "all"], "en", "en"),
        (["default"], "en", "default"),  # a set without en, as most are
        (["main", "socratic"], "main", "main"),
        (["main", "socratic"], "en", "en"),  # several: the hub's own error names them
    ],
)
def test_configuration_of_a_hub_set(monkeypatch, configs, asked, taken):
    import datasets

    calls = []

    def load_dataset(*arguments, **options):
        calls.append((arguments, options))
        return datasets.Dataset.from_list([ROW])

    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda path, revision: configs)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert read("somebody/some-set", asked, "train", "v1") == [ROW]
    assert calls == [(("somebody/some-set", taken), {"split": "train", "revision": "v1"})]


@pytest.mark.parametrize("solution, text", [(4, "4"), (4.5, "4.5"), ("1,440", "1,440"), (-3, "-3")])
def test_answers_that_are_numbers(tmp_path, solution, text):
    path = write(tmp_path / "a.jsonl", [{"prompt": "a", "solution": solution}])
    assert read(path) == [{"prompt": "a", "solution": text}]


@pytest.mark.parametrize(
    "row, message",
    [
        ({"prompt": None, "solution": "1"}, "every prompt must be text"),
        ({"prompt": "", "solution": "1"}, "every prompt must be text"),
        ({"prompt": " \n", "solution": "1"}, "every prompt must be text"),
        ({"prompt": 3, "solution": "1"}, "every prompt must be text"),
        ({"prompt": [{"role": "user", "content": "a"}], "solution": "1"}, "every prompt must be"),
        ({"prompt": "a", "solution": None}, "every answer must be text or a number"),
        ({"prompt": "a", "solution": ""}, "every answer must be text or a number"),
        ({"prompt": "a", "solution": " "}, "every answer must be text or a number"),
        ({"prompt": "a", "solution": ["1"]}, "every answer must be text or a number"),
        ({"prompt": "a", "solution": {"x": 1}}, "every answer must be text or a number"),
        ({"prompt": "a", "solution": math.nan}, "every answer must be text or a number"),
        ({"prompt": "a", "solution": math.inf}, "every answer must be text or a number"),
        ({"text": "a"}, "needed: prompt and solution, or question and answer"),
        ({"prompt": "a", "answer": "1"}, "needed: prompt and solution, or question and answer"),
    ],
)
def test_unusable_rows(tmp_path, row, message, capsys):
    from datasets import Dataset

    path = tmp_path / "a.parquet"
    good = {name: "1" if isinstance(value, str) else value for name, value in row.items()}
    Dataset.from_list([good, row]).to_parquet(str(path))
    line = fails(capsys, read, path)
    assert line.startswith(f"error: data set {path}") and message in line


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("no.jsonl", None, "Unable to find"),
        ("empty.jsonl", "", "is empty"),
        ("blank.jsonl", "\n\n", ""),
        ("bad.jsonl", "{not json", "JSON"),
        ("half.jsonl", '{"prompt": "a", "solution": "1"}\n{"prompt": "b", "sol', "JSON"),
        ("null.jsonl", "null\nnull\n", "every line must be an object"),  # it was a segfault
        ("null.json", 'null\n{"prompt": "a", "solution": "1"}\n', "every line must be an object"),
        ("spaced.jsonl", " null\n null\n", "every line must be an object"),
        ("array.json", '[null, {"prompt": "a"}]', "every line must be an object"),
        ("number.jsonl", "3\n", "cannot load data set"),
        ("bad.parquet", "no parquet", "cannot load data set"),
        ("list.json", "[]", "cannot load data set"),
        ("notes.txt", "a", "is no .jsonl, .json or .parquet file"),
        ("cp1252.jsonl", b'{"prompt": "caf\xe9", "solution": "4"}\n', "UTF-8"),
    ],
)
def test_unusable_files(tmp_path, name, content, message, capsys):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    line = fails(capsys, read, path)
    assert str(path) in line and message in line


@pytest.mark.parametrize(
    "values, texts",
    [
        ([1000000, 5.5], ["1000000", "5.5"]),  # one 5.5 makes the column float
        ([0.00001, 6e20], ["0.00001", "600000000000000000000"]),
        ([3, -4], ["3", "-4"]),
        (["1,440", "007"], ["1,440", "007"]),
    ],
)
def test_numbers_become_plain_texts(tmp_path, values, texts):
    path = tmp_path / "a.jsonl"
    rows = [{"prompt": "a", "solution": value} for value in values]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row["solution"] for row in read(path)] == texts


def test_a_path_that_exists_becomes_absolute(tmp_path, monkeypatch):
    """A run can be resumed and judged from another folder."""
    (tmp_path / "a.jsonl").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert data.hub_name_or_path("a.jsonl") == str(tmp_path / "a.jsonl")
    assert data.hub_name_or_path("openai/gsm8k") == "openai/gsm8k"
    assert data.hub_name_or_folder(".") == str(tmp_path)


def test_an_empty_folder(tmp_path, capsys):
    assert "doesn't contain any data files" in fails(capsys, read, tmp_path)


# --------------------------------------------------------------------------------------------------
# Length filter, split and template


def load(tiny, path, *flags):
    parser = argparse.ArgumentParser()
    data.add_data_arguments(parser)
    args = parser.parse_args(["--dataset", str(path), *flags])
    tokenizer = data.load_tokenizer(tiny / "model")
    args.reasoning_tokens = args.reasoning_tokens or data.get_reasoning_tokens(tokenizer)
    return data.load_math_dataset(args, tokenizer)


def make_rows(n):
    """n problems of growing length, each twice."""
    return [
        {"prompt": f"What is {'1 + ' * (i // 2)}1?", "solution": str(i // 2 + 1)}
        for i in range(2 * n)
    ]


def test_length_filter_and_split(tiny, tmp_path):
    path = write(tmp_path / "rows.jsonl", make_rows(20))
    train, held_out, maximum_length = load(tiny, path, "--eval-fraction", "0.3")
    tokenizer = data.load_tokenizer(tiny / "model")
    prompts = [row["prompt"] for row in (*train, *held_out)]
    assert max(len(data.encode_prompt(tokenizer, prompt)) for prompt in prompts) == maximum_length
    assert len(held_out) == 11  # 36 of 40 rows are within the quantile; 30 % of them
    questions = [{prompt[-1]["content"] for prompt in part["prompt"]} for part in (train, held_out)]
    assert not questions[0] & questions[1] and len(questions[0] | questions[1]) == 18
    system_prompt = data.make_system_prompt("zh", "id", TAGS)
    assert train[0]["prompt"][0] == {"role": "system", "content": system_prompt}
    again = load(tiny, path, "--eval-fraction", "0.3")[1]
    assert again.to_list() == held_out.to_list()
    other = load(tiny, path, "--eval-fraction", "0.3", "--seed", "1")[1]
    assert other.to_list() != held_out.to_list()


def test_a_longer_quantile_keeps_more(tiny, tmp_path):
    path = write(tmp_path / "rows.jsonl", make_rows(20))
    sizes = [len(load(tiny, path, "--max-prompt-quantile", q)[0]) for q in ("0.5", "0.9", "1")]
    assert sizes == [20, 36, 40]


def test_no_system_prompt(tiny, tmp_path):
    path = write(tmp_path / "rows.jsonl", [ROW])
    train, held_out, maximum_length = load(tiny, path, "--system-prompt", "none")
    assert train["prompt"] == [[{"role": "user", "content": "What is 1+1?"}]] and held_out is None
    tokenizer = data.load_tokenizer(tiny / "model")
    text = data.render_prompt(tokenizer, train[0]["prompt"])
    assert text == "<｜begin▁of▁sentence｜><｜User｜>What is 1+1?<｜Assistant｜>"


def test_nothing_to_hold_out_or_to_train_on(tiny, tmp_path, capsys):
    one = write(tmp_path / "one.jsonl", [ROW])
    line = fails(capsys, load, tiny, one, "--eval-fraction", "0.5")
    assert "--eval-fraction 0.5 of 1 rows is less than one row" in line
    same = write(tmp_path / "same.jsonl", [ROW] * 4)
    line = fails(capsys, load, tiny, same, "--eval-fraction", "0.5")
    assert "--eval-fraction leaves nothing to train on" in line
    rows = [ROW | {"prompt": f"{i}"} for i in range(5)]
    line = fails(
        capsys, load, tiny, write(tmp_path / "five.jsonl", rows), "--eval-fraction", "0.99"
    )
    assert "--eval-fraction leaves nothing to train on" in line


def test_template(tiny):
    """The tutorial's model's: past thoughts are dropped, and nothing is prefilled."""
    tokenizer = data.load_tokenizer(tiny / "model")
    question = {"role": "user", "content": "What is 1+1?"}
    answer = {"role": "assistant", "content": "<think>I think it's 2.2</think>2"}
    assert data.render_prompt(tokenizer, [question, answer, question]) == (
        "<｜begin▁of▁sentence｜><｜User｜>What is 1+1?<｜Assistant｜>2<｜end▁of▁sentence｜>"
        "<｜User｜>What is 1+1?<｜Assistant｜>"
    )


def test_tags_survive_decoding(tiny):
    """Rewards see the tags: they must not be special tokens, which TRL removes."""
    tokenizer = data.load_tokenizer(tiny / "model")
    ids = tokenizer("<think>a</think>b")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>a</think>b"


def test_tokenizer_keeps_spaces(tiny, tmp_path):
    """The tutorial's model declares LlamaTokenizerFast, and the demo does, too."""
    from transformers import AutoTokenizer

    text = "<think>Baik, mari kita hitung 12 + 7.</think>19"
    tokenizer = data.load_tokenizer(tiny / "model")
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    automatic = AutoTokenizer.from_pretrained(tiny / "model")
    assert automatic.decode(automatic(text)["input_ids"]) == text.replace(" ", "")
    tokenizer.save_pretrained(tmp_path)  # as export.py does: then AutoTokenizer is right, too
    automatic = AutoTokenizer.from_pretrained(tmp_path)
    assert automatic.decode(automatic(text)["input_ids"]) == text


def test_tokenizers_that_cannot_be_used(tiny, tmp_path, capsys):
    line = fails(capsys, data.load_tokenizer, str(tmp_path))
    assert f"cannot load the tokenizer of {tmp_path}" in line
    tokenizer = data.load_tokenizer(tiny / "model")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    line = fails(capsys, data.load_tokenizer, str(tmp_path))
    assert "has no chat template" in line


# --------------------------------------------------------------------------------------------------
# Arguments and files


@pytest.mark.parametrize(
    "limits, text, value",
    [
        ({"kind": int, "least": 1}, "1", 1),
        ({"kind": int, "least": 1}, "10", 10),
        ({"kind": int}, "-5", -5),
        ({"kind": float, "above": 0, "most": 1}, "1", 1.0),
        ({"kind": float, "above": 0, "most": 1}, "1e-9", 1e-9),
        ({"kind": float, "least": 0, "below": 1}, "0", 0.0),
        ({"kind": float, "least": 0, "below": 1}, "0.999", 0.999),
    ],
)
def test_numbers_in_range(limits, text, value):
    assert data.number(**limits)(text) == value


@pytest.mark.parametrize(
    "limits, text, message",
    [
        ({"kind": int, "least": 1}, "0", "'0' is not a whole number at least 1"),
        ({"kind": int, "least": 1}, "1.5", "'1.5' is not a whole number at least 1"),
        ({"kind": int, "least": 1}, "nan", "'nan' is not a whole number at least 1"),
        ({"kind": int, "least": 1}, "", "'' is not a whole number at least 1"),
        ({"kind": int}, "x", "'x' is not a whole number"),
        ({"kind": float, "above": 0, "most": 1}, "0", "not a number at most 1, above 0"),
        ({"kind": float, "above": 0, "most": 1}, "1.01", "not a number at most 1, above 0"),
        ({"kind": float, "least": 0, "below": 1}, "1", "not a number at least 0, below 1"),
        ({"kind": float, "least": 0, "below": 1}, "-0.1", "not a number at least 0, below 1"),
        ({"kind": float}, "nan", "'nan' is not a number"),
        ({"kind": float}, "inf", "'inf' is not a number"),
        ({"kind": float}, "-inf", "'-inf' is not a number"),
    ],
)
def test_numbers_out_of_range(limits, text, message):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        data.number(**limits)(text)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--eval-fraction", "1"], "argument --eval-fraction: '1' is not a number at least 0"),
        (["--max-prompt-quantile", "0"], "argument --max-prompt-quantile: '0' is not a number"),
        (["--seed", "-1"], "argument --seed: '-1' is not a whole number at least 0"),
        (["--reasoning-tokens", "", "x"], "argument --reasoning-tokens: it must not be empty"),
        (["--reasoning-tokens", "x"], "argument --reasoning-tokens: expected 2 arguments"),
        (["--system-prompt", " "], "argument --system-prompt: it must not be empty"),
        (["--target-lang", "xx"], "argument --target-lang: invalid choice: 'xx'"),
        (["--model", "./nowhere"], "argument --model: there is no folder './nowhere'"),
        (["--model", ""], "argument --model: there is no folder ''"),
    ],
)
def test_arguments_are_refused_in_one_line(flags, message):
    done = run_script("data.py", *flags)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_equal_tags_are_refused():
    done = run_script("train.py", "--reasoning-tokens", "<t>", "<t>", "--engine", "trl")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: --reasoning-tokens")


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(KeyError):
        with data.whole_file(path) as name:
            with open(name, "w") as file:
                file.write("half")
            raise KeyError
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]
    with data.whole_file(path) as name:
        with open(name, "w") as file:
            file.write("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(
    "error, line",
    [
        (ValueError("a\n  b\nc"), "a b c"),
        (ValueError(), "ValueError()"),
        (KeyError("x"), "'x'"),
    ],
)
def test_an_error_on_one_line(error, line):
    assert data.one_line(error) == line


def test_versions_name_what_decides():
    versions = data.get_versions()
    assert {"torch", "trl", "transformers", "langid"} <= set(versions) and "vllm" not in versions


def test_data_script_shows_what_the_tutorial_shows(tiny):
    files = ["--model", tiny / "model", "--dataset", tiny / "train.jsonl"]
    done = run_script("data.py", *files, "--eval-fraction", "0.25", "--target-lang", "de")
    assert done.returncode == 0, done.stderr
    shown = ["<think> </think>", "德语", "quantile 0.9", "<｜User｜>", "held out", "'answer': '"]
    for text in [*shown, "maximum length:"]:
        assert text in done.stdout, text


def test_data_script_names_what_is_not_there(tiny):
    done = run_script("data.py", "--model", tiny / "model", "--dataset", "nowhere.jsonl")
    line = f"error: cannot load data set nowhere.jsonl: Unable to find '{ROOT}/nowhere.jsonl'\n"
    assert (done.returncode, done.stderr) == (2, line)
