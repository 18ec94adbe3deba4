"""The two READMEs say the same, and what they show works.

bash tests/run.sh -k readme
"""

import re

import pytest
from conftest import ROOT

import rewards

ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh.md").read_text(encoding="utf-8")


def find_code(text):
    """Everything in code: commands, names, flags."""
    blocks = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    blocks = [line.split("   #")[0] for line in blocks]
    return sorted(blocks), sorted(set(re.findall(r"`([^`\n]+)`", text)))


def find_numbers(text):
    text = re.sub(r"`[^`\n]*`|https?://\S+", " ", text)
    return sorted(re.findall(r"\d[\d,.]*\d|\d", text))


def test_both_have_the_same_commands_and_names():
    assert find_code(ENGLISH) == find_code(CHINESE)


def test_both_have_the_same_numbers():
    assert find_numbers(ENGLISH) == find_numbers(CHINESE)


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_length_and_width(text):
    lines = text.splitlines()
    assert len(lines) <= 200
    for line in lines:
        assert len(line) <= 100 or line.startswith("|"), line


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_what_is_linked_exists(text):
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_names_of_the_table_exist(text):
    table = re.findall(r"^\| [^|]+\| (`\w+\.py`.*) \|$", text, re.MULTILINE)
    assert len(table) > 5
    for row in table:
        sources = "".join((ROOT / name).read_text() for name in re.findall(r"`(\w+\.py)`", row))
        for name in re.findall(r"`([a-z_]+)`", row):
            assert f"def {name}(" in sources, name


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_the_wrapper_for_verl(text):
    """verl calls it by these names, with a sample each."""
    names = {"rewards": rewards}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
    rewards.configure(("<think>", "</think>"), "id")
    thought = "Baik, mari kita hitung bersama jumlah seluruh apel yang dia miliki sekarang ini."
    text = f"<think>{thought}</think>\\boxed{{3}}"
    score = names["compute_score"](
        data_source="gsm8k", solution_str=text, ground_truth="3", extra_info={"question": "1+2?"}
    )
    assert score == pytest.approx(3.5, abs=0.01)
    assert names["compute_score"]("gsm8k", text, "4") == pytest.approx(1.5, abs=0.01)
