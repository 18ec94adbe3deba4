"""Reward functions in TRL's form: f(prompts, completions, answer, **kwargs) -> one score (or None) per completion.

TUTORIAL_REWARDS are the tutorial's five, value for value, quirks included ("sum" can reach 17.5):
    match_format_exactly              3 if `</think>` occurs, else 0
    match_format_approximately        +0.5 for each tag that occurs once, else -1.0 for each
    check_answer                      all text after `</think>`: 5 equal, 3.5 equal but for spaces, 2 / 1.5 within
                                      10 / 20 % of the number, -2.5 a wrong number, -4.5 no number, -2 no `</think>`
    check_numbers                     first run of digits, points and commas (often a mere comma): 3.5 equal, -1.5 not,
                                      0 unreadable, -2.5 none
    format_and_language_reward_func   langid on the completion: 5 target language, -3 English or Chinese, -5 other
Their faults: prose after `</think>` ("Jawabannya 34.") counts as no number, right or wrong; a cut-off text whose first
number happens to be the gold can beat a correct answer; Indonesian that langid takes for Malay is paid less than English.

IMPROVED_REWARDS mend that; each is in [0, 1], and IMPROVED_WEIGHTS make correctness outweigh the rest together:
    answer_reward      weight 2    1 if the number read after the last `</think>` equals the gold, else 0
    language_reward    weight 1    share of the thought that is in the target language (DeepSeek-R1, eq. 7)
    format_reward      weight 0.5  1 if there is exactly one think block, with content, and text after it
A completion without `</think>` earns nothing from any of the three.

    python rewards.py      # the tutorial's own checks
"""
import functools
import math
import re

import langid

# train.py and evaluate.py set these for the model and for --target-lang; think_is_prefilled train.py only.
reasoning_start, reasoning_end = "<think>", "</think>"
think_is_prefilled = False  # True where the chat template itself ends in <think>, so that completions lack it
target_lang = "id"

PRINT_EVERY_STEPS = 5
PRINTED_TIMES = 0

# ---------------------------------------------------------------------------------------------------------------------
# The tutorial's five

match_numbers = re.compile(r"-?[\d.,]+")  # finds what the tutorial's pattern finds, in linear instead of quadratic time


def after_reasoning(response):
    """Return all text after the first `</think>`, or None (the tutorial's match_format)."""
    match = re.search(f"{re.escape(reasoning_end)}(.*)", response, re.DOTALL)
    return match and match.group(1)


def match_format_exactly(completions, **kwargs):
    """3.0 if the completion has `</think>`, else 0 (tutorial, "如果成功匹配我们给3分")."""
    return [0 if after_reasoning(completion[0]["content"]) is None else 3.0 for completion in completions]


def match_format_approximately(completions, **kwargs):
    """For each tag, 0.5 if it occurs exactly once, else -1.0: in [-2, 1] (tutorial, "通过计算每个符号")."""
    return [sum(0.5 if completion[0]["content"].count(tag) == 1 else -1.0 for tag in (reasoning_start, reasoning_end))
            for completion in completions]


def check_answer(prompts, completions, answer, **kwargs):
    """Compare all text after `</think>` with the gold: in [-4.5, 5] (tutorial, "我们想要提取生成的答案")."""
    scores = []
    for completion, true_answer in zip(completions, answer):
        guess = after_reasoning(completion[0]["content"])
        if guess is None:
            scores.append(-2.0)
        elif guess == true_answer:
            scores.append(5.0)
        elif guess.strip() == true_answer.strip():
            scores.append(3.5)
        else:
            try:
                ratio = float(guess) / float(true_answer)
                scores.append(2.0 if 0.9 <= ratio <= 1.1 else 1.5 if 0.8 <= ratio <= 1.2 else -2.5)
            except (ValueError, ZeroDivisionError):
                scores.append(-4.5)
    return scores


def check_numbers(prompts, completions, answer, **kwargs):
    """Compare the first number of the completion with the gold: in [-2.5, 3.5] (tutorial, "另一个奖励函数").

    Every PRINT_EVERY_STEPS calls it prints a question, its gold, the response and what was extracted.
    """
    global PRINTED_TIMES
    responses = [completion[0]["content"] for completion in completions]
    guesses = [match and match.group() for match in map(match_numbers.search, responses)]
    if PRINTED_TIMES % PRINT_EVERY_STEPS == 0:
        print("*" * 20, f"问题:\n{prompts[0][-1]['content']}", f"\n答案:\n{answer[0]}", f"\n响应:\n{responses[0]}",
              f"\n提取的:\n{guesses[0]}", flush=True)
    PRINTED_TIMES += 1
    scores = []
    for guess, true_answer in zip(guesses, answer):
        if guess is None:
            scores.append(-2.5)
            continue
        try:
            scores.append(3.5 if float(guess.replace(",", "")) == float(true_answer.strip()) else -1.5)
        except ValueError:
            scores.append(0)
    return scores


def get_lang(text):
    """Return langid's ISO 639-1 code for a text, "und" for an empty one."""
    return langid.classify(text)[0] if text else "und"


def format_and_language_reward_func(completions, **kwargs):
    """Language of the whole completion: 5 target, -3 English or Chinese, -5 other (tutorial, "语言一致性奖励")."""
    scores = []
    for completion in completions:
        if not completion or not isinstance(completion[0], dict) or "content" not in completion[0]:
            print(f"警告：格式错误的完成项，分配默认低分: {completion}")
            scores.append(-5.0)
            continue
        lang = get_lang(completion[0]["content"])
        scores.append(5.0 if lang == target_lang else -3.0 if lang in ("en", "zh") else -5.0)
    return scores


TUTORIAL_REWARDS = [match_format_exactly, match_format_approximately, check_answer, check_numbers,
                    format_and_language_reward_func]

# ---------------------------------------------------------------------------------------------------------------------
# The improved three

NUMBER = r"-?\d+(?:[.,]\d+)*"
# What stands around a number without changing it
DECORATION = re.compile(r"""
    \\[,;!%$\ ] | \{,\}                              # 1\,440  1{,}440  34\%  \$34
  | \*\* | [$`°'"] | \^\{?\\circ\}?                # **34**  $34$  34^{\circ}
  | _(?:\d(?!\d)|\{\d+\}) | (?<=m)\}?\^\{?[23]\}?  # 34_{10}  34 cm^2
  | Rp\.?\s*(?=\d)                                 # Rp1.440
  | \\(?:text|mathrm|mathbf|left|right)\b          # \text{34}
""", re.VERBOSE)
FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{(-?\d+)\}\s*\{(\d+)\}|(\d)(\d))")  # \frac{1}{2}  \frac12
LABEL = re.compile(r"(?:answer|jawaban(?:nya)?(?: akhir(?:nya)?| yang benar)?)\W{0,20}?(?:[:=]|is|adalah|ialah)[^\w\n-]{0,20}(-?\d[^\n]*)", re.IGNORECASE)
# What is no language: mathematics ($5 is a price), LaTeX commands, code
NO_LANGUAGE = re.compile(r"""
    ```.*?(?:```|$) | `[^`\n]*`
  | \$\$.*?\$\$ | \$(?=\S)[^$\n]*(?<=\S)\$(?!\d) | \\\[.*?\\\] | \\\(.*?\\\)
  | \\[a-zA-Z]+(?:\{[^{}]*\})*
""", re.VERBOSE | re.DOTALL)
# Families of languages that langid cannot tell apart on a line, each with words that only it has
# in its standard form. Another family is one more entry: {"cs": "že ale ...", "sk": "že no ..."}.
FAMILIES = [
    {
        "id": """
            bahwa karena karenanya jawaban jawabannya menjawab pertanyaan soal soalnya
            bisa bisakah coba mencoba artinya berarti arti dibagi membagi membaginya
            membagikan pembagian bagian sebagian bagiannya dikali dikalikan kalikan
            mengalikan perkalian kuadrat dikurangi kurangi mengurangi pengurangan
            penjumlahan hitung menghitung menghitungnya dihitung perhitungan hitungan
            sisanya tersisa selisih selisihnya lipat total totalnya persen persentase
            rata nol nomor menit detik senin kamis jumat maret juni juli agustus
            desember yaitu yakni uang uangnya biaya biayanya belanja menabung tabungan
            diskon pajak penghasilan pengeluaran gratis sebesar keranjang kaleng apel
            jeruk kue toko mobil sepeda motor sepatu celana kantor karyawan perusahaan
            pabrik siswa kakek paman bibi pria istri teman temannya kamar kelereng
            permen lemari galon pohon tim kecepatan berbeda perbedaan butuh
            membutuhkan dibutuhkan menemukan temukan ditemukan misalkan nah cuma
            awalnya mulai dimulai berikutnya saja usia kemarin besok sore rasio
            peluang matematika logika solusi metode informasi kasus tabel kartu
            kapasitas lingkaran derajat variabel makanya sepertinya enggak nggak
            seluruhnya kalimat kota cangkir sendok piring cokelat lainnya hewan sapi
            balon stasiun film museum rusak memiliki berbagai setelah harus
        """,
        "ms": """
            bahawa kerana jawapan jawapannya menjawabnya soalan soalannya mahu hendak
            cuba mencuba semak menyemak semakan ertinya bererti erti bermakna dibahagi
            dibahagikan bahagi bahagikan membahagi membahagikan pembahagian bahagian
            sebahagian bahagiannya didarab didarabkan darab darabkan mendarab
            mendarabkan pendaraban ditolak tolakkan menolak menolakkan penolakan
            campurkan kirakan pengiraan kiraan baki bakinya berbaki ganda peratus
            peratusan purata puratanya sifar bersamaan nombor minit isnin khamis
            jumaat ogos disember iaitu ialah wang wangnya kos kosnya membelanjakan
            dibelanjakan perbelanjaan simpanan diskaun cukai percuma bakul tin epal
            oren kek kuih kedai kereta basikal motosikal kasut seluar pejabat syarikat
            kilang pelajar datuk isteri rakan rakannya bilik guli almari gelen pasukan
            kelajuan berbeza perbezaan perbezaannya beza bezanya menemui manakala
            semasa sahaja bermula bandar nisbah kebarangkalian matematik logik kaedah
            maklumat kes jadual kad kapasiti bulatan darjah kesemua kesemuanya
            berapakah bas lori muzik boleh bolehkah separuh budak yuran tiub tuan
            pelbagai mengandungi selepas sudu cawan paun selebihnya kanak pakej beg
            baldi kerusi televisyen haiwan lembu arnab belon stesen filem daripadanya
            mestilah berjumlah universiti
        """,
        "jv": """
            lan sing iku iki saka kanggo ora wis banjur duwe pira kabeh luwih nganti
            saben sawise bakal yen wonten saking menawi menika ingkang wektu kanca
            menyang dheweke awake dhewe papat pitu wolu sanga rolas loro telu siji
            telung patang nem pitung wolung sangang kaping padha cacahe gunggunge isih
            maneh uga amarga mula wangsulane saiki taun wong kudu arep tuku adol
            dhuwit menehi nggawe ing marang utawa nanging yaiku dadi regane
        """,
    },
]
# Languages that a model drifts into; a text is labelled as one of these or of its family.
CONTENDERS = {"en", "zh", "es", "fr", "de", "pt", "it", "ru", "ja", "ko", "vi", "ar"}
MIN_WORDS = 8  # fewer are no thought; langid needs about 50 characters
WINDOW_WORDS = 16  # langid labels windows, so that code-switching gives a share and not a verdict
MAX_WINDOWS = 16  # of a longer thought every second, third, ... window is labelled: <= 3 ms
COPIED_WORDS = 6  # so many words in the problem's order are a copy and not a thought
REPETITION_WORDS = 64  # so that an honest thought earns the same at 20 and at 2,000 words


def split_reasoning(text):
    """Return (thought, answer): the texts before and after the last `</think>`; answer is None if there is none."""
    text = re.sub(r"<[|｜][^<>]*[|｜]>|</s>", "", text)  # EOS and other special tokens, if they were decoded
    thought, end, answer = text.rpartition(reasoning_end)
    thought, answer = (thought, answer) if end else (text, None)
    return thought.strip().removeprefix(reasoning_start), answer


def read_number(text):
    """Return the set of values that a numeral can mean: "1.440" is 1440 in Indonesian and 1.44 in English."""
    values = set()
    if re.fullmatch(r"-?([1-9]\d{0,2}(,\d{3})+|\d+)(\.\d+)?", text):
        values.add(float(text.replace(",", "")))
    if re.fullmatch(r"-?([1-9]\d{0,2}(\.\d{3})+|\d+)(,\d+)?", text):
        values.add(float(text.replace(".", "").replace(",", ".")))
    return values


def extract_answer(text):
    """Return the values that a completion's final answer can mean, an empty set if it has none.

    Read after the last `</think>`: the last \\boxed{}, else the last "Answer:" or "Jawaban:", else the last number.
    Fractions are read as their value. A box must hold one number, with a unit or "x =" at most: 3+4 or (3, 4) is none.
    """
    answer = split_reasoning(text)[1]
    if answer is None:
        return set()
    answer = FRACTION.sub(r" \1\3/\2\4", DECORATION.sub("", answer).replace("−", "-")).replace("^{", "^")
    answer = re.sub(r"(?<=\d) (?=\d{3}\b)", "", answer)  # 1 000 000
    boxes, labelled = re.findall(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}", answer), LABEL.findall(answer)
    if boxes:
        box = re.sub(r"[{}]|(?<=-)\s+", "", boxes[-1].split("=")[-1])
        match = re.fullmatch(rf"(?:[^\W\d_]|\s)*({NUMBER})(?:\s*/\s*(\d+))?(?:[^\W\d_]|[\s.%])*", box)
        numbers = [match.groups("")] if match else []
    else:
        final = labelled[-1] if labelled else answer
        if labelled:  # "3 + 4 = 7": the result, not the first number
            final = re.sub(rf"^{NUMBER}\s*(?:[-+*/×x%]|\\times|\\cdot)[^=\n]*=\s*", "", final)
        numbers = re.findall(rf"(?<![\w.,^/])({NUMBER})(?:\s*/\s*(\d+))?(?![\d^])", final)
        numbers = numbers[:1] if labelled else numbers[-1:]
    if not numbers:
        return set()
    numeral, divisor = numbers[0]
    if not divisor:
        return read_number(numeral)
    return {value / float(divisor) for value in read_number(numeral)} if float(divisor) else set()


def is_correct(text, gold):
    """True or False; None when the gold is not a number, so that nobody can be right.

    All golds of DAPO-Math-17k and GSM8K are numbers, so math-verify (SymPy, ANTLR, and a timeout by signal that only
    works in the main thread) would buy nothing here; a fork with symbolic golds should call it in this place.
    """
    if not re.fullmatch(r"-?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?", gold.strip()):  # English notation only
        return None
    return float(gold.replace(",", "")) in extract_answer(text)


@functools.cache
def get_family(lang):
    """Return {language: set of its own words} for `lang` and what langid confuses it with."""
    for family in FAMILIES:
        if lang in family:
            return {member: set(own_words.split()) for member, own_words in family.items()}
    return {lang: set()}


@functools.cache
def get_identifier(lang):
    """Return langid restricted to `lang`, its family and CONTENDERS.

    It is a copy of its own: get_lang stays the tutorial's.
    """
    identifier = langid.langid.LanguageIdentifier.from_modelstring(langid.langid.model)
    identifier.set_languages(sorted(CONTENDERS | set(get_family(lang))))
    return identifier


def find_words(text):
    """Return a text's words: no mathematics, LaTeX commands, code or digits.

    A word is two letters or more, or one sign of a script that is written without spaces.
    """
    text = re.sub(r"\\(?:text|textbf|mathrm)\{([^{}]*)\}", r" \1 ", text)
    text = NO_LANGUAGE.sub(" ", text)
    return re.findall(r"[\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff]|[^\W\d_]{2,}", text)


def drop_copied(words, problem_words):
    """Return the words without those that stand in the problem too, COPIED_WORDS in a row."""
    copied = set()
    for start in range(len(problem_words) - COPIED_WORDS + 1):
        copied.add(tuple(problem_words[start : start + COPIED_WORDS]))
    keep = [True] * len(words)
    for start in range(len(words) - COPIED_WORDS + 1):
        if tuple(words[start : start + COPIED_WORDS]) in copied:
            keep[start : start + COPIED_WORDS] = [False] * COPIED_WORDS
    return [word for word, kept in zip(words, keep) if kept]


def make_windows(words, size):
    """Cut words into windows of about `size` and nearly equal length (one, if they are fewer)."""
    count = max(1, round(len(words) / size))
    edges = [index * len(words) // count for index in range(count + 1)]
    return [words[start:end] for start, end in zip(edges, edges[1:])]


def fresh_share(words):
    """Return the share of different ones among the triples of neighbouring words."""
    triples = list(zip(words, words[1:], words[2:]))
    return len(set(triples)) / len(triples)


def rise(value, low, high):
    """Return 0 up to `low`, 1 from `high` on, and a straight line between."""
    return min(1.0, max(0.0, (value - low) / (high - low)))


def repetition_factor(words):
    """Return 1 for an honest text of any length, 0 for one that says a thing again and again.

    Judged in windows, since words return in honest texts too, the more the longer they are: there
    0.6 and more of the triples are fresh. And judged as a whole, for paragraphs that return.
    """
    windows = make_windows(words, REPETITION_WORDS)
    nearby = sum(rise(fresh_share(window), 0.4, 0.6) for window in windows) / len(windows)
    return nearby * rise(fresh_share(words), 0.2, 0.4)


def language_share(thought, problem=""):
    """Return the share of a thought, in [0, 1], that is in target_lang: DeepSeek-R1's eq. 7.

    The share is that of windows which langid takes for the target or one of its FAMILIES. It is
    halved if a relative has more different words of its own in the text than the target has:
    without any, the target has the benefit of the doubt. Fewer than MIN_WORDS words, not counting what is copied
    from the problem, give 0. Words of another language inside code or $...$ are not seen.
    """
    words = [word.lower() for word in find_words(thought)]
    words = drop_copied(words, [word.lower() for word in find_words(problem)])
    if len(words) < MIN_WORDS:
        return 0.0
    family = get_family(target_lang)
    identifier = get_identifier(target_lang)
    windows = make_windows(words, WINDOW_WORDS)
    windows = windows[:: math.ceil(len(windows) / MAX_WINDOWS)]
    share = 0.0
    for window in windows:
        if identifier.classify(" ".join(window))[0] in family:
            share += 1 / len(windows)
    counts = {lang: len(own_words.intersection(words)) for lang, own_words in family.items()}
    if max(counts.values()) > counts[target_lang]:
        share /= 2
    return share * repetition_factor(words)


def answer_reward(completions, answer, **kwargs):
    """1.0 for the right number after the last `</think>`, else 0.0; None (TRL skips it) for a gold that is no number."""
    correct = [is_correct(completion[0]["content"], gold) for completion, gold in zip(completions, answer)]
    return [None if value is None else float(value) for value in correct]


def language_reward(prompts, completions, **kwargs):
    """language_share of each finished thought, in [0, 1]; 0 without `</think>` (DeepSeek-R1, section 2.3 and eq. 7)."""
    scores = []
    for prompt, completion in zip(prompts, completions):
        thought, answer = split_reasoning(completion[0]["content"])
        scores.append(0.0 if answer is None else language_share(thought, prompt[-1]["content"]))
    return scores


def format_reward(completions, **kwargs):
    """1.0 for one think block that starts the completion, has content, and has text after it; else 0.0."""
    scores = []
    for completion in completions:
        text = completion[0]["content"].strip()
        if think_is_prefilled:
            text = reasoning_start + text
        thought, answer = split_reasoning(text)
        well_formed = (text.startswith(reasoning_start) and text.count(reasoning_start) == 1
                       and text.count(reasoning_end) == 1 and thought.strip() and (answer or "").strip())
        scores.append(1.0 if well_formed else 0.0)
    return scores


IMPROVED_REWARDS = [answer_reward, language_reward, format_reward]
IMPROVED_WEIGHTS = [2.0, 1.0, 0.5]

if __name__ == "__main__":
    print(after_reasoning("Let me think!</think>Hence, the solution is 2."))
    print(after_reasoning("<think>Let me think!</think>\n\nHence, the solution is 2"))
    for text in ("  0.34  ", "  123,456  ", "  -0.234  ", "17"):
        print(match_numbers.findall(text))
    for text in ("Hello, How are you", "Aku berpikir kalau aku adalah kamu", "我在这里"):
        print(get_lang(text), text)
    prompts = [[{"role": "user", "content": "What is the result of (1 + 2) * 4?"}],
               [{"role": "user", "content": "What is the result of (3 + 1) * 2?"}]]
    completions = [
        [{"role": "assistant", "content": "<think>The sum of 1 and 2 is 3, which we multiply by 4 to get 12.</think>"
                                          "<answer>(1 + 2) * 4 = 12</answer>"}],
        [{"role": "assistant", "content": "The sum of 3 and 1 is 4, which we multiply by 2 to get 8. So (3 + 1) * 2 = 8."}]]
    for function in TUTORIAL_REWARDS + IMPROVED_REWARDS:
        print(function.__name__, function(prompts=prompts, completions=completions, answer=["12", "8"]))
