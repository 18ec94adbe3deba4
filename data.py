"""The tutorial's data cells ("GRPO对话模板" and "数据准备"): prompts, answers, reasoning tokens, length filter.

To use your own data, bring a .jsonl, .json or .parquet file (or a folder of them) with one of these column pairs:
    prompt,   solution           solution is a number as text, 1440 or 1,440 or 1.5 (DAPO-Math-17k-Processed, the tutorial's)
    question, answer             answer ends in "#### N" (GSM8K)

    python data.py                                  # shows what the tutorial's data cells show
    python data.py --dataset my.jsonl --target-lang vi
"""
import argparse
import os

# --target-lang: name in Chinese and in English. A new language needs only a line here, if langid knows its code.
LANGUAGES = {
    "id": ("印尼语", "Bahasa Indonesia"), "ms": ("马来语", "Malay"), "jv": ("爪哇语", "Javanese"),
    "vi": ("越南语", "Vietnamese"), "th": ("泰语", "Thai"), "zh": ("中文", "Chinese"), "en": ("英语", "English"),
    "ja": ("日语", "Japanese"), "ko": ("韩语", "Korean"), "de": ("德语", "German"), "fr": ("法语", "French"),
    "es": ("西班牙语", "Spanish"), "pt": ("葡萄牙语", "Portuguese"), "it": ("意大利语", "Italian"),
    "ru": ("俄语", "Russian"), "ar": ("阿拉伯语", "Arabic"), "sw": ("斯瓦希里语", "Swahili"),
}
# zh is the tutorial's text; en is what its published run used; boxed also states the answer format, which neither does.
SYSTEM_PROMPTS = {
    "zh": "你接到一个问题。\n请思考这个问题并提供你的解题过程。\n你必须用{zh}思考。",
    "en": "You are given a problem.\nThink about the problem and provide your working out.\nYou must think in {en}.",
    "boxed": "You are given a problem.\nThink about it between <think> and </think>. You must think in {en}.\n"
             "After </think>, give the final answer as \\boxed{number}.",
}


def model_name(text):
    """argparse type: a hub name, or a folder that exists."""
    if text.startswith(("/", ".")) and not os.path.isdir(text):
        raise argparse.ArgumentTypeError(f"there is no folder {text}")
    return text


def add_data_arguments(parser):
    """Add the flags that data.py, train.py and evaluate.py share."""
    group = parser.add_argument_group("data")
    group.add_argument("--model", type=model_name, default="deepseek-ai/DeepSeek-R1-0528-Qwen3-8B",
                       help="model: hub name or local folder")
    group.add_argument("--dataset", default="open-r1/DAPO-Math-17k-Processed",
                       help="hub name, or a local .jsonl/.json/.parquet file or folder")
    group.add_argument("--dataset-config", default="en", help="configuration (sub-folder) of a data set (GSM8K: main)")
    group.add_argument("--dataset-split", default="train", help="split of a hub data set, or start of the file names in a folder")
    group.add_argument("--system-prompt", default="zh",
                       help="zh (the tutorial's), en (its published run's), boxed (asks for \\boxed{} too), or any text")
    group.add_argument("--target-lang", default="id", choices=LANGUAGES, help="language to think in, an ISO 639-1 code")
    group.add_argument("--reasoning-tokens", nargs=2, metavar=("START", "END"),
                       help="reasoning tags as text, for a model without its own (None: found in the tokenizer)")
    group.add_argument("--max-prompt-quantile", type=float, default=0.9, metavar="Q",
                       help="drop prompts longer than this quantile of the token lengths, 0 to 1")
    group.add_argument("--eval-fraction", type=float, default=0.0, metavar="F",
                       help="fraction of the prompts to hold out of training, 0 to 1 (the tutorial's comment: 0.01)")
    group.add_argument("--seed", type=int, default=3407, help="random seed")


def make_system_prompt(name, target_lang="id"):
    """Return the system prompt called `name` (or `name` itself, if it is a text) for a language code."""
    zh, en = LANGUAGES[target_lang]
    return SYSTEM_PROMPTS.get(name, name).replace("{zh}", zh).replace("{en}", en)


def load_tokenizer(model):
    """Return the tokenizer of a hub name or folder, as its tokenizer.json has it.

    Not AutoTokenizer: the tutorial's model names LlamaTokenizerFast as its class, for which transformers 5 puts another
    pre-tokenizer and decoder in place of the file's, and every space is lost (transformers#45488). Unsloth mends its own.
    """
    from transformers import PreTrainedTokenizerFast
    return PreTrainedTokenizerFast.from_pretrained(model)


def get_reasoning_tokens(tokenizer):
    """Return (start, end) of the reasoning, for instance ("<think>", "</think>"), from the tokenizer's added tokens.

    Tutorial, "GRPO对话模板". Raises ValueError when the tokenizer has none.
    """
    start = end = None
    for token in tokenizer.get_added_vocab():
        if "think" in token:
            start, end = (start, token) if "/" in token else (token, end)
    if start is None or end is None:
        raise ValueError("this tokenizer has no <think> and </think>: take a reasoning model, or name the tags that "
                         "the model shall write as plain text with --reasoning-tokens '<think>' '</think>'")
    return start, end


def extract_hash_answer(text):
    """Return what follows "####" in a GSM8K answer; any other text as it is (tutorial, "数据准备")."""
    return text.split("####")[1].strip() if "####" in text else text


def load_rows(path, config="en", split="train"):
    """Load a hub data set, a local file or a folder as a Dataset with the text columns `prompt` and `answer`.

    Raises ValueError when it does not exist, is empty, or has neither column pair of this file's docstring.
    """
    from datasets import load_dataset
    kind = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}.get(os.path.splitext(path)[1])
    try:
        if kind and os.path.exists(path) and not os.path.getsize(path):
            raise ValueError("it is empty")
        if kind:
            dataset = load_dataset(kind, data_files=path, split="train")
        elif os.path.isdir(path):  # a downloaded hub data set has a sub-folder for each configuration
            folder = os.path.join(path, config)
            dataset = load_dataset(folder if os.path.isdir(folder) else path, split=split)
        else:
            dataset = load_dataset(path, config, split=split)
    except Exception as error:  # datasets raises a dozen types for "not there" and "not readable"
        cause = error.__cause__ or error
        raise ValueError(f"cannot load data set {path}: {(str(cause) or repr(cause)).splitlines()[0]}") from error
    if len(dataset) == 0:
        raise ValueError(f"data set {path} is empty")
    for question, answer in (("prompt", "solution"), ("question", "answer")):
        if {question, answer} <= set(dataset.column_names):
            if None in dataset[answer] or not all(isinstance(text, str) for text in dataset[question]):
                raise ValueError(f"data set {path}: every {question} must be text, and every {answer} be there")
            return dataset.map(lambda row: {"prompt": row[question], "answer": extract_hash_answer(str(row[answer]))},
                               remove_columns=dataset.column_names)
    raise ValueError(f"data set {path} has columns {dataset.column_names}; needed: prompt and solution, or question and answer")


def to_messages(dataset, system_prompt):
    """Turn the text column `prompt` into [system, user] messages (tutorial, "让我们映射数据集")."""
    return dataset.map(lambda row: {"prompt": [{"role": "system", "content": system_prompt},
                                               {"role": "user", "content": row["prompt"]}]})


def drop_long_prompts(dataset, tokenizer, quantile=0.9):
    """Return (dataset, maximum_length): rows whose prompt has at most the `quantile` of token lengths.

    Tutorial, "获取前90%的提示长度". TRL no longer cuts prompts (max_prompt_length is gone), so this bounds them.
    """
    import numpy as np
    lengths = np.array(dataset.map(lambda row: {"length": len(tokenizer.apply_chat_template(
        row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=False))})["length"])
    maximum_length = int(np.quantile(lengths, quantile))
    return dataset.select(np.where(lengths <= maximum_length)[0]), maximum_length


def load_math_dataset(args, tokenizer):
    """Return (train, held_out, maximum_length) for the flags of add_data_arguments.

    `train` and `held_out` (None when --eval-fraction is 0) have `prompt` (messages) and `answer` (text) and share no
    question, not even where the data set has it twice. Raises ValueError for unusable data.
    """
    dataset = to_messages(load_rows(args.dataset, args.dataset_config, args.dataset_split),
                          make_system_prompt(args.system_prompt, args.target_lang))
    dataset, maximum_length = drop_long_prompts(dataset, tokenizer, args.max_prompt_quantile)
    if not args.eval_fraction:
        return dataset, None, maximum_length
    if len(dataset) < 2:
        raise ValueError("--eval-fraction needs at least two rows")
    parts = dataset.train_test_split(test_size=args.eval_fraction, seed=args.seed)
    held_out = {prompt[-1]["content"] for prompt in parts["test"]["prompt"]}
    train = parts["train"].filter(lambda row: row["prompt"][-1]["content"] not in held_out)
    if len(train) == 0:
        raise ValueError("--eval-fraction leaves nothing to train on")
    return train, parts["test"], maximum_length


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_data_arguments(parser)
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    args = parser.parse_args()

    try:
        tokenizer = load_tokenizer(args.model)
        reasoning_start, reasoning_end = args.reasoning_tokens or get_reasoning_tokens(tokenizer)
        rows = load_rows(args.dataset, args.dataset_config, args.dataset_split)
        train, held_out, maximum_length = load_math_dataset(args, tokenizer)
    except (ValueError, OSError) as error:
        parser.error(str(error).split("\n")[0])

    print("reasoning tokens:", reasoning_start, reasoning_end)
    print("system prompt:   ", repr(make_system_prompt(args.system_prompt, args.target_lang)))
    example = [{"role": "user", "content": "What is 1+1?"},
               {"role": "assistant", "content": f"{reasoning_start}I think it's 2.2{reasoning_end}2"}] * 2
    print("chat template:   ", tokenizer.apply_chat_template(example, tokenize=False, add_generation_prompt=True))
    print(rows)
    print("first prompt:    ", rows[0]["prompt"])
    print("first answer:    ", rows[0]["answer"])
    print("first row:       ", train[0])
    print("rendered prompt: ", tokenizer.apply_chat_template(train[0]["prompt"], tokenize=False, add_generation_prompt=True))
    print("maximum length:  ", maximum_length, "tokens, the", args.max_prompt_quantile, "quantile")
    kept = len(train) + len(held_out or [])
    print("rows:            ", f"{len(rows)} in the data set, {len(train)} to train on, {len(held_out or [])} held out, "
          f"{len(rows) - kept} dropped as too long (or as copies of a held-out question)")
