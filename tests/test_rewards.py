r"""Every branch of every reward, the required order of completions, and a fuzz test.

CPU, seconds:

    bash tests/run.sh -k rewards
"""

import json
import math
import time
from pathlib import Path

import pytest
from conftest import run_script
from hypothesis import given, settings
from hypothesis import strategies as st

import rewards

QUESTION = "Ani has 12 apples in her basket and buys 7 more. How many apples does Ani have now?"
TUTORIAL = list(rewards.REWARDS["tutorial"])
IMPROVED = list(rewards.REWARDS["improved"])


def call(function, text, gold="34", problem=QUESTION):
    return function(
        prompts=[[{"role": "system", "content": "Think."}, {"role": "user", "content": problem}]],
        completions=[[{"role": "assistant", "content": text}]],
        answer=[gold],
    )[0]


@pytest.fixture(autouse=True)
def default_settings():
    yield
    rewards.configure(("<think>", "</think>"), "id")


# --- the tutorial's five, value for value ---------------------------------------------------------


@pytest.mark.parametrize(
    "text, score",
    [
        ("<think>a</think>b", 3.0),
        ("a</think>", 3.0),
        ("a</think>\n\nb\nc", 3.0),
        ("<think>a", 0),
        ("", 0),
        ("a</ think>b", 0),
    ],
)
def test_match_format_exactly(text, score):
    assert call(rewards.match_format_exactly, text) == score


def test_match_format_takes_all_text_after_the_first_end_tag():
    assert rewards.match_format.findall("a</think>b\nc</think>d") == ["b\nc</think>d"]


@pytest.mark.parametrize(
    "text, score",
    [
        ("<think>a</think>b", 1.0),
        ("a</think>b", -0.5),
        ("<think>a", -0.5),
        ("nothing", -2.0),
        ("<think><think>a</think>b", -0.5),
        ("<think>a</think></think>", -0.5),
        ("<think></think><think></think>", -2.0),
    ],
)
def test_match_format_approximately(text, score):
    assert call(rewards.match_format_approximately, text) == score


@pytest.mark.parametrize(
    "text, gold, score",
    [
        ("x</think>34", "34", 5.0),
        ("x</think>\n\n34", "34", 3.5),
        ("x</think> 34 ", "34", 3.5),
        ("x</think>34", " 34", 3.5),
        ("x</think>34.0", "34", 2.0),
        ("x</think>90", "100", 2.0),
        ("x</think>110", "100", 2.0),
        ("x</think>89", "100", 1.5),
        ("x</think>111", "100", 1.5),
        ("x</think>80", "100", 1.5),
        ("x</think>120", "100", 1.5),
        ("x</think>79", "100", -2.5),
        ("x</think>121", "100", -2.5),
        ("x</think>-34", "34", -2.5),
        ("x</think>nan", "34", -2.5),
        ("x</think>Jawabannya \\boxed{34}.", "34", -4.5),
        ("x</think>1,234", "1234", -4.5),
        ("x</think>", "34", -4.5),
        ("x</think>0.0", "0", -4.5),
        ("x</think>0", "0", 5.0),
        ("34", "34", -2.0),
        ("", "34", -2.0),
        ("a</think>b</think>34", "34", -4.5),
        ("x</think>34", "a third", -4.5),
        ("x</think>a third", "a third", 5.0),
    ],
)
def test_check_answer(text, gold, score):
    assert call(rewards.check_answer, text, gold) == score


@pytest.mark.parametrize(
    "text, gold, score",
    [
        ("34", "34", 3.5),
        ("34", " 34 ", 3.5),
        ("It is 34 apples", "34", 3.5),
        ("  -0.5 ", "-0.5", 3.5),
        ("1,234 x", "1234", 3.5),
        ("34, so", "34", 3.5),
        ("12 and 34", "34", -1.5),
        ("so, 34", "34", 0),
        ("Yes. 34", "34", 0),
        ("1.234.567", "1234567", 0),
        ("34", "a third", 0),
        ("none", "34", -2.5),
        ("", "34", -2.5),
    ],
)
def test_check_numbers(text, gold, score):
    assert call(rewards.check_numbers, text, gold) == score


def test_check_numbers_prints_the_first_of_a_batch(capsys):
    rewards.PRINTED_TIMES = 0
    scores = rewards.check_numbers(
        prompts=[[{"content": "Q1"}], [{"content": "Q2"}]],
        completions=[[{"content": "R 1"}], [{"content": "R 2"}]],
        answer=["1", "3"],
    )
    assert scores == [3.5, -1.5]
    expected = "*" * 20 + "问题:\nQ1 \n答案:\n1 \n响应:\nR 1 \n提取的:\n1\n"
    assert capsys.readouterr().out == expected


def test_check_numbers_prints_every_fifth_call(capsys):
    rewards.PRINTED_TIMES = 0
    printed = []
    for number in range(12):
        call(rewards.check_numbers, f"reply {number}")
        out = capsys.readouterr().out
        if out:
            printed.append(number)
            assert QUESTION in out and f"reply {number}" in out and f"提取的:\n{number}" in out
            assert "答案:\n34" in out and out.startswith("*" * 20 + "问题")
    assert printed == [0, 5, 10]


@pytest.mark.parametrize(
    "text, score",
    [
        ("Aku berpikir kalau aku adalah kamu", 5.0),
        ("Hello, How are you", -3.0),
        ("我在这里", -3.0),
        ("Ich denke, also bin ich ein Mensch", -5.0),
        ("", -5.0),
    ],
)
def test_language_reward_of_the_tutorial(text, score):
    assert call(rewards.format_and_language_reward_func, text) == score


def test_language_reward_of_the_tutorial_with_malformed_completions(capsys):
    malformed = [[], ["text"], [{"role": "assistant"}], None]
    scores = rewards.format_and_language_reward_func(completions=malformed)
    assert scores == [-5.0] * 4
    assert capsys.readouterr().out.count("警告") == 4


def test_get_lang():
    assert rewards.get_lang("") == "und"
    assert rewards.get_lang("Hello, How are you") == "en"


def test_rewards_are_named_and_weighted_as_published():
    assert [
        (function.__name__, weight) for function, weight in rewards.REWARDS["tutorial"].items()
    ] == [
        ("match_format_exactly", 1.0),
        ("match_format_approximately", 1.0),
        ("check_answer", 1.0),
        ("check_numbers", 1.0),
        ("format_and_language_reward_func", 1.0),
    ]
    assert [
        (function.__name__, weight) for function, weight in rewards.REWARDS["improved"].items()
    ] == [
        ("answer_reward", 2.0),
        ("language_reward", 1.0),
        ("format_reward", 0.5),
    ]


def test_the_tutorials_maximum_is_paid_for_saying_nothing_in_indonesian():
    best = "<think>34" + " yang" * 6 + "</think>34"
    assert sum(call(function, best) for function in TUTORIAL) == 17.5


def test_the_tutorials_own_checks_run():
    done = run_script("rewards.py")
    assert done.returncode == 0, done.stderr
    assert "['Hence, the solution is 2.']" in done.stdout
    assert "id Aku berpikir" in done.stdout and "提取的:\n1" in done.stdout
    assert "answer_reward [1.0, 0.0]" in done.stdout and "format_reward [1.0, 0.0]" in done.stdout


# --- settings -------------------------------------------------------------------------------------


def test_configure_sets_tags_and_language():
    rewards.configure(("[THINK]", "[/THINK]"), "de")
    assert (rewards.reasoning_start, rewards.reasoning_end) == ("[THINK]", "[/THINK]")
    assert rewards.target_lang == "de" and not rewards.think_is_prefilled
    text = "[THINK]a[/THINK]34"
    assert call(rewards.match_format_exactly, text) == 3.0
    assert call(rewards.match_format_approximately, text) == 1.0
    assert call(rewards.check_answer, text) == 5.0
    assert call(rewards.answer_reward, text) == call(rewards.format_reward, text) == 1.0
    assert call(rewards.answer_reward, "<think>a</think>34") == 0.0


def test_tags_that_look_like_special_tokens_are_not_removed():
    rewards.configure(("<|begin_of_thought|>", "<|end_of_thought|>"), "id")
    text = f"<|begin_of_thought|>{ID}<|end_of_thought|>\\boxed{{34}}<|im_end|>"
    assert [call(function, text) for function in IMPROVED] == [1.0, 1.0, 1.0]
    assert rewards.split_reasoning(text) == (ID, "\\boxed{34}")


def test_template_that_prefills_the_start_tag():
    rewards.configure(("<think>", "</think>"), "id", prefilled=True)
    assert call(rewards.format_reward, "a</think>b") == 1.0
    assert call(rewards.format_reward, "<think>a</think>b") == 0.0
    assert call(rewards.format_reward, "</think>b") == 0.0
    assert rewards.is_correct("a</think>34", "34") is True


@pytest.mark.parametrize(
    "text, parts",
    [
        ("<think>a</think>b", ("a", "b")),
        (" <think>a</think> b", ("a", " b")),
        ("a</think>b</think>c", ("a</think>b", "c")),
        ("<think>a", ("a", None)),
        (" <think>a", ("a", None)),
        ("a <think>", ("a <think>", None)),
        ("<think>a</think>b<｜end▁of▁sentence｜>", ("a", "b")),
        ("<think>a</think>b</s>", ("a", "b")),
        ("<think>a <| b </think>c |> d", ("a <| b", "c |> d")),
        ("", ("", None)),
    ],
)
def test_split_reasoning(text, parts):
    assert rewards.split_reasoning(text) == parts


# --- the answer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, gold, correct",
    [
        # the last box
        ("\\boxed{34}", "34", True),
        ("Jawabannya adalah \\boxed{34}.", "34", True),
        ("\\boxed{35} no, \\boxed{34}", "34", True),
        ("\\boxed{34} no, \\boxed{35}", "34", False),
        ("\\boxed{34} because 3 + 4 = 7", "34", True),
        ("\\boxed{34}. Answer: 35", "34", True),
        ("\\boxed {34}", "34", True),
        ("$$\\boxed{x = 34}$$", "34", True),
        ("\\boxed{x = 34 = y}", "34", False),
        ("\\boxed{34}, and \\boxed{", "34", True),
        ("\\boxed{\\boxed{34}}", "34", True),
        ("\\boxed{{3}4}", "34", True),
        ("\\boxed{34} then \\boxed{3", "34", True),
        ("\\boxed", "34", False),
        ("\\boxed{}", "34", False),
        ("34 \\boxed{}", "34", False),
        ("34 \\boxed{x}", "34", False),
        # what stands around the number
        ("\\boxed{\\text{34}}", "34", True),
        ("\\boxed{\\textbf{34}}", "34", True),
        ("\\boxed{\\mathbf{34}}", "34", True),
        ("\\boxed{\\textbf{\\text{34}}}", "34", True),
        ("\\boxed{\\boldsymbol{34}}", "34", True),
        ("\\boxed{34 \\text{ apel}}", "34", True),
        ("\\boxed{34 \\text{ cm}^2}", "34", True),
        ("\\boxed{34 m^{3}}", "34", True),
        ("\\boxed{34 ft^2}", "34", True),
        ("\\boxed{34 \\text{m}^2}", "34", True),
        ("\\boxed{34xy^2}", "34", False),
        ("\\boxed{34 {x}^2}", "34", False),
        ("\\boxed{34 \\text{ ft}^{2}}", "34", True),
        ("\\boxed{34x^2}", "34", False),
        ("\\boxed{34 cm^2}, keliling 20 cm", "34", True),  # the box had lost its "}"
        ("\\boxed{34 \\text{ m}^2}, keliling 20 m", "34", True),
        ("\\boxed{34\\%}", "34", True),
        ("\\boxed{34%}", "34", True),
        ("\\boxed{\\$34}", "34", True),
        ("\\boxed{'34'}", "34", True),
        ("\\boxed{34^\\circ}", "34", True),
        ("\\boxed{34^{\\circ}}", "34", True),
        ("\\boxed{34_{10}}", "34", True),
        ("\\boxed{34_8}", "34", True),
        ("\\boxed{- 34}", "-34", True),
        ("\\boxed{\\left(34\\right)}", "34", False),
        ("34°", "34", True),
        ("Rp1.440", "1440", True),
        ("Rp. 1.440", "1440", True),
        # fractions
        ("\\boxed{\\frac{1}{2}}", "0.5", True),
        ("\\boxed{\\frac{1}{2}}", "2", False),
        ("\\boxed{\\dfrac{1}{2}}", "0.5", True),
        ("\\boxed{-\\frac{1}{2}}", "-0.5", True),
        ("\\boxed{\\frac{-1}{2}}", "-0.5", True),
        ("\\boxed{\\frac34}", "0.75", True),
        ("\\boxed{3/4}", "0.75", True),
        ("3/4", "0.75", True),
        ("Answer: 3/4", "0.75", True),
        ("Jawabannya adalah 10 : 2 = 5.", "5", True),  # division, as Indonesians write it
        ("Jawabannya adalah 10 : 2 = 5.", "10", False),
        ("Jawaban: 20 ÷ 4 = 5 apel", "5", True),
        ("Jawaban akhir: .5", "0.5", True),
        ("Jawaban akhir: .5", "5", False),
        ("\\boxed{.5}", "0.5", True),
        ("Jadi dia membayar US$34.", "34", True),
        ("1/0", "1", False),
        ("\\boxed{1/0}", "1", False),
        ("\\boxed{3\\frac{1}{2}}", "15.5", False),
        # no single number
        ("\\boxed{0.125}", "125", False),
        ("\\boxed{3\\sqrt{2}}", "2", False),
        ("\\boxed{2\\pi}", "2", False),
        ("\\boxed{\\frac{\\pi}{4}}", "4", False),
        ("\\boxed{3+4}", "4", False),
        ("\\boxed{6\\times 7}", "7", False),
        ("\\boxed{7!}", "7", False),
        ("\\boxed{1.0e3}", "1", False),
        ("\\boxed{(3, 4)}", "4", False),
        ("\\boxed{34, 35}", "35", False),
        ("\\boxed{1_000}", "100", False),
        # the last label
        ("Answer: 34 (from 12 + 22)", "34", True),
        ("Answer: 35. Answer: 34.", "35", True),
        ("Answer: 35.\nAnswer: 34 or 36.", "34", True),
        ("Answer = 34, 35", "34", True),
        ("The answer is 34, not 35", "34", True),
        ("Jawaban: **34** apel, bukan 35", "34", True),
        ("Jawabannya adalah 34, sebab 12 + 22", "34", True),
        ("Jawabannya ialah 34, sebab 12 + 22", "34", True),
        ("Jadi, jawaban akhirnya adalah **34**, bukan 13.", "34", True),
        ("Jawaban akhir: 34 (dari 3 + 9)", "34", True),
        ("Jawaban yang benar adalah 34, bukan 35", "34", True),
        ("Jawabannya adalah 2 + 17 = 19.", "19", True),
        ("The answer is 3 + 4 = 7", "7", True),
        ("The answer is 3 + 4 = 2 + 5 = 7, as 8 is wrong", "7", True),
        ("Jawaban: 3 \\times 4 = 12", "12", True),
        ("Jawaban: 3 \\cdot 4 = 12, bukan 13", "12", True),
        ("Answer: 5*4 = 20", "20", True),
        ("Jawabannya adalah 2 x 3 = 6", "6", True),
        ("The answer is 50% of 80 = 40", "40", True),
        ("The answer is -34 and 35", "-34", True),
        ("Answer: 2^{10}", "10", False),
        ("**Jawaban:**\n\n1. Hitung 12 + 22.\n2. Hasilnya 34.", "34", True),
        ("Final answer: Chester will need 20 dozens of eggs for 60 days.", "20", True),
        ("Final answer: Chester will need 20 dozens of eggs for 60 days.", "60", False),
        ("Jawaban akhirnya: Ani punya -20 apel, bukan 60", "-20", True),
        ("Final answer: Ani has 3\nFinal answer: Ani has 34, not 35", "34", True),
        ("Final answer: see below\n34", "34", True),
        ("Đáp án: 34 quả táo, không phải 35", "34", True),
        ("Đáp số là 34, vì 12 + 22", "34", True),
        ("Câu trả lời là **34**, không phải 13.", "34", True),
        # a conclusion after the label
        ("Đáp án: 20\nVậy có 11 quả", "11", True),
        ("Jawabannya adalah 20 buah.\n\nJadi yang merah adalah 11 buah.", "20", False),
        ("Jawabannya adalah 20 buah.\n\nJadi yang merah adalah 11 buah.", "11", True),
        ("Jawaban akhir: 34 apel.\n\nJadi, Ani punya 34 apel dalam 5 hari.", "34", True),
        ("Jawaban akhir: 34 apel.\n\nJadi, Ani punya 34 apel dalam 5 hari.", "5", False),
        ("Đáp án đúng là 34, không phải 13.", "34", True),
        ("Answer: 20\n\n**So** there are 11", "11", True),
        ("Answer: 20\nThus there are 11", "11", True),
        ("Answer: 20\nHence there are 11", "11", True),
        ("Answer: 20\nTherefore there are 11", "11", True),
        ("Answer: 20\nDengan demikian ada 11", "11", True),
        ("Answer: 20\nSo the answer is 34, not 35", "34", True),
        ("Answer: 20\nSome more: 11", "20", True),
        ("Answer: 20\nThere are 11 more", "20", True),
        ("Answer: 20\nSo that is it", "20", True),
        # the last number
        ("12 + 22 is 34.", "34", True),
        ("34<｜end▁of▁sentence｜>", "34", True),
        ("34 < 35, jadi 34</s>", "34", True),
        ("34 or 35", "34", False),
        ("35", "34", False),
        ("2*10", "210", False),
        ("2^{10}", "10", False),
        ("x34", "34", False),
        ("5-3", "3", True),
        ("no number", "34", False),
        ("", "34", False),
        # what a numeral can mean
        ("1.440", "1440", True),
        ("1.440", "1.44", True),
        ("1,440", "1440", True),
        ("spending $6,000", "6", False),
        ("spending $6,000", "6000", True),
        ("1\\,440", "1440", True),
        ("1{,}440", "1440", True),
        ("\\boxed{1 000 000}", "1000000", True),
        ("1.234.567", "1234567", True),
        ("1,234,567.5", "1234567.5", True),
        ("1.234.567,5", "1234567.5", True),
        ("1,23,4", "1234", False),
        ("3,5", "3.5", True),
        ("3.5", "3.5", True),
        ("\\boxed{0.125}", "0.125", True),
        ("\\boxed{0,125}", "0.125", True),
        ("-7", "-7", True),
        ("−7", "-7", True),
        ("–7", "-7", True),
        ("\\boxed{60 km/jam}", "60", True),
        ("\\boxed{34\\text{ m/s}}", "34", True),
        ("\\boxed{34/x}", "34", False),
        ("\\boxed{Rp 1.250.000,-}", "1250000", True),
        ("\\boxed{34 €}", "34", True),
        ("\\boxed{34.000₫}", "34000", True),
        ("\\boxed{34~\\text{apel}}", "34", True),
        ("\\boxed{34\\quad}", "34", True),
        ("\\boxed{1\u00a0440}", "1440", True),
        ("\\boxed{1\u202f440}", "1440", True),
        ("3–7", "7", True),
        ("3–7", "-7", False),
        ("7", "-7", False),
        ("1", "1,000", False),
        ("1.000", "1,000", True),
        ("34", " 34 ", True),
        ("答案是34。", "34", True),
        ("共34個", "34", True),
        ("x34", "34", False),
    ],
)
def test_is_correct(answer, gold, correct):
    assert rewards.is_correct(f"<think>{gold}</think>{answer}", gold) is correct


@pytest.mark.parametrize(
    "text, whole, cut",
    [
        ("<think>x</think>\\boxed{34}", True, True),
        ("<think>x</think>Jawabannya 34", True, True),
        ("<think>34</think>35", False, False),
        ("<think>\\boxed{34}</think>Selesai.", False, False),
        ("<think>34</think>35<think>x</think>34", True, True),
        ("<think>x</think>34</think>35", False, False),
        ("x</think>34", True, True),
        ("<think>Jadi \\boxed{34}", True, True),
        ("<think>Jawabannya adalah 34.", True, True),
        ("<think>Jadi Ani punya 34", True, False),
        ("Ani punya 12 + 22 = 34 apel.", True, False),
        ("\\boxed{34}", True, True),
        ("Answer: 34, not 35", True, True),
        ("Answer: 20\nSo there are 34", True, False),
        ("\\boxed{34", True, False),
        ("34, lalu 35", False, False),
        ("", False, False),
    ],
)
def test_the_answer_counts_wherever_it_stands(text, whole, cut):
    assert rewards.is_correct(text, "34") is whole
    assert rewards.is_correct(text, "34", truncated=True) is cut


def test_extract_answer():
    assert rewards.extract_answer("34") == {34.0}
    assert rewards.extract_answer("34", truncated=True) == set()
    assert rewards.extract_answer("<think>x</think>34", truncated=True) == {34.0}
    assert rewards.extract_answer("1.440") == {1440.0, 1.44}


@pytest.mark.parametrize(
    "gold, correct",
    [
        ("x + y", None),
        ("nan", None),
        ("1,5", None),
        ("", None),
        ("1440", True),
        ("1,440", True),
        ("1,440.0", True),
        (" 1440\n", True),
        ("-1440", False),
        ("14,40", None),
    ],
)
def test_golds(gold, correct):
    assert rewards.is_correct("<think>x</think>1440", gold) is correct
    score = call(rewards.answer_reward, "<think>x</think>1440", gold)
    assert score is None if correct is None else score == float(correct)


@pytest.mark.parametrize(
    "text, score",
    [
        ("<think>x</think>34", 1.0),
        ("<think>x</think>35", 0.0),
        ("a</think>35</think>34", 1.0),
        ("34 34 34", 0.0),
        ("\\boxed{34}", 0.0),
    ],
)
def test_answer_reward_is_paid_after_an_end_tag_only(text, score):
    assert call(rewards.answer_reward, text) == score


@pytest.mark.parametrize(
    "text, score",
    [
        ("<think>a</think>b", 1.0),
        (" <think>a</think>b\n", 1.0),
        ("a</think>b", 0.0),
        ("<think></think>b", 0.0),
        ("<think> \n</think>b", 0.0),
        ("<think>a</think>", 0.0),
        ("<think>a</think> ", 0.0),
        ("<think>a</think><｜end▁of▁sentence｜>", 0.0),
        ("<think>a</think> <｜end▁of▁sentence｜>", 0.0),
        ("<think>a</think>b<think>c</think>d", 0.0),
        ("<think><think>a</think>b", 0.0),
        ("<think>a</think>b</think>c", 0.0),
        ("x <think>a</think>b", 0.0),
        ("<think>a", 0.0),
        ("", 0.0),
    ],
)
def test_format_reward(text, score):
    assert call(rewards.format_reward, text) == score
    assert rewards.is_well_formed(text) is bool(score)


@pytest.mark.parametrize(
    "answer, score",
    [
        ("Jawaban akhir: \\boxed{9}", 1.0),
        ("Jadi 9 apel.\n\nJawaban: 9 apel.\n\nJawaban akhir: \\boxed{9}", 1.0),
        ("2 + 2 + 2 + 2 + 2 + 2 + 2 = 14. \\boxed{14}", 1.0),
        ("Budi membeli 3 apel dan 5 jeruk, jadi seluruhnya 3 + 5 = 8 buah: \\boxed{8}.", 1.0),
        ("Jawaban akhir: \\boxed{9}\n\n" * 4, 0.0),
        ("Jawaban akhir:\n\n" * 50, 0.0),
        ("\\boxed{9} " * 50, 0.0),
        ("\\boxed{9}" * 50, 0.0),
        ("答案是九。" * 50, 0.0),
        ("9\n" * 50, 0.0),
        ("9," * 50, 0.0),
    ],
)
def test_format_reward_is_less_for_an_answer_given_again_and_again(answer, score):
    text = f"<think>a b</think>{answer}"
    assert call(rewards.format_reward, text) == pytest.approx(score, abs=0.01)
    assert rewards.is_well_formed(text)


# --- the language ---------------------------------------------------------------------------------

ID = (
    "Baik, mari kita selesaikan soal ini langkah demi langkah. Pertama, kita tahu bahwa Ani "
    "memiliki dua belas apel di keranjangnya. Kemudian dia membeli tujuh apel lagi dari pasar. "
    "Jadi kita harus menjumlahkan kedua bilangan tersebut, yaitu 12 + 7, sehingga hasilnya sama "
    "dengan 19."
)
EN = (
    "Okay, let us solve this problem step by step. First, we know that Ani has twelve of them in "
    "the beginning. Then she gets seven others. So we have to add the two numbers, that is 12 + 7, "
    "and therefore the result must be equal to 19."
)
MS = (
    "Baiklah, mari kita selesaikan masalah ini langkah demi langkah. Mula-mula, kita tahu bahawa "
    "Ani mempunyai dua belas biji epal di dalam bakulnya. Selepas itu dia membeli tujuh biji epal "
    "lagi dari kedai. Oleh itu kita perlu menambah kedua-dua nombor, iaitu 12 + 7, maka jawapannya "
    "ialah 19."
)
JV = (
    "Ayo digarap soal iki siji mbaka siji. Kapisan, awake dhewe ngerti yen Ani duwe rolas apel ing "
    "kranjange. Banjur dheweke tuku pitung apel maneh saka pasar. Dadi kudu dijumlahake angka loro "
    "kasebut, yaiku 12 + 7, mula asile padha karo 19."
)
DE = (
    "Gut, wir lösen diese Aufgabe Schritt für Schritt. Zuerst wissen wir, dass Ani zwölf Äpfel im "
    "Korb hat. Danach kauft sie noch sieben dazu, also müssen wir die beiden Zahlen zusammenzählen."
)
ZH = (
    "好的，我们一步一步来解决这个问题。首先，我们知道安妮的篮子里有十二个苹果。"
    "然后她又在市场上买了七个苹果。所以我们要把这两个数加起来，12 + 7，因此结果是 19。"
)
OTHER = (
    "Sekarang saya periksa kembali perhitungan ini agar tidak salah. Kalau tujuh diambil dari "
    "sembilan belas, maka sisanya dua belas, persis seperti jumlah semula. Dengan demikian "
    "perhitungan tadi memang benar dan tidak perlu diubah lagi."
)
PARAGRAPH = " ".join((ID + " " + OTHER).split()[:60])
SENTENCE = ID.split(".")[1] + ". "
LATEX = "\\[12 + 7 = 19\\] \\(x = 12\\) $$\\frac{38}{2} = 19$$ \\text{x} \\[x + y = 19\\] " * 3
CODE = "```python\napples = 12\nfor i in range(7):\n    apples = apples + 1\nprint(apples)\n```"

TEXTS = Path(__file__).parent / "language_texts.jsonl"
THOUGHTS = [json.loads(line) for line in TEXTS.read_text("utf-8").splitlines()]


def shares(lang):
    texts = [text for text in THOUGHTS if text["lang"] == lang]
    assert len(texts) >= 60
    return [rewards.language_share(text["thought"], text["problem"]) for text in texts]


def test_indonesian_thoughts_earn_all():
    earned = shares("id")
    assert sum(share >= 0.9 for share in earned) >= 0.99 * len(earned)


def test_malay_thoughts_earn_half_at_most():
    earned = shares("ms")
    assert sum(share <= 0.5 for share in earned) >= 0.95 * len(earned)


def test_malay_is_a_target_as_well():
    rewards.configure(("<think>", "</think>"), "ms")
    malay, indonesian = shares("ms"), shares("id")
    assert sum(share >= 0.9 for share in malay) >= 0.95 * len(malay)
    assert sum(share <= 0.5 for share in indonesian) >= 0.9 * len(indonesian)


@pytest.mark.parametrize(
    "thought, share",
    [
        (ID, 1.0),
        (OTHER, 1.0),
        (MS, 0.5),
        (JV, 0.5),
        (EN, 0.0),
        (DE, 0.0),
        (ZH, 0.0),
        (LATEX, 0.0),
        (CODE, 0.0),
        (QUESTION + " " + QUESTION, 0.0),
        ("", 0.0),
        ("kita harus menghitung jumlah apel milik", 0.0),
        ("kita harus menghitung jumlah apel milik Ani a", 0.0),
        ("kita harus menghitung jumlah apel milik Ani sekarang", 1.0),
    ],
)
def test_language_share(thought, share):
    assert rewards.language_share(thought, QUESTION) == share


NOTES = """1. Hitung harga {fish} sub: 40
2. Hitung harga {combo} sub: 3 x 40 = 120, {thrice} lipat
3. Jadi total harga untuk {lunch}: 40 + 120 = 160"""
LUNCH = "How much is lunch if a fish sub costs 40, and a combo sub thrice as much in total?"
LEFT = NOTES.format(fish="fish", combo="combo", thrice="thrice", lunch="lunch")
TRANSLATED = NOTES.format(fish="roti ikan", combo="roti isi", thrice="tiga", lunch="makan siang")


def test_words_of_the_problem_that_were_left_in_english_cost():
    foreign = [word for word in LEFT.split() if word.strip(":,") in "fish sub combo thrice lunch"]
    assert len(foreign) == 6
    untranslated = len(foreign) / len(rewards.find_words(LEFT))
    assert rewards.language_share(LEFT) == rewards.language_share(TRANSLATED) == 1.0
    paid = rewards.language_share(LEFT, LUNCH)
    assert paid == pytest.approx(1 - (untranslated - 0.1) / 0.4)
    assert paid < 0.5
    assert rewards.language_share(TRANSLATED.replace(" sub:", ":"), LUNCH) == 1.0
    one = TRANSLATED.replace(" sub:", ":", 1)  # 1 of 17 words: a tenth is free
    assert rewards.language_share(one, LUNCH) == 1.0


@pytest.mark.parametrize(
    "problem, thought",
    [
        (
            "A cook needs 3 kilogram of tomato, 2 kilogram of salmon and 1 kilogram of tofu.",
            "Koki perlu 3 kilogram tomat, 2 kilogram salmon, dan 1 kilogram tahu, jadi "
            "jumlahnya 3 + 2 + 1 = 6 kilogram.",
        ),
        (
            "The bus leaves the hotel, and 12 people enter it at the bank. How many are inside?",
            "Bus berangkat dari hotel dengan nol orang, lalu 12 orang naik di depan bank, jadi di "
            "dalam bus ada 12 orang.",
        ),
        (
            "Find the first digit of n if n is congruent to 3 modulo 7.",
            "Misalkan digit pertama adalah a. Karena n sama dengan 3 modulo 7, kita coba digit 1, "
            "lalu digit berikutnya.",
        ),
        (
            "Lara sells 8 jars of jam per day, and works 5 hours. How many jars per hour?",
            "Lara menjual 8 stoples selai per hari dan bekerja selama 5 jam, jadi per jam ia "
            "menjual 8 : 5 = 1,6 stoples.",
        ),
        (
            "The main tank holds 40 liter of water and loses 2 liter per minute.",
            "Tangki utama berisi 40 liter air dan kehilangan 2 liter per menit, jadi air habis "
            "setelah 40 : 2 = 20 menit.",
        ),
        (
            "Ana spends 20 dollars on books and 15 on bags. How much does she spend?",
            "Ana membelanjakan 20 dolar untuk buku, lalu 15 dolar untuk tas. Jadi ia membelanjakan "
            "35 dolar.",
        ),
        (
            "Half of the 40 pupils in the class are girls. How many girls are there?",
            "Ada 40 pelajar di kelas itu. Separuh dari mereka perempuan, jadi ada 20 perempuan.",
        ),
    ],
)
def test_honest_thoughts_on_english_problems_earn_all(problem, thought):
    assert rewards.language_share(thought, problem) >= 0.9


@pytest.mark.parametrize(
    "problem, lang, words",
    [
        ("Ani pays in total 3 kg of Rice per film to Budi.", "id", {"pays"}),
        ("Ani membayar total 3 kg beras untuk sebuah film.", "id", set()),
        ("Ani membayar sejumlah wang untuk dua buah epal.", "id", set()),
        ("甲有三个苹果，乙有五个苹果，一共有几个？", "id", set()),
        ("Ani pays 3 apples.", "en", set()),
    ],
)
def test_names_and_the_targets_own_words_may_stay(problem, lang, words):
    assert rewards.get_foreign_words(problem, lang) == words


def test_language_reward_is_paid_for_finished_thoughts_only():
    assert call(rewards.language_reward, f"<think>{ID}</think>") == 1.0
    assert call(rewards.language_reward, f"<think>{ID}") == 0.0


def test_language_reward_is_less_where_langid_hears_another_language():
    notes = """1. Hitung subtotal subs: 2 x $7.50 = $15.00
2. Hitung subtotal bags of chips: 2 x $1.50 = $3.00
3. Hitung subtotal cookies: 2 x $1.00 = $2.00
4. Total biaya items: $15.00 + $3.00 + $2.00 = $20.00
5. Hitung delivery fee: 20% of $20.00 = 0.20 x $20.00 = $4.00"""
    assert rewards.get_lang(f"<think>{notes}</think>29") == "tl"
    assert rewards.language_share(notes) == 1.0
    assert call(rewards.language_reward, f"<think>{notes}</think>29") == 0.5
    notes = """  1. Jumlah siswa: 40
  2. Jumlah siswa yang takut warna blue: 40 / 2 = 20
  3. Jumlah siswa yang hanya takut warna green: 20 / 4 = 5
  4. Jumlah siswa yang hanya takut warna yellow: 40 - 20 - 5 = 15"""
    assert rewards.get_lang(f"<think>{notes}</think>15") == "ms"
    assert rewards.language_share(notes) == 1.0
    assert call(rewards.language_reward, f"<think>{notes}</think>15") == 0.5


def test_langid_hears_indonesian_in_indonesian_thoughts():
    texts = [f"<think>{text['thought']}</think>12" for text in THOUGHTS if text["lang"] == "id"]
    heard = [rewards.get_lang(text) for text in texts]
    assert heard.count("id") >= 0.95 * len(heard) and set(heard) <= {"id", "ms"}


def test_language_share_counts_windows():
    english = " ".join(EN.split()[:16])
    indonesian = " ".join(OTHER.split()[:16])
    assert rewards.language_share(f"{english} {indonesian}") == 0.5
    assert rewards.language_share(f"{english} {indonesian} {' '.join(ID.split()[:16])}") == 2 / 3


def test_windows_are_of_16_words():
    half = " ".join(EN.split()[:20] + OTHER.split()[:20])
    assert rewards.language_share(half) == 0.5
    half = " ".join(EN.split()[:12] + OTHER.split()[:12])
    assert rewards.language_share(half) == 0.5


def test_at_most_16_windows_are_read(monkeypatch):
    monkeypatch.setattr(rewards, "repetition_factor", lambda words: 1.0)
    indonesian = OTHER.split()[:16]
    english = EN.split()[:16]
    assert rewards.language_share(" ".join((indonesian + english) * 8)) == 0.5
    assert rewards.language_share(" ".join((indonesian + english) * 8 + indonesian)) == 1.0


def test_of_a_long_thought_every_second_window_is_read():
    words = " ".join(text["thought"] for text in THOUGHTS if text["lang"] == "id").split()
    english = [word for word in EN.split() if word.isalpha()]
    assert rewards.language_share(" ".join(words[: 16 * 16])) == 1.0
    assert rewards.language_share(" ".join(words[: 16 * 40] + english[:16])) > 0.9


@pytest.mark.parametrize(
    "count, sizes",
    [
        (8, [8]),
        (16, [16]),
        (23, [23]),
        (25, [12, 13]),
        (40, [20, 20]),
        (41, [13, 14, 14]),
        (48, [16, 16, 16]),
        (50, [16, 17, 17]),
    ],
)
def test_windows_are_of_nearly_equal_length(count, sizes):
    words = list(range(count))
    windows = rewards.make_windows(words, 16)
    assert [len(window) for window in windows] == sizes
    assert [word for window in windows for word in window] == words


def test_relatives_are_told_apart_by_different_words():
    neutral = "Ani membeli tujuh dan dua lagi dari ibu lalu kita tambah semua itu dengan sepuluh"
    assert rewards.language_share(neutral) == 1.0
    assert rewards.language_share(neutral + " nombor") == 0.5
    assert rewards.language_share(neutral + " nombor nomor") == 1.0
    assert rewards.language_share(neutral + " nombor nombor nomor") == 1.0
    assert rewards.language_share(neutral + " nombor iaitu nomor") == 0.5


def test_own_words_belong_to_one_language_of_a_family():
    for family in rewards.FAMILIES:
        own_words = [word for words in family.values() for word in words.split()]
        assert len(own_words) == len(set(own_words))
        assert all(word == word.lower() and len(word) > 1 for word in own_words)
        assert set(family) <= set(rewards.get_identifier("id").nb_classes) | {"id", "ms", "jv"}


def test_another_family_is_one_entry(monkeypatch):
    czech = "Nejprve víme že Anna má dvanáct jablek a potom koupí ještě sedm takže je musíme sečíst"
    monkeypatch.setattr(
        rewards, "FAMILIES", [{"cs": "že ještě takže", "sk": "že-sk ešte takže-sk"}]
    )
    rewards.get_family.cache_clear()
    rewards.get_identifier.cache_clear()
    rewards.configure(("<think>", "</think>"), "sk")
    assert rewards.language_share(czech) == 0.5
    rewards.configure(("<think>", "</think>"), "cs")
    assert rewards.language_share(czech) == 1.0
    monkeypatch.undo()
    rewards.get_family.cache_clear()
    rewards.get_identifier.cache_clear()


@pytest.mark.parametrize("lang, thought", [("de", DE), ("zh", ZH), ("en", EN), ("jv", JV)])
def test_target_language_is_a_setting(lang, thought):
    rewards.configure(("<think>", "</think>"), lang)
    assert rewards.language_share(thought) > 0.9
    assert rewards.language_share(OTHER) <= 0.5
    assert call(rewards.format_and_language_reward_func, thought) == 5.0
    assert call(rewards.format_and_language_reward_func, OTHER) == -5.0


@pytest.mark.parametrize(
    "thought, words",
    [
        ("Dua apel, 2 apel!", ["dua", "apel", "apel"]),
        ("x dan y_2", ["dan"]),
        ("$x dan y$ lalu $5 atau $6", ["lalu", "atau"]),
        ("$$satu\ndua$$ tiga", ["tiga"]),
        ("\\(satu\\) dua \\[tiga\n\\] empat", ["dua", "empat"]),
        ("\\( \\(satu\\) dua", ["dua"]),
        ("\\frac{satu}{dua} tiga", ["tiga"]),
        ("\\text{satu} \\textbf{dua}", ["satu", "dua"]),
        ("`satu` dua ```tiga``` empat ```lima", ["dua", "empat"]),
        ("\\[\\text{satu}\\]", []),
        ("我们 ab", ["我", "们", "ab"]),
    ],
)
def test_words(thought, words):
    assert rewards.find_words(thought) == words


def test_dollar_amounts_are_no_mathematics():
    prose = (
        "Harga sebuah buku adalah {0}5 dan harga sebuah tas adalah dua puluh dua kali lebih mahal, "
        "sehingga Ani harus membayar jumlah yang cukup besar untuk membeli keduanya di pasar, "
        "yaitu menjadi {0}35 setelah potongan harga diberikan oleh penjual itu."
    )
    assert rewards.language_share(prose.format("$")) == 1.0
    assert rewards.language_share(prose.format("Rp ")) == 1.0
    assert rewards.language_share("$the first one is x and the other one is y$ " * 3) == 0.0


@pytest.mark.parametrize(
    "words, problem, left",
    [
        ("a b c d e f", "a b c d e f", ""),
        ("a b c d e", "a b c d e", "a b c d e"),
        ("x a b c d e f y", "a b c d e f", "x y"),
        ("a b c d e f g h", "z a b c d e f g h z", ""),
        ("a b c d e x f", "a b c d e f", "a b c d e x f"),
        ("a b c d e f", "", "a b c d e f"),
    ],
)
def test_what_is_copied_from_the_problem_is_dropped(words, problem, left):
    assert rewards.drop_copied(words.split(), problem.split()) == left.split()


def test_a_copied_indonesian_problem_is_no_thought():
    problem = THOUGHTS[1]["problem"] + " " + OTHER
    assert rewards.language_share(problem) == 1.0
    assert rewards.language_share(problem, problem) == 0.0
    assert rewards.language_share(problem.upper().replace(" ", "\n"), problem) == 0.0
    assert rewards.language_share(f"{problem} {ID}", problem) == 1.0
    assert call(rewards.language_reward, f"<think>{problem}</think>34", problem=problem) == 0.0


# --- repetition -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [20, 60, 200, 600, 1900])
def test_honest_text_earns_the_same_at_any_length(count):
    words = " ".join(text["thought"] for text in THOUGHTS if text["lang"] == "id").split()
    for start in range(0, len(words) - count, 200):
        assert rewards.repetition_factor(words[start : start + count]) == 1.0


@pytest.mark.parametrize(
    "thought",
    [
        "yang " * 20,
        "yang " * 2000,
        "jadi begitu " * 30,
        SENTENCE * 4,
        SENTENCE * 12,
        SENTENCE * 200,
        (ID.split(".")[0] + ". " + SENTENCE) * 10,
        PARAGRAPH * 10,
        (ID + OTHER) * 8,
    ],
)
def test_saying_it_again_and_again_earns_nothing(thought):
    assert rewards.language_share(thought, QUESTION) == 0.0


def test_repetition_is_judged_in_windows_of_64_words():
    words = [str(number) for number in range(48)] * 2
    assert rewards.repetition_factor(words) == 1.0  # 96 are two windows, 95 are one
    assert rewards.repetition_factor(words[:95]) < 0.7


def test_a_loop_within_an_honest_thought_costs_its_share():
    loop = " ".join(["lagi"] * 300)
    assert rewards.language_share(f"{ID} {OTHER} {loop}") < 0.4
    assert rewards.language_share(f"{PARAGRAPH} {PARAGRAPH}") == 1.0
    assert 0.1 < rewards.language_share(" ".join([PARAGRAPH] * 4)) < 0.5


@pytest.mark.parametrize(
    "words, share",
    [
        ("a b c", 1.0),
        ("a a a a", 1 / 2),
        ("a b a b a b", 2 / 4),
        ("a b c d a b c d", 4 / 6),
        ("a x b a y b", 1.0),
    ],
)
def test_fresh_share(words, share):
    assert rewards.fresh_share(words.split()) == share


@pytest.mark.parametrize(
    "value, score",
    [(0.0, 0.0), (0.4, 0.0), (0.45, 0.25), (0.5, 0.5), (0.6, 1.0), (1.0, 1.0)],
)
def test_rise(value, score):
    assert rewards.rise(value, 0.4, 0.6) == pytest.approx(score)


def numbered(fresh, total):
    """`total` + 2 words of which `fresh` triples are different."""
    return [str(number) for number in range(fresh + 1)] + [str(fresh)] * (total - fresh + 1)


@pytest.mark.parametrize(
    "fresh, factor",
    [(20, 0.0), (24, 0.0), (27, 0.25), (30, 0.5), (36, 1.0), (40, 1.0)],
)
def test_repetition_in_one_window(fresh, factor):
    words = numbered(fresh - 1, 60)
    assert rewards.fresh_share(words) == pytest.approx(fresh / 60)
    assert rewards.repetition_factor(words) == pytest.approx(factor)


@pytest.mark.parametrize("times, factor", [(1, 1.0), (2, 1.0), (3, 0.685), (4, 0.261), (6, 0.0)])
def test_repetition_of_a_paragraph(times, factor):
    paragraph = [str(number) for number in range(60)]
    assert rewards.repetition_factor(paragraph * times) == pytest.approx(factor, abs=1e-3)


# --- the order of completions ---------------------------------------------------------------------

COMPLETIONS = {  # the gold is 19
    "Indonesian": f"<think>{ID}</think>Jawabannya adalah \\boxed{{19}}.",
    "Indonesian, bare number": f"<think>{ID}</think>\n\n19",
    "Indonesian, long": f"<think>{ID} {OTHER}</think>Jawabannya adalah \\boxed{{19}}.",
    "half Indonesian": f"<think>{ID} {EN}</think>Jawabannya adalah \\boxed{{19}}.",
    "Malay": f"<think>{MS}</think>Jawapannya ialah \\boxed{{19}}.",
    "Javanese": f"<think>{JV}</think>Wangsulane \\boxed{{19}}.",
    "English": f"<think>{EN}</think>The answer is \\boxed{{19}}.",
    "English, Indonesian answer": f"<think>{EN}</think>{OTHER} Jawabannya \\boxed{{19}}.",
    "Chinese": f"<think>{ZH}</think>答案是 \\boxed{{19}}。",
    "LaTeX only": f"<think>{LATEX}</think>\\boxed{{19}}",
    "code only": f"<think>{CODE}</think>\\boxed{{19}}",
    "copied question": f"<think>{QUESTION} {QUESTION}</think>\\boxed{{19}}",
    "one word repeated": f"<think>{'yang ' * 60}</think>\\boxed{{19}}",
    "one sentence repeated": f"<think>{SENTENCE * 12}</think>\\boxed{{19}}",
    "one paragraph repeated": f"<think>{PARAGRAPH * 10}</think>\\boxed{{19}}",
    "empty thought": "<think></think>19",
    "no thought": "</think>19",
    "two thoughts": f"<think>{EN}</think>x<think>{EN}</think>\\boxed{{19}}",
    "wrong Indonesian": f"<think>{ID}</think>Jawabannya adalah \\boxed{{20}}.",
    "wrong English": f"<think>{EN}</think>The answer is \\boxed{{20}}.",
    "wrong, answer first": f"19 <think>{EN}</think>\\boxed{{20}}",
    "Indonesian, no answer": f"<think>{ID}</think>Jawabannya jelas.",
    "truncated Indonesian": f"<think>{ID}",
    "truncated, opens with the answer": f"19 {ID}",
    "truncated English": f"<think>{EN}",
    "empty": "",
}


def total(name, kind="improved"):
    parts = rewards.REWARDS[kind].items()
    return sum(weight * call(function, COMPLETIONS[name], "19") for function, weight in parts)


@pytest.mark.parametrize(
    "better, worse",
    [
        ("Indonesian", "Malay"),
        ("Malay", "English"),
        ("Javanese", "English"),
        ("Indonesian", "half Indonesian"),
        ("half Indonesian", "English"),
        ("Indonesian", "English, Indonesian answer"),
        ("Indonesian", "LaTeX only"),
        ("Indonesian", "code only"),
        ("Indonesian", "copied question"),
        ("Indonesian", "one word repeated"),
        ("Indonesian", "one sentence repeated"),
        ("half Indonesian", "one sentence repeated"),
        ("Indonesian", "empty thought"),
        ("Indonesian", "two thoughts"),
        ("English", "empty thought"),
        ("English", "no thought"),
        ("English", "two thoughts"),
        ("English", "wrong Indonesian"),
        ("Chinese", "wrong Indonesian"),
        ("LaTeX only", "wrong Indonesian"),
        ("empty thought", "wrong Indonesian"),
        ("wrong Indonesian", "wrong English"),
        ("wrong English", "wrong, answer first"),
        ("wrong English", "truncated Indonesian"),
        ("wrong English", "truncated, opens with the answer"),
        ("Indonesian, no answer", "truncated Indonesian"),
        ("wrong Indonesian", "empty"),
    ],
)
def test_ranking(better, worse):
    assert total(better) > total(worse) + 0.05


@pytest.mark.parametrize(
    "one, other",
    [
        ("Indonesian", "Indonesian, bare number"),
        ("Indonesian", "Indonesian, long"),
        ("English", "Chinese"),
        ("English", "English, Indonesian answer"),
        ("English", "copied question"),
        ("English", "one word repeated"),
        ("English", "one sentence repeated"),
        ("English", "one paragraph repeated"),
        ("truncated Indonesian", "empty"),
        ("truncated, opens with the answer", "truncated English"),
        ("wrong Indonesian", "Indonesian, no answer"),
    ],
)
def test_ranking_of_equals(one, other):
    assert total(one) == pytest.approx(total(other), abs=1e-9)


def test_totals():
    assert total("Indonesian") == 3.5
    assert total("Malay") == 2.75  # langid hears Malay
    assert total("English") == 2.5
    assert total("wrong Indonesian") == 1.5


def test_the_tutorials_rewards_rank_wrong_as_the_docstring_says():
    assert total("Indonesian", "tutorial") == total("wrong Indonesian", "tutorial")
    assert total("Malay", "tutorial") < total("English", "tutorial")


def test_english_in_latex_text_is_english():
    parts = (EN + EN.upper()).split(",")
    english = " ".join(f"\\text{{{part}}}" for part in parts)
    thought = ID.split(".")[0] + " " + english
    assert call(rewards.language_reward, f"<think>{thought}</think>19") < 0.5


# --- time and robustness --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "piece",
    [
        "\\(",
        "\\[",
        "\\boxed{",
        "\\boxed{a}{",
        "\\text{",
        "\\frac{",
        "\\a{",
        "{",
        "}",
        "$",
        "$ a",
        "$$",
        "`",
        "```",
        "1,",
        "1 / ",
        "- ",
        "<|",
        "answer",
        "answer=",
        "answer is 3 + 4 = ",
        "final answer: a",
        "jadi\n",
        "\n ",
        "_{1",
        "yang ",
        "</think>",
    ],
)
def test_no_text_takes_long(piece):
    rewards.language_share(ID)  # loads langid
    text = piece * 16_000
    for completion in (text, text + "\\boxed{34}", "Answer: " + text):
        for function in (rewards.is_correct, rewards.language_share):
            started = time.process_time()
            function(completion, "34")
            assert time.process_time() - started < 0.2 * 5, function  # goal: 0.2 s on a free core


def test_language_reward_takes_at_most_3_ms_a_completion():
    thought = " ".join(text["thought"] for text in THOUGHTS if text["lang"] == "id")
    batch = [[{"content": f"<think>{thought}</think>19"}]] * 20
    prompts = [[{"content": QUESTION}]] * 20
    rewards.language_reward(prompts=prompts, completions=batch)  # loads langid
    started = time.process_time()
    rewards.language_reward(prompts=prompts, completions=batch)
    assert (time.process_time() - started) / 20 < 0.003 * 3  # a shared machine is slower


PIECES = st.sampled_from(
    ["<think>", "</think>", "\\boxed", "{", "}", "19", "1.440", "\\frac{1}{0}", "/", "answer:"]
    + ["<｜end▁of▁sentence｜>", "yang ", "the ", "我", "$", "`", "\n", "-", ",", ".", "^", "=", ID]
)
BOUNDS = {
    "match_format_exactly": (0, 3),
    "match_format_approximately": (-2, 1),
    "check_answer": (-4.5, 5),
    "check_numbers": (-2.5, 3.5),
    "format_and_language_reward_func": (-5, 5),
    "answer_reward": (0, 1),
    "language_reward": (0, 1),
    "format_reward": (0, 1),
}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(PIECES, st.text(max_size=20)), max_size=12).map("".join),
    st.one_of(st.text(max_size=8), st.integers().map(str)),
)
def test_fuzz(text, gold):
    for function in TUTORIAL + IMPROVED:
        scores = function(
            prompts=[[{"content": QUESTION}]] * 2,
            completions=[[{"content": text}]] * 2,
            answer=[gold] * 2,
        )
        assert len(scores) == 2 and scores[0] == scores[1]
        low, high = BOUNDS[function.__name__]
        if scores[0] is None:
            assert function is rewards.answer_reward
        else:
            assert math.isfinite(scores[0]) and low <= scores[0] <= high
    assert rewards.is_correct(text, gold, truncated=True) in (True, False, None)


# --- measured, never paid -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, score",
    [
        ("Baik, mari kita hitung bersama jumlah seluruh apel yang dia miliki.", 1.0),
        ("Okay, let us count all the apples that she has.", 0.0),
        ("", 0.0),
    ],
)
def test_indonesian_rate(text, score):
    assert rewards.indonesian_rate(completions=[[{"content": text}]]) == [score]


@pytest.mark.parametrize(
    "text, gold, score",
    [
        ("<think>x</think>34", "34", 1.0),
        ("<think>x</think>35", "34", 0.0),
        ("so it is \\boxed{34}", "34", 1.0),
        ("The answer is 34.", "34", 1.0),
        ("and that makes 34", "34", 0.0),
        ("<think>x</think>34", "x + y", 0.0),
    ],
)
def test_accuracy_of_a_text_that_may_have_been_cut(text, gold, score):
    assert rewards.accuracy(completions=[[{"content": text}]], answer=[gold]) == [score]


def test_accuracy_reads_the_last_number_of_a_text_that_was_not_cut():
    rewards.configure(("<think>", "</think>"), "id", max_length=9)
    completions = [[{"content": "and that makes 34"}]] * 3
    scores = rewards.accuracy(
        completions, ["34", "34", "35"], completion_ids=[[7] * 8, [7] * 9, [7] * 8]
    )
    assert scores == [1.0, 0.0, 0.0]


def test_what_is_measured_is_not_paid():
    for functions in rewards.REWARDS.values():
        assert not set(functions) & set(rewards.MEASURED)
