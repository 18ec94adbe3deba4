"""Data formats, system prompts, reasoning tokens, length filter, split and chat template. CPU, seconds.

    bash tests/run.sh -k data
"""
import json

import pytest
from conftest import ROOT, run_script

import data


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_system_prompts_are_the_tutorials():
    assert data.make_system_prompt("zh") == "你接到一个问题。\n请思考这个问题并提供你的解题过程。\n你必须用印尼语思考。"
    assert data.make_system_prompt("en") == ("You are given a problem.\nThink about the problem and provide your working out.\n"
                                             "You must think in Bahasa Indonesia.")
    assert data.make_system_prompt("zh", "vi").endswith("你必须用越南语思考。")
    assert data.make_system_prompt("Denke auf {en}!", "de") == "Denke auf German!"
    assert "\\boxed{" in data.make_system_prompt("boxed")


def test_extract_hash_answer():
    assert data.extract_hash_answer("He pays 3*4=<<3*4=12>>12\n#### 1,012") == "1,012"
    assert data.extract_hash_answer("34") == "34"


def test_formats(tmp_path):
    dapo = [{"prompt": "What is 1+1?", "solution": "2", "source": "x"}, {"prompt": "What is 2+2?", "solution": 4, "source": "x"}]
    gsm8k = [{"question": "What is 1+1?", "answer": "so it is\n#### 2"}, {"question": "What is 2+2?", "answer": "#### 4"}]
    folder = tmp_path / "folder"
    folder.mkdir()
    for row, name in zip(dapo, "ab"):
        write(folder / f"{name}.jsonl", [row | {"solution": str(row["solution"])}])
    (tmp_path / "a.json").write_text(json.dumps(gsm8k))
    from datasets import Dataset
    Dataset.from_list(gsm8k).to_parquet(str(tmp_path / "a.parquet"))
    for path in (write(tmp_path / "dapo.jsonl", [row | {"solution": str(row["solution"])} for row in dapo]), write(tmp_path / "gsm.jsonl", gsm8k),
                 tmp_path / "a.json", tmp_path / "a.parquet", folder):
        assert data.load_rows(str(path)).to_list() == [{"prompt": "What is 1+1?", "answer": "2"}, {"prompt": "What is 2+2?", "answer": "4"}], path


def test_a_downloaded_hub_folder(tmp_path):
    """CONFIG/SPLIT-*.parquet: the configuration is a sub-folder, and the test split is not read with the train split."""
    (tmp_path / "main").mkdir()
    write(tmp_path / "main" / "train-0.jsonl", [{"question": "a", "answer": "#### 1"}])
    write(tmp_path / "main" / "test-0.jsonl", [{"question": "b", "answer": "#### 2"}])
    for folder in (tmp_path, tmp_path / "main"):
        assert data.load_rows(str(folder), "main", "train").to_list() == [{"prompt": "a", "answer": "1"}]
        assert data.load_rows(str(folder), "main", "test").to_list() == [{"prompt": "b", "answer": "2"}]
        with pytest.raises(ValueError, match="Unknown split .validation"):
            data.load_rows(str(folder), "main", "validation")
    (tmp_path / "flat" / "data").mkdir(parents=True)
    write(tmp_path / "flat" / "data" / "train-00000-of-00001.jsonl", [{"question": "a", "answer": "#### 1"}])
    assert data.load_rows(str(tmp_path / "flat")).to_list() == [{"prompt": "a", "answer": "1"}]


@pytest.mark.parametrize("make, message", [
    (lambda p: p / "no.jsonl", "Unable to find"), (lambda p: write(p / "empty.jsonl", []), "empty"), (lambda p: p, "doesn't contain any data files"),
    (lambda p: write(p / "null.jsonl", [{"prompt": None, "solution": "1"}]), "every prompt must be text"),
    (lambda p: write(p / "gold.jsonl", [{"prompt": "a", "solution": None}]), "every solution be there"),
    (lambda p: write(p / "messages.jsonl", [{"prompt": [{"role": "user", "content": "a"}], "solution": "1"}]), "every prompt must be text"),
    (lambda p: write(p / "cols.jsonl", [{"text": "a"}]), "needed: prompt and solution"),
    (lambda p: (p / "bad.jsonl").write_text("{not json") and p / "bad.jsonl", "JSON parse error")])
def test_unusable_data(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        data.load_rows(str(make(tmp_path)))


def test_reasoning_tokens_length_filter_split_and_template(tiny, tmp_path):
    tokenizer = data.load_tokenizer(tiny / "model")
    assert data.get_reasoning_tokens(tokenizer) == ("<think>", "</think>")
    rows = [{"prompt": f"What is {'1 + ' * (i // 2)}1?", "solution": str(i // 2 + 1)} for i in range(40)]  # each question twice
    import argparse
    parser = argparse.ArgumentParser()
    data.add_data_arguments(parser)
    args = parser.parse_args(["--dataset", str(write(tmp_path / "rows.jsonl", rows)), "--eval-fraction", "0.3"])
    train, held_out, maximum_length = data.load_math_dataset(args, tokenizer)
    lengths = [len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)) for row in (*train, *held_out)]
    assert max(lengths) == maximum_length and len(held_out) == 11  # 36 of 40 rows are within the quantile; 30 % of them
    questions = [{prompt[-1]["content"] for prompt in part["prompt"]} for part in (train, held_out)]
    assert not questions[0] & questions[1] and len(questions[0] | questions[1]) == 18
    assert train[0]["prompt"][0] == {"role": "system", "content": data.make_system_prompt("zh")}
    # the template of the tutorial's model: past thoughts are dropped, and nothing is prefilled
    text = tokenizer.apply_chat_template([{"role": "user", "content": "What is 1+1?"}, {"role": "assistant", "content": "<think>I think it's 2.2</think>2"},
                                          {"role": "user", "content": "What is 1+1?"}], tokenize=False, add_generation_prompt=True)
    assert text == ("<｜begin▁of▁sentence｜><｜User｜>What is 1+1?<｜Assistant｜>2<｜end▁of▁sentence｜><｜User｜>What is 1+1?<｜Assistant｜>")
    # rewards see the tags: they must not be special tokens, which TRL removes when it decodes
    assert tokenizer.decode(tokenizer("<think>a</think>b")["input_ids"], skip_special_tokens=True) == "<think>a</think>b"


def test_tokenizer_keeps_spaces(tiny, tmp_path):
    """The tutorial's model declares LlamaTokenizerFast, and so does the demo: AutoTokenizer drops their spaces."""
    from transformers import AutoTokenizer
    text = "<think>Baik, mari kita hitung 12 + 7.</think>19"
    for load, kept in ((data.load_tokenizer, text), (AutoTokenizer.from_pretrained, text.replace(" ", ""))):
        tokenizer = load(tiny / "model")
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == kept
    data.load_tokenizer(tiny / "model").save_pretrained(tmp_path)  # as export.py does: then AutoTokenizer is right, too
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_data_script_shows_what_the_tutorial_shows(tiny):
    done = run_script("data.py", "--model", tiny / "model", "--dataset", tiny / "train.jsonl", "--eval-fraction", "0.25", "--target-lang", "de")
    assert done.returncode == 0, done.stderr
    for text in ("<think> </think>", "德语", "maximum length:", "0.9 quantile", "<｜User｜>", "held out", "'answer': '"):
        assert text in done.stdout
    done = run_script("data.py", "--model", tiny / "model", "--dataset", "nowhere.jsonl")
    assert (done.returncode, done.stderr) == (2, f"error: cannot load data set nowhere.jsonl: Unable to find '{ROOT}/nowhere.jsonl'\n")
