"""Reward functions in TRL's form: f(prompts, completions, answer, **kwargs) -> a score each.

REWARDS["tutorial"] are the tutorial's five, value for value, quirks included (the sum can reach
17.5):
    match_format_exactly             3 if `</think>` occurs, else 0
    match_format_approximately       for each tag 0.5 if it occurs once, else -1.0
    check_answer                     all text after `</think>`: 5 equal, 3.5 equal but for spaces,
                                     2 / 1.5 within 10 / 20 % of the number, -2.5 a wrong number,
                                     -4.5 no number, -2 no `</think>`
    check_numbers                    first run of digits, points and commas (often a mere comma):
                                     3.5 equal, -1.5 not, 0 unreadable, -2.5 none
    format_and_language_reward_func  langid on the completion: 5 target language, -3 English or
                                     Chinese, -5 other
Their faults: prose after `</think>` ("Jawabannya 34.") counts as no number, right or wrong; a
cut-off text whose first number happens to be the gold can beat a correct answer; Indonesian that
langid takes for Malay is paid less than English.

REWARDS["improved"] mend that. Each is in [0, 1], and correctness outweighs the rest together:
    answer_reward    weight 2    1 if the number read after the last `</think>` equals the gold
    language_reward  weight 1    share of the thought in the target language (DeepSeek-R1, eq. 7);
                                 less for words left in the problem's language; 0 for saying one
                                 thing again and again, the same at any length; half if langid
                                 hears another language in the whole text
    format_reward    weight 0.5  1 if one thought starts the completion, with text after it; less
                                 if that text says one thing again and again
A completion without `</think>` earns nothing from any of the three.

A reward of your own is one function and one entry of REWARDS, at the end of this file.

    python rewards.py    # the tutorial's own checks
"""

import functools
import itertools
import math
import re

import langid

# What configure() sets, with match_format below
reasoning_start = "<think>"
reasoning_end = "</think>"
target_lang = "id"
think_is_prefilled = False
max_completion_length = 0


def configure(tags, language: str, prefilled: bool = False, max_length: int = 0) -> None:
    """Set the tags (start, end) and the target language (ISO 639-1) of every reward.

    `prefilled`: the chat template itself ends in the start tag, so completions lack it.
    `max_length`: a completion of so many tokens was cut; 0: each may have been.
    """
    global reasoning_start, reasoning_end, match_format, target_lang
    global think_is_prefilled, max_completion_length
    reasoning_start, reasoning_end = tags
    match_format = re.compile(rf"{re.escape(reasoning_end)}(.*)", re.DOTALL)
    target_lang = language
    think_is_prefilled = prefilled
    max_completion_length = max_length


# --------------------------------------------------------------------------------------------------
# The tutorial's five ("数据准备"), in its order

match_format = re.compile(rf"{reasoning_end}(.*)", re.DOTALL)


def match_format_exactly(completions, **kwargs) -> list[float]:
    """3.0 if the completion has the end tag, else 0 ("如果成功匹配我们给3分")."""
    scores = []
    for completion in completions:
        score = 0
        response = completion[0]["content"]
        if match_format.search(response) is not None:
            score += 3.0
        scores.append(score)
    return scores


def match_format_approximately(completions, **kwargs) -> list[float]:
    """For each tag 0.5 if it occurs once, else -1.0: in [-2, 1] ("通过计算每个符号")."""
    scores = []
    for completion in completions:
        score = 0
        response = completion[0]["content"]
        score += 0.5 if response.count(reasoning_start) == 1 else -1.0
        score += 0.5 if response.count(reasoning_end) == 1 else -1.0
        scores.append(score)
    return scores


def check_answer(prompts, completions, answer, **kwargs) -> list[float]:
    """Compare all text after the end tag with the gold: in [-4.5, 5] ("我们想要提取生成的答案")."""
    responses = [completion[0]["content"] for completion in completions]

    extracted_responses = []
    for response in responses:
        match = match_format.search(response)
        extracted_responses.append(match.group(1) if match is not None else None)

    scores = []
    for guess, true_answer in zip(extracted_responses, answer):
        score = 0
        if guess is None:
            scores.append(-2.0)
            continue
        if guess == true_answer:
            score += 5.0
        elif guess.strip() == true_answer.strip():
            score += 3.5
        else:
            # A near number is worth something
            try:
                ratio = float(guess) / float(true_answer)
                if 0.9 <= ratio <= 1.1:
                    score += 2.0
                elif 0.8 <= ratio <= 1.2:
                    score += 1.5
                else:
                    score -= 2.5
            except (ValueError, ZeroDivisionError):
                score -= 4.5
        scores.append(score)
    return scores


# Finds what the tutorial's pattern finds, in linear instead of quadratic time
match_numbers = re.compile(r"-?[\d.,]+")


@functools.lru_cache(maxsize=1024)  # two functions ask about each completion
def get_lang(text: str) -> str:
    """Return langid's ISO 639-1 code for a text, "und" for an empty one."""
    if not text:
        return "und"
    lang, _ = langid.classify(text)
    return lang


def format_and_language_reward_func(completions, **kwargs) -> list[float]:
    """Language of the completion: 5 target, -3 English or Chinese, -5 other ("语言一致性奖励")."""
    scores = []
    for completion_item in completions:
        if (
            not completion_item
            or not isinstance(completion_item[0], dict)
            or "content" not in completion_item[0]
        ):
            scores.append(-5.0)
            print(f"警告：格式错误的完成项，分配默认低分: {completion_item}")
            continue

        lang = get_lang(completion_item[0]["content"])
        if lang == target_lang:
            score = 5.0
        elif lang in ("en", "zh"):
            score = -3.0
        else:
            score = -5.0
        scores.append(score)
    return scores


PRINTED_TIMES = 0
PRINT_EVERY_STEPS = 5


def check_numbers(prompts, completions, answer, **kwargs) -> list[float]:
    """Compare the first number of the completion with the gold: in [-2.5, 3.5].

    Every PRINT_EVERY_STEPS calls it prints a question, its gold, the response and what was
    extracted ("通过float将文本转换为浮点数并查看是否相同").
    """
    global PRINTED_TIMES
    question = prompts[0][-1]["content"]
    responses = [completion[0]["content"] for completion in completions]

    extracted_responses = []
    for response in responses:
        match = match_numbers.search(response)
        extracted_responses.append(match.group() if match is not None else None)

    if PRINTED_TIMES % PRINT_EVERY_STEPS == 0:
        print(
            "*" * 20 + f"问题:\n{question}",
            f"\n答案:\n{answer[0]}",
            f"\n响应:\n{responses[0]}",
            f"\n提取的:\n{extracted_responses[0]}",
            flush=True,
        )
    PRINTED_TIMES += 1

    scores = []
    for guess, true_answer in zip(extracted_responses, answer):
        if guess is None:
            scores.append(-2.5)
            continue
        try:
            true_answer = float(true_answer.strip())
            guess = float(guess.strip().replace(",", ""))
            scores.append(3.5 if guess == true_answer else -1.5)
        except ValueError:
            scores.append(0)
    return scores


# --------------------------------------------------------------------------------------------------
# The improved three


def answer_reward(completions, answer, **kwargs) -> list[float | None]:
    """1.0 for the right number after the last end tag, else 0.0.

    None, which TRL skips, where the gold is not a number.
    """
    scores = []
    for completion, gold in zip(completions, answer):
        text = completion[0]["content"]
        correct = is_correct(text, gold)
        if correct is None:
            scores.append(None)
        elif correct and split_reasoning(text)[1] is not None:
            scores.append(1.0)
        else:
            scores.append(0.0)
    return scores


def language_reward(prompts, completions, **kwargs) -> list[float]:
    """language_share of each finished thought, in [0, 1]; 0 without an end tag.

    Half where the tutorial's own judge, langid on the whole text, hears another language:
    "3. Hitung cost bags of chips: ..." is no sentence.
    DeepSeek-R1 (arXiv 2501.12948), section 2.3 and eq. 7.
    """
    scores = []
    for prompt, completion in zip(prompts, completions):
        text = completion[0]["content"]
        thought, answer = split_reasoning(text)
        if answer is None:
            scores.append(0.0)
            continue
        share = language_share(thought, prompt[-1]["content"])
        if get_lang(text) != target_lang:
            share *= 0.5
        scores.append(share)
    return scores


# A word or number, a sign, or one letter of a script that is written without spaces
ANSWER_TOKEN = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff]|\\?\w+|[^\w\s]")
MIN_ANSWER_TOKENS = 24  # a shorter answer may repeat words


def format_reward(completions, **kwargs) -> list[float]:
    r"""1.0 for is_well_formed, less for saying the answer again and again, else 0.0.

    One of three runs learned to repeat "\boxed{9}" up to the limit, since cut completions are
    masked and nothing else held it back (tests/gpu/RESULTS.md).
    """
    scores = []
    for completion in completions:
        text = completion[0]["content"]
        if is_well_formed(text):
            answer = split_reasoning(text)[1]
            tokens = ANSWER_TOKEN.findall(answer)
            scores.append(repetition_factor(tokens) if len(tokens) >= MIN_ANSWER_TOKENS else 1.0)
        else:
            scores.append(0.0)
    return scores


def split_reasoning(text: str) -> tuple[str, str | None]:
    """Return (thought, answer): the texts before and after the last end tag.

    `answer` is None if there is no end tag. Special tokens such as EOS, if they were decoded, are
    removed, but for the tags, which may look like them ("<|begin_of_thought|>").
    """
    tags = (reasoning_start, reasoning_end)
    text = SPECIAL_TOKEN.sub(lambda found: found[0] if found[0] in tags else "", text)
    if reasoning_end not in text:
        return text.strip().removeprefix(reasoning_start), None
    thought, _, answer = text.rpartition(reasoning_end)
    return thought.strip().removeprefix(reasoning_start), answer


def is_well_formed(text: str) -> bool:
    """True for one thought that starts the completion, has content, and has text after it."""
    text = text.strip()
    if think_is_prefilled:
        text = reasoning_start + text
    thought, answer = split_reasoning(text)
    return (
        text.startswith(reasoning_start)
        and text.count(reasoning_start) == 1
        and text.count(reasoning_end) == 1
        and thought != ""
        and answer.strip() != ""
    )


# --------------------------------------------------------------------------------------------------
# How the final answer is read

SPECIAL_TOKEN = re.compile(r"<[|｜][^<>]*[|｜]>|</s>")
NUMBER = r"-?\d+(?:[.,]\d+)*"

# What stands around a number without changing it
DECORATION = re.compile(
    r"""
    \\[,;!%$\ ]                                      # 1\,440  34\%  \$34
  | \{,\}                                            # 1{,}440
  | \*\*                                             # **34**
  | [$€£¥₫`°'"~]                                     # $34$  34°  34~apel
  | \^\{?\\circ\}?                                   # 34^{\circ}
  | _(?:\d(?!\d)|\{\d+\})                            # 34_{10}
  | (?:(?<=m)|(?<=ft|in|[mtn]\}))\^(?:[23]|\{[23]\})   # 34 cm^2  {ft}^{2}
  | Rp\.?\s*(?=\d) | (?<=\d),-(?!\d)                 # Rp1.440  1.440,-
  | \\q?quad\b
  | \\(?:text|math)(?:bf|it|rm|sf|tt|normal)?\b      # \text{34}  \mathbf{34}
  | \\(?:boldsymbol|displaystyle|left|right)\b
    """,
    re.VERBOSE,
)

# \frac{1}{2}  \frac12
FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{(-?\d+)\}\s*\{(\d+)\}|(\d)(\d))")

# A box holds one number, with a unit or "x =" at most: 3+4 or (3, 4) is none
BOX = re.compile(
    rf"""
    (?:[^\W\d_]|\s)*                       # Rp
    ({NUMBER})                             # 34
    (?:\s*/\s*(\d+))?                      # 34/2
    (?:[^\W\d_]|[\s.%]|(?<=[^\W\d_])/)*    # apel.  km/jam
    """,
    re.VERBOSE,
)

LABEL = re.compile(
    rf"""
    (?: answer | jawaban(?:nya)? (?:\ akhir(?:nya)? | \ yang\ benar)?
      | đáp\ (?:án(?:\ đúng | \ cuối\ cùng)? | số) | câu\ trả\ lời )
    \W{{0,20}}?
    (?: [:=] | is | adalah | ialah | là )
    [^\w\n-]{{0,20}}
    ({NUMBER}[^\n]*)                   # Answer: **34** apples
  | (?: final\ answer | jawaban\ akhir(?:nya)? )
    \W{{0,20}}?
    : [^\d\n]{{0,100}}?
    ({NUMBER}[^\n]*)                   # Final answer: Ani has 34 apples
    """,
    re.VERBOSE | re.IGNORECASE,
)

# 3 + 4 = 7: the result is what stands after the last "="
CALCULATION = re.compile(rf"^(?:{NUMBER}\s*(?:[-+*/×x%:÷]|\\times|\\cdot|\\div)[^=\n]*=\s*)+")

# A line that draws another conclusion after a labelled number takes that number back
CONCLUSION = re.compile(
    r"^\W{0,9}(?:jadi|dengan\ demikian|so|thus|hence|therefore|vậy|do\ đó)\b[^\n]*\d",
    re.IGNORECASE | re.MULTILINE,
)

# Not part of a word, a version, a power; Chinese writes no space before a number
STANDALONE_NUMBER = re.compile(rf"(?<![A-Za-z\d_.,^/])({NUMBER})(?:\s*/\s*(\d+))?(?![\d^])")


def is_correct(text: str, gold: str, truncated: bool = False) -> bool | None:
    """True or False; None when the gold is not a number, so that nobody can be right.

    The final answer is read wherever it stands: after the last end tag, without one in the whole
    text. `truncated`: the text was cut at the limit; without an end tag it then counts only with a
    box or a label, since its last number is just where it was cut.

    math-verify 0.9.0 agrees on 1,494 of 1,500 real completions (99.6 %). All golds of DAPO-Math-17k
    and GSM8K are numbers, so that it (SymPy, ANTLR, a timeout by signal that only works in the main
    thread) would buy nothing here; a fork with symbolic golds should call it in this place.
    """
    gold = gold.strip()
    if not re.fullmatch(r"-?(\d+|\d{1,3}(,\d{3})+)(\.\d+)?", gold):  # English notation only
        return None
    return float(gold.replace(",", "")) in extract_answer(text, truncated)


def extract_answer(text: str, truncated: bool = False) -> set[float]:
    """Return the values that a completion's final answer can mean, an empty set if it has none.

    The last box counts, else the last labelled number, else the last number.
    """
    thought, answer = split_reasoning(text)
    unfinished = truncated and answer is None
    text = thought if answer is None else answer
    text = re.sub(r"(?<=[A-Z])\$(?=\d)", " ", text)  # US$34
    text = re.sub("[−–]", "-", DECORATION.sub("", text))  # a minus sign, or an en dash for it
    text = FRACTION.sub(r" \1\3/\2\4", text).replace("^{", "^")
    text = re.sub(r"(?<=\d)[ \u00a0\u202f](?=\d{3}\b)", "", text)  # 1 000 000
    text = re.sub(r"(?<![\w.,])\.(?=\d)", "0.", text)  # .5

    box = find_box(text)
    if box is not None:
        return read_box(box)
    label = find_label(text)
    if label is not None:
        return read_label(label)
    if unfinished:
        return set()
    return read_last_number(text)


def find_box(text):
    r"""Return what the last closed \boxed{...} holds, None if there is none."""
    end = len(text)
    for opening in reversed(list(re.finditer(r"\\boxed\s*\{", text))):
        depth = 1
        for position in range(opening.end(), end):
            if text[position] == "{":
                depth += 1
            elif text[position] == "}":
                depth -= 1
            if depth == 0:
                return text[opening.end() : position]
        end = opening.start()
    return None


def read_box(box):
    """Return the values of a box that holds one number."""
    result = re.sub(r"[{}]|(?<=-)\s+", "", box.split("=")[-1])
    match = BOX.fullmatch(result)
    return read_fraction(*match.groups()) if match else set()


def find_label(text):
    """Return the last labelled number and the rest of its line, None if there is none."""
    labels = list(LABEL.finditer(text))
    if not labels:
        return None
    label = labels[-1][1] or labels[-1][2]
    conclusion = CONCLUSION.search(text, labels[-1].end())
    if conclusion:
        concluded = set()
        for numeral, divisor in STANDALONE_NUMBER.findall(conclusion[0]):
            concluded |= read_fraction(numeral, divisor)
        if not concluded & read_label(label):
            return None
    return label


def read_label(label):
    """Return the values of the number that a label announces, or of its calculation's result."""
    label = CALCULATION.sub("", label)
    match = STANDALONE_NUMBER.search(label)
    return read_fraction(*match.groups()) if match else set()


def read_last_number(text):
    """Return the values of a text's last number."""
    numbers = STANDALONE_NUMBER.findall(text)
    return read_fraction(*numbers[-1]) if numbers else set()


def read_fraction(numeral, divisor):
    """Return the values of a numeral over a divisor (no text or None: it stands alone)."""
    if not divisor:
        return read_number(numeral)
    if float(divisor) == 0:
        return set()
    return {value / float(divisor) for value in read_number(numeral)}


def read_number(numeral):
    """Return the set of values that a numeral can mean.

    "1.440" is 1440 in Indonesian and 1.44 in English; "6,000" is six thousand in both, since nobody
    writes 6 like that.
    """
    values = set()
    if re.fullmatch(r"-?([1-9]\d{0,2}(,\d{3})+|\d+)(\.\d+)?", numeral):
        values.add(float(numeral.replace(",", "")))
        if "," in numeral:
            return values
    if re.fullmatch(r"-?([1-9]\d{0,2}(\.\d{3})+|\d+)(,\d+)?", numeral):
        values.add(float(numeral.replace(".", "").replace(",", ".")))
    return values


# --------------------------------------------------------------------------------------------------
# How the language of a thought is judged

MIN_WORDS = 8  # fewer are no thought; langid needs about 50 characters
WINDOW_WORDS = 16  # langid labels windows, so that code-switching gives a share and not a verdict
MAX_WINDOWS = 16  # of a longer thought every second, third, ... window is labelled: <= 3 ms
COPIED_WORDS = 6  # so many words in the problem's order are a copy and not a thought
FREE_FOREIGN = 0.1  # so many words may be the problem's ("per", "film"), and at
MAX_FOREIGN = 0.5  # so many nothing is left of the reward
REPETITION_WORDS = 64  # so that an honest thought earns the same at 20 and at 2,000 words

# What is no language
NO_LANGUAGE = re.compile(
    r"""
    ```.*?(?:```|$)                           # code
  | `[^`\n]*`
  | \$\$.*?\$\$                               # mathematics
  | \$(?=\S)[^$\n]*(?<=\S)\$(?!\d)            # $x = 5$, but not the prices $5 and $6
  | \\\[(?:(?!\\\[).)*?\\\]                   # \[x = 5\]; to the next \[ at most: linear time
  | \\\((?:(?!\\\().)*?\\\)                   # \(x = 5\)
  | \\[a-zA-Z]+(?:\{[^{}]*\})*                # \frac{1}{2}
    """,
    re.VERBOSE | re.DOTALL,
)


def language_share(thought: str, problem: str = "") -> float:
    """Return the share of a thought, in [0, 1], that is in target_lang: DeepSeek-R1's eq. 7.

    1. The share of windows of 16 words that langid takes for the target or for one of its family,
       the languages that langid confuses it with.
    2. Half of it, if more different words are a relative's alone than are the target's alone.
    3. Less for words left in the problem's language ("Hitung harga fish sub"): nothing for a tenth
       of all words, everything for half.
    4. Less for repetition.
    Fewer than MIN_WORDS words, not counting what is copied from the problem, give 0. Words inside
    code or $...$ are not seen.
    """
    words = drop_copied(find_words(thought), find_words(problem))
    if len(words) < MIN_WORDS:
        return 0.0

    family = get_family(target_lang)
    identifier = get_identifier(target_lang)
    windows = make_windows(words, WINDOW_WORDS)
    windows = windows[:: math.ceil(len(windows) / MAX_WINDOWS)]
    in_family = 0
    for window in windows:
        lang, _ = identifier.classify(" ".join(window))
        if lang in family:
            in_family += 1
    share = in_family / len(windows)

    counts = {lang: len(own_words.intersection(words)) for lang, own_words in family.items()}
    if max(counts.values()) > counts[target_lang]:
        share /= 2

    foreign = get_foreign_words(problem, target_lang)
    untranslated = sum(word in foreign for word in words) / len(words)
    share *= 1.0 - rise(untranslated, FREE_FOREIGN, MAX_FOREIGN)
    return share * repetition_factor(words)


def find_words(text):
    """Return a text's words in lower case: no mathematics, LaTeX commands, code or digits.

    A word is two letters or more, or one sign of a script that is written without spaces.
    """
    text = re.sub(r"\\(?:text|textbf|mathrm)\{([^{}]*)\}", r" \1 ", text)
    text = NO_LANGUAGE.sub(" ", text).lower()
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
    return [words[start:end] for start, end in itertools.pairwise(edges)]


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


@functools.lru_cache(maxsize=1024)  # a group of completions asks about one problem
def get_foreign_words(problem, lang):
    """Return the words of a problem that a thought in `lang` should not have: all in small letters.

    Capitals are names. Empty where the problem itself is in `lang`.
    """
    if get_identifier(lang).classify(problem)[0] in get_family(lang):
        return set()
    words = re.findall(r"[^\W\d_]{3,}", problem)  # kg, cm
    own_words = get_family(lang)[lang].union(SHARED.get(lang, "").split())
    return {word for word in words if word.islower()} - own_words


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


# Families of languages that langid cannot tell apart on a line, each with words that only it has
# in its standard form. Another family is one more entry: {"cs": "že ale ...", "sk": "že no ..."}
# without the words that both have.
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
            mendarabkan pendaraban tolakkan menolakkan penolakan kirakan pengiraan
            kiraan baki bakinya berbaki peratus peratusan purata puratanya sifar
            bersamaan nombor minit isnin khamis jumaat ogos disember iaitu ialah wang
            wangnya kos kosnya diskaun cukai percuma bakul tin epal oren kek kuih
            kedai kereta basikal motosikal kasut seluar pejabat syarikat kilang datuk
            isteri rakan rakannya bilik guli almari gelen kelajuan berbeza perbezaan
            perbezaannya beza bezanya manakala sahaja bandar nisbah kebarangkalian
            matematik logik kaedah maklumat kes jadual kad kapasiti bulatan darjah
            kesemua kesemuanya berapakah bas lori muzik budak yuran tiub pelbagai
            mengandungi sudu cawan paun kanak pakej beg baldi kerusi televisyen haiwan
            lembu arnab belon stesen filem daripadanya mestilah universiti
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
# Words that English has as well: they may stay as they are in a thought on an English problem.
SHARED = {
    "id": """
        per set bus bank hotel film game video audio radio studio album drama opera piano museum
        salon sofa oven pizza burger salmon vanilla protein vitamin zebra panda koala hamster
        laptop printer monitor internet online email file data program unit level bonus target
        final normal super jumbo minimum maximum medium model mode dialog blog diesel gas ton gram
        kilo kilogram liter meter kilometer watt kilowatt volt euro yen volume diameter radius
        diagonal digit modulo modulus median linear integral parabola sigma real domino deposit
        debit jam air lima main
    """,
}
# Languages that a model drifts into; a window is labelled as one of these or of the family.
CONTENDERS = {"en", "zh", "id", "es", "fr", "de", "pt", "it", "ru", "ja", "ko", "vi", "ar"}

# --------------------------------------------------------------------------------------------------
# Measured at every step and never paid: evaluate.py's rates, whatever the rewards are


def indonesian_rate(completions, **kwargs) -> list[float]:
    """1.0 where langid takes the whole completion for the target language, else 0.0."""
    return [float(get_lang(completion[0]["content"]) == target_lang) for completion in completions]


def accuracy(completions, answer, completion_ids=None, **kwargs) -> list[float]:
    """1.0 for the right final answer, with or without tags, else 0.0.

    Where a completion was cut (or nobody says that it was not) and has no end tag, only a box or a
    label counts: its last number is no answer.
    """
    scores = []
    for i, (completion, gold) in enumerate(zip(completions, answer)):
        cut = completion_ids is None or len(completion_ids[i]) >= max_completion_length
        correct = is_correct(completion[0]["content"], gold, truncated=cut)
        scores.append(float(correct is True))
    return scores


# --------------------------------------------------------------------------------------------------
# What train.py takes: {function: weight}

REWARDS = {
    "tutorial": {
        match_format_exactly: 1.0,
        match_format_approximately: 1.0,
        check_answer: 1.0,
        check_numbers: 1.0,
        format_and_language_reward_func: 1.0,
    },
    "improved": {
        answer_reward: 2.0,
        language_reward: 1.0,
        format_reward: 0.5,
    },
}
MEASURED = [indonesian_rate, accuracy]

if __name__ == "__main__":
    print(match_format.findall("Let me think!</think>Hence, the solution is 2."))
    print(match_format.findall("<think>Let me think!</think>\n\nHence, the solution is 2"))
    for text in ("  0.34  ", "  123,456  ", "  -0.234  ", "17"):
        print(match_numbers.findall(text))
    for text in ("Hello, How are you", "Aku berpikir kalau aku adalah kamu", "我在这里"):
        print(get_lang(text), text)
    prompts = [
        [{"role": "user", "content": "What is the result of (1 + 2) * 4?"}],
        [{"role": "user", "content": "What is the result of (3 + 1) * 2?"}],
    ]
    responses = [
        "<think>The sum of 1 and 2 is 3, which we multiply by 4 to get 12.</think>12",
        "The sum of 3 and 1 is 4, which we multiply by 2 to get 8. So (3 + 1) * 2 = 8.",
    ]
    completions = [[{"role": "assistant", "content": response}] for response in responses]
    for functions in (*REWARDS.values(), MEASURED):
        for function in functions:
            scores = function(prompts=prompts, completions=completions, answer=["12", "8"])
            print(function.__name__, scores)
