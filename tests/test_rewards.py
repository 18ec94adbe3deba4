"""Every branch of every reward, the required order of canonical completions, and a fuzz test. CPU, seconds.

    bash tests/run.sh -k rewards
"""
import math

import pytest
from hypothesis import given, settings, strategies as st

import rewards

QUESTION = "Ani has 12 apples in her basket and buys 7 more at the market. How many apples does Ani have now?"


def call(function, text, gold="34"):
    return function(prompts=[[{"role": "user", "content": QUESTION}]], completions=[[{"role": "assistant", "content": text}]], answer=[gold])[0]


# --- the tutorial's five, value for value ----------------------------------------------------------------------------

@pytest.mark.parametrize("text, score", [
    ("<think>a</think>b", 3.0), ("a</think>", 3.0), ("a</think>\n\nb\nc", 3.0), ("<think>a", 0), ("", 0), ("a</ think>b", 0)])
def test_match_format_exactly(text, score):
    assert call(rewards.match_format_exactly, text) == score


@pytest.mark.parametrize("text, score", [
    ("<think>a</think>b", 1.0), ("a</think>b", -0.5), ("<think>a", -0.5), ("nothing", -2.0), ("<think><think>a</think>b", -0.5),
    ("<think>a</think></think>", -0.5), ("<think></think><think></think>", -2.0)])
def test_match_format_approximately(text, score):
    assert call(rewards.match_format_approximately, text) == score


@pytest.mark.parametrize("text, gold, score", [
    ("x</think>34", "34", 5.0), ("x</think>\n\n34", "34", 3.5), ("x</think> 34 ", "34", 3.5), ("x</think>34.0", "34", 2.0),
    ("x</think>31", "34", 2.0), ("x</think>37", "34", 2.0), ("x</think>28", "34", 1.5), ("x</think>40", "34", 1.5), ("x</think>50", "34", -2.5),
    ("x</think>-34", "34", -2.5), ("x</think>nan", "34", -2.5), ("x</think>Jawabannya \\boxed{34}.", "34", -4.5), ("x</think>1,234", "1234", -4.5),
    ("x</think>", "34", -4.5), ("x</think>0.0", "0", -4.5), ("x</think>0", "0", 5.0), ("34", "34", -2.0), ("", "34", -2.0),
    ("a</think>b</think>34", "34", -4.5), ("x</think>34", "a third", -4.5), ("x</think>a third", "a third", 5.0)])
def test_check_answer(text, gold, score):
    assert call(rewards.check_answer, text, gold) == score


@pytest.mark.parametrize("text, gold, score", [
    ("34", "34", 3.5), ("It is 34 apples", "34", 3.5), ("  -0.5 ", "-0.5", 3.5), ("1,234 x", "1234", 3.5), ("34, so", "34", 3.5), ("12 and 34", "34", -1.5),
    ("so, 34", "34", 0), ("Yes. 34", "34", 0), ("1.234.567", "1234567", 0), ("34", "a third", 0), ("none", "34", -2.5), ("", "34", -2.5)])
def test_check_numbers(text, gold, score):
    assert call(rewards.check_numbers, text, gold) == score


def test_check_numbers_prints_every_fifth_call(capsys):
    rewards.PRINTED_TIMES = 0
    for number in range(7):
        call(rewards.check_numbers, f"answer {number}")
    out = capsys.readouterr().out
    assert out.count(QUESTION) == 2 and "answer 0" in out and "answer 5" in out and "answer 3" not in out


@pytest.mark.parametrize("text, score", [
    ("Aku berpikir kalau aku adalah kamu", 5.0), ("Hello, How are you", -3.0), ("我在这里", -3.0), ("Ich denke, also bin ich ein Mensch", -5.0), ("", -5.0)])
def test_language_reward_of_the_tutorial(text, score):
    assert call(rewards.format_and_language_reward_func, text) == score


def test_language_reward_of_the_tutorial_with_malformed_completions(capsys):
    assert rewards.format_and_language_reward_func(completions=[[], ["text"], [{"role": "assistant"}], None]) == [-5.0] * 4
    assert capsys.readouterr().out.count("警告") == 4


def test_tutorial_order_and_maximum():
    assert [f.__name__ for f in rewards.TUTORIAL_REWARDS] == [
        "match_format_exactly", "match_format_approximately", "check_answer", "check_numbers", "format_and_language_reward_func"]
    best = '<think>34' + ' yang' * 6 + '</think>34'  # saying nothing in Indonesian is the optimum
    assert sum(call(f, best) for f in rewards.TUTORIAL_REWARDS) == 17.5


# --- the improved three ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("answer, gold, correct", [
    ("\\boxed{34}", "34", True), ("Jawabannya adalah \\boxed{34}.", "34", True), ("\\boxed{35} no, \\boxed{34}", "34", True),
    ("\\boxed{34} because 3 + 4 = 7", "34", True), ("$$\\boxed{x = 34}$$", "34", True), ("\\boxed{\\text{34}}", "34", True), ("\\boxed{34 \\text{ apel}}", "34", True),
    ("Answer: 34 (from 12 + 22)", "34", True), ("Jawaban: **34** apel, bukan 35", "34", True), ("Jawabannya adalah 34, sebab 12 + 22", "34", True), ("Jadi, jawaban akhirnya adalah **34**, bukan 13.", "34", True), ("Jawaban akhir: 34 (dari 3 + 9)", "34", True),
    ("12 + 22 is 34.", "34", True), ("34<｜end▁of▁sentence｜>", "34", True), ("34 < 35, jadi 34</s>", "34", True),
    ("1.440", "1440", True), ("1,440", "1440", True), ("1\\,440", "1440", True), ("1{,}440", "1440", True), ("1.234.567", "1234567", True),
    ("3,5", "3.5", True), ("3.5", "3.5", True), ("-7", "-7", True), ("−7", "-7", True), ("7", "-7", False), ("\\boxed{\\frac{1}{2}}", "0.5", True),
    ("\\boxed{\\frac{1}{2}}", "2", False), ("3/4", "0.75", True), ("Jawabannya adalah 2 + 17 = 19.", "19", True), ("The answer is 3 + 4 = 7", "7", True), ("Jawaban: 3 \\times 4 = 12", "12", True),
    ("Answer: 5*4 = 20", "20", True), ("2*10", "210", False), ("\\boxed{1 000 000}", "1000000", True), ("1", "1,000", False), ("1.000", "1,000", True), ("2^{10}", "10", False), ("5-3", "3", True), ("\\boxed{}", "34", False),
    ("\\boxed{34^\\circ}", "34", True), ("\\boxed{34^{\\circ}}", "34", True), ("34°", "34", True), ("\\boxed{34_{10}}", "34", True), ("Rp1.440", "1440", True),
    ("\\boxed{\\frac34}", "0.75", True), ("Jawabannya adalah 2 x 3 = 6", "6", True), ("The answer is 50% of 80 = 40", "40", True),
    ("\\boxed{0.125}", "125", False), ("\\boxed{0.125}", "0.125", True), ("\\boxed{3\\sqrt{2}}", "2", False), ("\\boxed{2\\pi}", "2", False),
    ("\\boxed{\\frac{\\pi}{4}}", "4", False), ("\\boxed{3+4}", "4", False), ("\\boxed{6\\times 7}", "7", False), ("\\boxed{7!}", "7", False), ("\\boxed{1.0e3}", "1", False),
    ("\\boxed{(3, 4)}", "4", False), ("\\boxed{34, 35}", "35", False), ("\\boxed{3\\frac{1}{2}}", "15.5", False), ("\\boxed{1_000}", "100", False), ("\\boxed{- 34}", "-34", True),
    ("\\boxed{34 \\text{ cm}^2}", "34", True), ("\\boxed{34\\%}", "34", True), ("\\boxed{\\$34}", "34", True), ("\\boxed{'34'}", "34", True), ("\\boxed{-\\frac{1}{2}}", "-0.5", True),
    ("**Jawaban:**\n\n1. Hitung 12 + 22.\n2. Hasilnya 34.", "34", True), ("Jawaban yang benar adalah 34, bukan 35", "34", True),
    ("35", "34", False), ("34 or 35", "34", False), ("no number", "34", False), ("", "34", False), ("1/0", "1", False), ("34", " 34 ", True)])
def test_is_correct(answer, gold, correct):
    assert rewards.is_correct(f"<think>{gold}</think>{answer}", gold) is correct


def test_answer_reward_without_end_of_thought_or_with_unusable_gold():
    assert call(rewards.answer_reward, "34 34 34") == 0.0
    assert call(rewards.answer_reward, "<think>x</think>34", "x + y") is None
    assert call(rewards.answer_reward, "<think>x</think>nan", "nan") is None
    assert call(rewards.answer_reward, "<think>x</think>15", "1,5") is None
    assert call(rewards.answer_reward, "<think>x</think>1440", "1,440.0") == 1.0
    assert call(rewards.answer_reward, "a</think>35</think>34") == 1.0


@pytest.mark.parametrize("text, score", [
    ("<think>a</think>b", 1.0), (" <think>a</think>b\n", 1.0), ("a</think>b", 0.0), ("<think></think>b", 0.0), ("<think> \n</think>b", 0.0), ("<think>a</think>", 0.0),
    ("<think>a</think> ", 0.0), ("<think>a</think>b<think>c</think>d", 0.0), ("<think><think>a</think>b", 0.0), ("x <think>a</think>b", 0.0), ("<think>a", 0.0), ("", 0.0)])
def test_format_reward(text, score):
    assert call(rewards.format_reward, text) == score


def test_format_reward_where_the_template_prefills_the_tag(monkeypatch):
    monkeypatch.setattr(rewards, "think_is_prefilled", True)
    assert call(rewards.format_reward, "a</think>b") == 1.0
    assert call(rewards.format_reward, "<think>a</think>b") == 0.0


ID = ("Baik, mari kita selesaikan soal ini langkah demi langkah. Pertama, kita tahu bahwa Ani memiliki dua belas apel di keranjangnya. Kemudian dia "
      "membeli tujuh apel lagi dari pasar. Jadi kita harus menjumlahkan kedua bilangan tersebut, yaitu 12 + 7, sehingga hasilnya sama dengan 19.")
EN = ("Okay, let us solve this problem step by step. First, we know that Ani has twelve of them in the beginning. Then she gets seven others. So we have "
      "to add the two numbers, that is 12 + 7, and therefore the result must be equal to 19.")
MS = ("Baiklah, mari kita selesaikan masalah ini langkah demi langkah. Mula-mula, kita tahu bahawa Ani mempunyai dua belas biji epal di dalam bakulnya. "
      "Selepas itu dia membeli tujuh biji epal lagi dari kedai. Oleh itu kita perlu menambah kedua-dua nombor, iaitu 12 + 7, maka jawapannya ialah 19.")
JV = ("Ayo digarap soal iki siji mbaka siji. Kapisan, awake dhewe ngerti yen Ani duwe rolas apel ing kranjange. Banjur dheweke tuku pitung apel maneh saka "
      "pasar. Dadi kudu dijumlahake angka loro kasebut, yaiku 12 + 7, mula asile padha karo 19.")
ZH = "好的，我们一步一步来解决这个问题。首先，我们知道安妮的篮子里有十二个苹果。然后她又在市场上买了七个苹果。所以我们要把这两个数加起来，12 + 7，因此结果是 19。"
LATEX = "\\[12 + 7 = 19\\] \\(x = 12\\) \\(y = 7\\) $$\\frac{38}{2} = 19$$ \\[x + y = 19\\] " * 3
CODE = "```python\napples = 12\nfor i in range(7):\n    apples = apples + 1\nprint(apples)\n```"
OTHER = ("Sekarang saya periksa kembali perhitungan ini agar tidak salah. Kalau tujuh diambil dari sembilan belas, maka sisanya dua belas, persis seperti "
         "jumlah semula. Dengan demikian perhitungan tadi memang benar dan tidak perlu diubah lagi.")
MORE = ("Soal ini sebenarnya sederhana, tetapi saya ingin memastikan setiap langkahnya. Angka dua belas terdiri atas satu puluhan dan dua satuan, sedangkan "
        "angka tujuh hanya mempunyai satuan. Apabila kedua satuan digabungkan, kita memperoleh sembilan, lalu puluhan yang tersisa ditambahkan di depannya. "
        "Cara lain ialah menghitung maju dari dua belas sebanyak tujuh kali: tiga belas, empat belas, lima belas, enam belas, tujuh belas, delapan belas, dan "
        "akhirnya sembilan belas. Karena dua cara yang berbeda memberikan nilai yang sama, saya yakin dengan kesimpulan tersebut.")

CANONICAL = {  # name: completion; the gold is 19
    "correct Indonesian": f"<think>{ID}</think>Jawabannya adalah \\boxed{{19}}.",
    "correct Indonesian, bare number": f"<think>{ID}</think>\n\n19",
    "correct Indonesian, very long": f"<think>{ID} {OTHER} {MORE}</think>Jawabannya adalah \\boxed{{19}}.",
    "correct, half Indonesian": f"<think>{ID} {EN}</think>Jawabannya adalah \\boxed{{19}}.",
    "correct Malay": f"<think>{MS}</think>Jawapannya ialah \\boxed{{19}}.",
    "correct Javanese": f"<think>{JV}</think>Wangsulane \\boxed{{19}}.",
    "correct English": f"<think>{EN}</think>The answer is \\boxed{{19}}.",
    "correct English, Indonesian answer": f"<think>{EN}</think>{OTHER} Jadi jawabannya adalah \\boxed{{19}}.",
    "correct Chinese": f"<think>{ZH}</think>答案是 \\boxed{{19}}。",
    "correct, LaTeX only": f"<think>{LATEX}</think>\\boxed{{19}}",
    "correct, code only": f"<think>{CODE}</think>\\boxed{{19}}",
    "correct, copied question": f"<think>{QUESTION} {QUESTION}</think>\\boxed{{19}}",
    "correct, one word repeated": f"<think>{'yang ' * 60}</think>\\boxed{{19}}",
    "correct, one sentence repeated": f"<think>{(ID.split('.')[1] + '. ') * 12}</think>\\boxed{{19}}",
    "correct, empty thought": "<think></think>19",
    "correct, no thought": "</think>19",
    "correct, two thoughts": f"<think>{EN}</think>x<think>{EN}</think>\\boxed{{19}}",
    "wrong Indonesian": f"<think>{ID}</think>Jawabannya adalah \\boxed{{20}}.",
    "wrong English": f"<think>{EN}</think>The answer is \\boxed{{20}}.",
    "wrong, answer first": f"19 <think>{EN}</think>\\boxed{{20}}",
    "Indonesian, no answer": f"<think>{ID}</think>Jawabannya jelas.",
    "truncated Indonesian": f"<think>{ID}",
    "truncated, opens with the answer": f"19 {ID}",
    "truncated English": f"<think>{EN}",
    "empty": "",
}


def total(name, functions=None, weights=None):
    functions, weights = functions or rewards.IMPROVED_REWARDS, weights or rewards.IMPROVED_WEIGHTS
    return sum(w * call(f, CANONICAL[name], "19") for f, w in zip(functions, weights))


@pytest.mark.parametrize("better, worse", [
    ("correct Indonesian", "correct Malay"), ("correct Malay", "correct English"), ("correct Javanese", "correct English"),
    ("correct Indonesian", "correct, half Indonesian"), ("correct, half Indonesian", "correct English"),
    ("correct Indonesian", "correct English, Indonesian answer"), ("correct Indonesian", "correct, LaTeX only"),
    ("correct Indonesian", "correct, code only"), ("correct Indonesian", "correct, copied question"),
    ("correct Indonesian", "correct, one word repeated"), ("correct Indonesian", "correct, one sentence repeated"),
    ("correct, half Indonesian", "correct, one sentence repeated"), ("correct Indonesian", "correct, empty thought"),
    ("correct Indonesian", "correct, two thoughts"), ("correct English", "correct, empty thought"), ("correct English", "correct, no thought"),
    ("correct English", "correct, two thoughts"), ("correct English", "wrong Indonesian"), ("correct Chinese", "wrong Indonesian"),
    ("correct, LaTeX only", "wrong Indonesian"), ("correct, empty thought", "wrong Indonesian"), ("wrong Indonesian", "wrong English"), ("wrong English", "wrong, answer first"),
    ("wrong English", "truncated Indonesian"), ("wrong English", "truncated, opens with the answer"),
    ("Indonesian, no answer", "truncated Indonesian"), ("wrong Indonesian", "empty")])
def test_ranking(better, worse):
    assert total(better) > total(worse) + 0.05


@pytest.mark.parametrize("one, other", [
    ("correct Indonesian", "correct Indonesian, bare number"), ("correct English", "correct Chinese"), ("correct English", "correct English, Indonesian answer"),
    ("truncated Indonesian", "empty"), ("truncated, opens with the answer", "truncated English"), ("wrong Indonesian", "Indonesian, no answer")])
def test_ranking_of_equals(one, other):
    assert total(one) == pytest.approx(total(other), abs=1e-9)


def test_long_correct_indonesian_keeps_most_of_its_reward():
    assert total("correct Indonesian, very long") > total("correct English") + 0.5


def test_tutorial_rewards_rank_wrong_as_the_docstring_says():
    tutorial = lambda name: total(name, rewards.TUTORIAL_REWARDS, [1] * 5)
    assert tutorial("correct Indonesian") == tutorial("wrong Indonesian")
    assert tutorial("correct Malay") < tutorial("correct English")


def test_english_in_latex_text_is_english():
    english = "<think>" + ID.split(".")[0] + " " + " ".join(f"\\text{{{part}}}" for part in (EN + EN.upper()).split(",")) + "</think>19"
    assert call(rewards.language_reward, english) < 0.5


def test_no_text_takes_long():
    import time
    for text in ("answer" + "=" * 50000, "answer " * 5000, "\\boxed{" * 5000, "{" * 20000, "$" * 20001, "`" * 20001, "1," * 20000, "\\frac{" * 5000, "- " * 20000, "<|" * 10000):
        started = time.process_time()
        for function in rewards.IMPROVED_REWARDS:
            call(function, f"<think>{text}</think>{text}")
        assert time.process_time() - started < 1, text[:20]


def test_target_language_is_a_flag(monkeypatch):
    monkeypatch.setattr(rewards, "target_lang", "de")
    german = ("Gut, wir lösen diese Aufgabe Schritt für Schritt. Zuerst wissen wir, dass Ani zwölf Äpfel im Korb hat. Danach kauft sie noch sieben dazu, also "
              "müssen wir die beiden Zahlen zusammenzählen.")
    assert call(rewards.format_and_language_reward_func, german) == 5.0
    assert call(rewards.language_reward, f"<think>{german}</think>19") > 0.9 > 0.1 > call(rewards.language_reward, CANONICAL["correct Indonesian"])
    monkeypatch.setattr(rewards, "target_lang", "zh")
    assert call(rewards.language_reward, CANONICAL["correct Chinese"]) > 0.8 > 0.1 > call(rewards.language_reward, CANONICAL["correct English"])


def test_language_reward_takes_at_most_3_ms_a_completion():
    import time
    batch = [[{"content": f"<think>{ID} {OTHER} {MORE} {ID}</think>19"}]] * 20
    prompts = [[{"content": QUESTION}]] * 20
    rewards.language_reward(prompts=prompts, completions=batch)  # loads langid
    started = time.process_time()
    rewards.language_reward(prompts=prompts, completions=batch)
    assert (time.process_time() - started) / 20 < 0.003 * 3  # three times the goal: a shared machine is slower


PIECES = st.sampled_from(["<think>", "</think>", "\\boxed{", "}", "19", "1.440", "\\frac{1}{0}", "<｜end▁of▁sentence｜>", "yang ", "the ", "我", "$", "`", "\n", "-", ",", ".", "^", ID])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(PIECES, st.text(max_size=20)), max_size=12).map("".join), st.one_of(st.text(max_size=8), st.integers().map(str)))
def test_fuzz(text, gold):
    bounds = {"match_format_exactly": (0, 3), "match_format_approximately": (-2, 1), "check_answer": (-4.5, 5), "check_numbers": (-2.5, 3.5),
              "format_and_language_reward_func": (-5, 5)}
    for function in rewards.TUTORIAL_REWARDS + rewards.IMPROVED_REWARDS:
        scores = function(prompts=[[{"content": QUESTION}]] * 2, completions=[[{"content": text}]] * 2, answer=[gold] * 2)
        assert len(scores) == 2 and scores[0] == scores[1]
        low, high = bounds.get(function.__name__, (0, 1))
        if scores[0] is None:
            assert function is rewards.answer_reward
        else:
            assert math.isfinite(scores[0]) and low <= scores[0] <= high


def test_dollar_amounts_are_no_mathematics():
    prose = ("Harga sebuah buku adalah {0}5 dan harga sebuah tas adalah dua puluh dua kali lebih mahal, sehingga Ani harus membayar jumlah yang "
             "cukup besar untuk membeli keduanya di pasar, yaitu menjadi {0}35 setelah potongan harga diberikan oleh penjual itu.")
    assert rewards.language_share(prose.format("$")) > 0.9 and rewards.language_share(prose.format("Rp ")) > 0.9
    assert rewards.language_share("$the first one is x and the other one is y$ " * 3) == 0.0
