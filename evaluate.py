"""Compare the trained LoRA with its base model: language, accuracy, and what the language cost.

The tutorial's "推理" cells: four single prompts, then 20 samples with and without LoRA. There they
are sent one at a time, here through one engine together. Model and data default to what
OUTPUT_DIR/run.json says that train.py used.

    python evaluate.py                                         # the tutorial: prompts trained on
    python evaluate.py --split held-out --num-samples 200      # needs train.py --eval-fraction
    python evaluate.py --system-prompt none --name no-prompt   # is the old ability still there?
    python evaluate.py --adapter outputs/checkpoint-* outputs/grpo_lora    # a curve over the steps
    python evaluate.py --prompt "What is 17 * 23?"             # ask base and LoRA something
    python evaluate.py --model outputs/export/merged_16bit --adapter none  # one model, alone
    python evaluate.py --rescore outputs/eval/samples.jsonl    # grade saved texts again; no GPU
"""

import argparse
import contextlib
import functools
import importlib.util
import json
import math
import os
import sys
import tempfile
import time
from pathlib import Path

import data
from data import fail, make_messages, number, one_line, render_prompt
from train import check_adapter, check_login, get_questions, get_vllm_rank, hash_question
from train import load_model, make_empty_model, read_run, set_environment, start_swanlab


def main(args):
    if args.rescore:
        rescore(args.rescore)
        return
    started = time.time()
    set_environment()
    folder = os.path.join(args.output_dir, args.name)
    if not args.prompt:
        check_folder(folder)
        check_login(args)
    run = read_run(args.output_dir)
    adapters = find_adapters(args, run)  # "验证LoRA确实被训练了！": check_adapter in train.py
    tokenizer = data.load_tokenizer(args.model, args.revision)
    check_vocabulary(args, tokenizer)
    args.reasoning_tokens = args.reasoning_tokens or data.get_reasoning_tokens(tokenizer)
    tags = args.reasoning_tokens
    system_prompt = data.make_system_prompt(args.system_prompt, args.target_lang, tags)
    arms = ["base", *adapters]
    lora = arms[-1]  # of several checkpoints the last; without an adapter the model itself
    if args.prompt:
        answer_prompts(args, tokenizer, adapters, system_prompt)
        return

    # "首先，让我们先试试没有经过GRPO训练的模型": without a chat template
    text = "What is the sqrt of 101?"
    singles = [make_request("base", text, args.seed, "no template")]

    # "现在我们加载LoRA并测试": without system prompt, 不会（或很少）影响模型的原始推理能力
    text = render_prompt(tokenizer, make_messages("Solve (x + 2)^2 = 0", None))
    singles.append(make_request(lora, text, args.seed, "no system prompt"))

    # "接下来，让我们使用系统提示进行测试，这应该使用新语言"
    text = render_prompt(tokenizer, make_messages("Solve (x + 2)^2 = 0", system_prompt))
    singles.append(make_request(lora, text, args.seed, "system prompt"))

    # "让我们比较使用系统提示但不使用LoRA的结果"
    if adapters:
        singles.append(make_request("base", text, args.seed, "system prompt"))
    if not args.single_prompts:
        singles = []

    # "让我们取20个样本，比较使用LoRA和不使用LoRA的情况"; a sample has one seed for all arms
    dataset, split = load_prompts(args, run, tokenizer)
    count = min(args.num_samples, len(dataset))
    if count < args.num_samples:
        print(f"note: there are {count} {split} prompts, all are taken")
    sample_dataset = dataset.shuffle(seed=args.seed).select(range(count))
    samples = []
    for sample in sample_dataset:
        samples.append({"prompt": sample["prompt"][-1]["content"], "answer": sample["answer"]})
    requests = []
    for arm in arms:
        for i, sample in enumerate(samples):
            text = render_prompt(tokenizer, make_messages(sample["prompt"], system_prompt))
            requests.append(make_request(arm, text, args.seed + i))

    generate = choose_generator(args)
    completions, loaded = generate(args, tokenizer, adapters, requests + singles)
    seconds = {"load": round(loaded - started, 1), "generate": round(time.time() - loaded, 1)}
    for k, arm in enumerate(arms):  # an arm has `count` completions in a row
        for sample, completion in zip(samples, completions[k * count :]):
            sample[arm] = completion
    for single, completion in zip(singles, completions[len(requests) :]):
        single.update(completion)
    print_answers(singles)

    # get_lang and what else grades is in rewards.py
    import rewards

    prefilled = requests[0]["prompt"].rstrip().endswith(tags[0])
    rewards.configure(tags, args.target_lang, prefilled=prefilled)
    results = summarize(samples)
    if len(adapters) > 1:
        results["steps"] = {name: get_step(adapters[name], run) for name in adapters}
    results |= {
        "split": split,
        "adapters": adapters,
        "reasoning_tokens": tags,
        "think_is_prefilled": prefilled,
        "single_prompts": singles,
        "arguments": vars(args),
        "versions": data.get_versions(),
        "commit": run.get("commit"),
        "seconds": seconds,
    }
    if adapters:
        print_tutorial_result(results)
    report(samples, results, os.path.join(folder, "samples.jsonl"))
    print(f"seconds: {seconds}\nwritten: {folder}/{', '.join(results['files'].values())}")
    if args.report_to == "swanlab":
        log_to_swanlab(args, samples, results, folder)


def print_tutorial_result(results: dict):
    """Print the lines with which the tutorial's comparison ends."""
    n = results["n"]
    lora = results["arms"][-1]
    language = data.LANGUAGES[results["target_lang"]][0]
    with_lora = round(results[lora]["indonesian_rate"] * n)
    without_lora = round(results["base"]["indonesian_rate"] * n)
    print(f"\n在{n}个样本上比较使用和不使用LoRA的语言使用情况:")
    print("=" * 60)
    print("结果:")
    print(f"使用LoRA - {language}响应: {with_lora}/{n} ({with_lora / n * 100:.1f}%)")
    print(f"不使用LoRA - {language}响应: {without_lora}/{n} ({without_lora / n * 100:.1f}%)")
    print(f"改进: 使用LoRA增加了{with_lora - without_lora}个{language}响应\n")


# --------------------------------------------------------------------------------------------------
# Generation: two ways of one signature


def make_request(arm: str, prompt: str, seed: int, title: str = "") -> dict:
    """Return what a generator takes; `arm` is "base" or an adapter's name, `prompt` a text."""
    return {"arm": arm, "title": title, "prompt": prompt, "seed": seed}


def choose_generator(args):
    """Return generate_vllm where it can run, else generate_transformers (no 4-bit base)."""
    import torch

    if torch.cuda.is_available() and args.fast_inference:
        return generate_vllm
    args.fast_inference = False  # results.json says what was evaluated
    args.load_in_4bit = False
    return generate_transformers


def generate_vllm(args, tokenizer, adapters: dict, requests: list) -> tuple[list, float]:
    """Answer all requests in one batch with vLLM; needs a GPU.

    `adapters`: {name: folder}. Returns (completions in the order of `requests`, the time at which
    the model was loaded); a completion is {"text", "tokens", "truncated"}.
    """
    # the engine in this process: another would import vLLM and torch a second time
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    texts = [request["prompt"] for request in requests]
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    longest = max(len(ids) for ids in prompts)
    # CUDA graphs come in steps of 8 sequences: none larger than needed, and one for all together.
    # Without torch.compile ("mode": 0) 20 samples x 2 take 98 s and not 161 with empty caches, 37
    # and not 50 with full ones (8B, H100); the texts themselves take 2.7 s and not 2.4
    sequences = min(8 * math.ceil(len(requests) / 8), 256)
    llm = LLM(
        model=args.model,
        revision=args.revision,
        tokenizer_revision=args.revision,
        quantization="bitsandbytes" if args.load_in_4bit else None,
        enable_lora=bool(adapters),
        max_loras=max(1, min(len(adapters), 8)),
        max_lora_rank=get_lora_rank(adapters),
        max_model_len=max(longest + args.max_tokens, 2048),
        max_num_batched_tokens=4096,  # as TRL sets it for rollouts
        max_num_seqs=sequences,
        gpu_memory_utilization=args.gpu_memory_utilization,
        enable_prefix_caching=True,
        compilation_config={
            "mode": 0,
            "cudagraph_mode": "FULL_DECODE_ONLY",
            "max_cudagraph_capture_size": sequences,
        },
        enable_flashinfer_autotune=False,  # no kernel of a 16-bit or nf4 model is tuned
        seed=args.seed,
    )
    loaded = time.time()
    end_tokens = get_end_tokens(args, tokenizer)
    sampling_params = [
        SamplingParams(
            temperature=args.temperature,
            top_k=args.top_k,
            max_tokens=args.max_tokens,
            stop_token_ids=end_tokens,
            seed=request["seed"],
        )
        for request in requests
    ]
    loras = {"base": None}
    for i, name in enumerate(adapters, start=1):
        loras[name] = LoRARequest(name, i, os.path.abspath(adapters[name]))
    outputs = llm.generate(
        [{"prompt_token_ids": ids} for ids in prompts],
        sampling_params,
        lora_request=[loras[request["arm"]] for request in requests],
    )
    completions = []
    for output in outputs:
        ids = list(output.outputs[0].token_ids)
        completions.append(make_completion(tokenizer, ids, end_tokens))
    return completions, loaded


def generate_transformers(args, tokenizer, adapters: dict, requests: list) -> tuple[list, float]:
    """Do the same with transformers and PEFT, also on a CPU; a batch has one arm and one seed."""
    import torch
    from tqdm import tqdm

    model = load_model(args.model, args.revision)
    if adapters:
        from peft import PeftModel

        first, *others = adapters
        model = PeftModel.from_pretrained(model, adapters[first], adapter_name=first)
        for name in others:
            model.load_adapter(adapters[name], adapter_name=name)
    loaded = time.time()

    end_tokens = get_end_tokens(args, tokenizer)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    completions = []
    for batch in tqdm(make_batches(requests), desc="generate"):
        arm = batch[0]["arm"]
        without_lora = contextlib.nullcontext()
        if adapters and arm == "base":
            without_lora = model.disable_adapter()
        elif adapters:
            model.set_adapter(arm)
        texts = [request["prompt"] for request in batch]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        padded = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
        torch.manual_seed(batch[0]["seed"])
        with torch.no_grad(), without_lora:
            rows = model.generate(
                **padded.to(model.device),
                do_sample=args.temperature > 0,
                temperature=args.temperature or 1.0,  # greedy search has none
                top_k=max(args.top_k, 0),
                max_new_tokens=args.max_tokens,
                eos_token_id=end_tokens,
                pad_token_id=tokenizer.pad_token_id,
                # a model's generation config may set these, which vLLM's SamplingParams do not
                top_p=1.0,
                repetition_penalty=1.0,
            )
        width = padded["input_ids"].shape[1]
        for row in rows[:, width:].tolist():
            completions.append(make_completion(tokenizer, row, end_tokens))
    return completions, loaded


def make_batches(requests: list, size: int = 64) -> list[list]:
    """Return neighbours of one arm together, `size` at most."""
    batches = []
    for request in requests:
        last = batches[-1] if batches else []
        if not last or last[0]["arm"] != request["arm"] or len(last) == size:
            batches.append([])
        batches[-1].append(request)
    return batches


def get_end_tokens(args, tokenizer) -> list[int]:
    """Return the ids that end a text, as in vLLM: the generation config's and the tokenizer's."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(args.model, revision=args.revision)
    except OSError:  # the model has no generation_config.json
        config = AutoConfig.from_pretrained(args.model, revision=args.revision).get_text_config()
    named = config.eos_token_id
    if not isinstance(named, list):
        named = [named]
    return sorted({*named, tokenizer.eos_token_id} - {None})


def make_completion(tokenizer, ids: list[int], end_tokens: list[int]) -> dict:
    """Return generated ids as text, with their number and whether the token limit cut them."""
    ends = [position for position, token in enumerate(ids) if token in end_tokens]
    if ends:
        ids = ids[: ends[0] + 1]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    return {"text": text, "tokens": len(ids), "truncated": not ends}


def get_lora_rank(adapters: dict) -> int:
    """Return the smallest rank that vLLM has kernels for and all adapters fit in."""
    ranks = [8]
    for folder in adapters.values():
        with open(os.path.join(folder, "adapter_config.json"), encoding="utf-8") as file:
            ranks.append(json.load(file)["r"])
    return get_vllm_rank(max(ranks))


def answer_prompts(args, tokenizer, adapters: dict, system_prompt: str | None):
    """Answer --prompt with every arm, with and without the system prompt, and print the answers."""
    systems = [system_prompt, None] if system_prompt else [None]
    requests = []
    for problem in args.prompt:
        for system in systems:
            title = "system prompt" if system else "no system prompt"
            text = render_prompt(tokenizer, make_messages(problem, system))
            for arm in ["base", *adapters]:
                requests.append(make_request(arm, text, args.seed, title))
    generate = choose_generator(args)
    completions, _ = generate(args, tokenizer, adapters, requests)
    for request, completion in zip(requests, completions):
        request.update(completion)
    print_answers(requests)


def print_answers(requests: list):
    """Print answered requests: arm, kind of prompt, prompt, text."""
    for request in requests:
        cut = " (cut at --max-tokens)" if request["truncated"] else ""
        print("=" * 60)
        print(f"{request['arm']}, {request['title']}: {request['prompt']}\n{request['text']}{cut}")


# --------------------------------------------------------------------------------------------------
# Statistics


def wilson(k: int, n: int) -> list[float]:
    """Return the 95 % Wilson score interval [low, high] of the rate k / n (Wilson 1927)."""
    from scipy.stats import binomtest

    return list(binomtest(k, n).proportion_ci(method="wilson"))


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p of the exact McNemar test, from the counts of discordant pairs."""
    from scipy.stats import binomtest

    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    return binomtest(only_first, discordant).pvalue


def paired_difference(both: int, only_first: int, only_second: int, neither: int):
    """Return (difference, [low, high]) of two rates on the same n pairs, first minus second.

    95 % interval by Newcombe's method 10 (Statistics in Medicine 17, 1998, 2635-2650): two Wilson
    intervals, joined with the correlation of the pairs.
    """
    n = both + only_first + only_second + neither
    first = both + only_first
    second = both + only_second
    low1, high1 = wilson(first, n)
    low2, high2 = wilson(second, n)
    below1 = first / n - low1
    above1 = high1 - first / n
    below2 = second / n - low2
    above2 = high2 - second / n

    cross = both * neither - only_first * only_second
    if cross > 0:
        cross = max(cross - n / 2, 0)  # the continuity correction
    spread = math.sqrt(first * (n - first) * second * (n - second))
    phi = cross / spread if spread else 0.0
    below = below1**2 - 2 * phi * below1 * above2 + above2**2
    above = above1**2 - 2 * phi * above1 * below2 + below2**2
    difference = (first - second) / n
    low = difference - math.sqrt(max(below, 0))
    high = difference + math.sqrt(max(above, 0))
    return difference, [low, high]


def samples_needed(discordant: float, difference: float) -> int:
    """Return the samples that show a paired difference at 5 % with 80 % power (Connor, 1987).

    `discordant`: the share of samples on which the two verdicts differ.
    """
    from scipy.stats import norm

    root = norm.ppf(0.975) * math.sqrt(discordant)
    root += norm.ppf(0.8) * math.sqrt(discordant - difference**2)
    return math.ceil((root / difference) ** 2)


def compare(first: list[bool], second: list[bool]) -> dict:
    """Compare two verdicts on the same samples: difference of the rates, interval, exact p."""
    pairs = list(zip(first, second))
    both = pairs.count((True, True))
    only_first = pairs.count((True, False))
    only_second = pairs.count((False, True))
    neither = pairs.count((False, False))
    difference, interval = paired_difference(both, only_first, only_second, neither)
    return {
        "difference": difference,
        "difference_ci95": interval,
        "mcnemar_p": mcnemar(only_first, only_second),
        "discordant": (only_first + only_second) / len(pairs),
    }


def verdict(comparison: dict, n: int, up="improved") -> str:
    """Return one sentence on a result of compare(); `up` names a rise."""
    points = 100 * comparison["difference"]
    p = comparison["mcnemar_p"]
    if p < 0.05:
        low, high = comparison["difference_ci95"]
        interval = f"95 % CI {round(100 * low)} to {round(100 * high)}"
        moved = up if points > 0 else "fell"
        return f"{moved} by {abs(points):.0f} points ({interval}, n = {n}, {p_text(p)})"
    sentence = f"no difference shown at n = {n} ({p_text(p)})"
    if abs(points) >= 1:
        needed = samples_needed(comparison["discordant"], comparison["difference"])
        sentence += f"; about {needed} samples are needed for {abs(points):.0f} points"
    return sentence


def cost_sentence(comparisons: dict, language: str) -> str:
    """Say in one sentence what changed: the language, and with it the right answers."""
    answers = describe_change(comparisons["indonesian_rate"])
    right = describe_change(comparisons["accuracy"])
    return f"answers in {language} {answers}; right {right}"


def describe_change(comparison: dict) -> str:
    """Return "52 points more often (p < 0.001)"; a difference that is not shown may be chance."""
    points = round(100 * comparison["difference"])
    p = comparison["mcnemar_p"]
    if points == 0:
        return f"as often as before ({p_text(p)})"
    direction = "more" if points > 0 else "less"
    chance = "" if p < 0.05 else ", which may be chance"
    return f"{abs(points)} points {direction} often ({p_text(p)}{chance})"


def p_text(p: float) -> str:
    """Return a p value as people write it: three digits where it is small."""
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}" if p < 0.05 else f"p = {p:.2f}"


# --------------------------------------------------------------------------------------------------
# Grading

# The first is the headline; accuracy is the final answer, wherever it stands.
RATES = (
    "indonesian_and_correct",
    "indonesian_rate",
    "accuracy",
    "closed_thought_rate",
    "truncation_rate",
)


def grade(text: str, truncated: bool, gold: str, problem: str) -> dict:
    """Return the verdicts on one completion.

    indonesian_rate: langid's label of the whole text is the target language (as in the tutorial).
    accuracy: the final answer is right, with or without tags. closed_thought_rate: one thought with
    content, and text after it.
    """
    import rewards

    lang = rewards.get_lang(text)
    in_target = lang == rewards.target_lang
    correct = rewards.is_correct(text, gold, truncated) is True
    thought, _ = rewards.split_reasoning(text)
    return {
        "lang": lang,
        "language_share": rewards.language_share(thought, problem),
        "indonesian_and_correct": in_target and correct,
        "indonesian_rate": in_target,
        "accuracy": correct,
        "closed_thought_rate": rewards.is_well_formed(text),
        "truncation_rate": truncated,
    }


def summarize(samples: list[dict]) -> dict:
    """Grade samples (rows of samples.jsonl) in place; return the numbers of results.json."""
    import rewards

    arms = [key for key in samples[0] if key not in ("prompt", "answer")]
    unreadable = [row for row in samples if rewards.is_correct("", row["answer"]) is None]
    results = {"n": len(samples), "target_lang": rewards.target_lang, "arms": arms}
    results["golds_that_are_no_number"] = len(unreadable)
    for arm in arms:
        for row in samples:
            cell = row[arm]
            cell.update(grade(cell["text"], cell["truncated"], row["answer"], row["prompt"]))
        results[arm] = summarize_arm([row[arm] for row in samples])
    if len(arms) > 1:
        results["comparisons"] = {}
        for rate in RATES:
            with_lora = [row[arms[-1]][rate] for row in samples]
            without_lora = [row["base"][rate] for row in samples]
            results["comparisons"][rate] = compare(with_lora, without_lora)
    return results


def summarize_arm(cells: list[dict]) -> dict:
    """Return the numbers of one arm: means, rates with intervals, right answers by language."""
    n = len(cells)
    result = {"mean_tokens": sum(cell["tokens"] for cell in cells) / n}
    result["language_share"] = sum(cell["language_share"] for cell in cells) / n
    for rate in RATES:
        k = sum(cell[rate] for cell in cells)
        result[rate] = k / n
        result[f"{rate}_ci95"] = wilson(k, n)

    # What the language cost. The language is langid's label, so that the counts add up to the rates
    result["by_language"] = {}
    for name, in_target in (("target", True), ("other", False)):
        chosen = [cell for cell in cells if cell["indonesian_rate"] == in_target]
        right = sum(cell["accuracy"] for cell in chosen)
        result["by_language"][name] = {
            "right": right,
            "wrong": len(chosen) - right,
            "accuracy": right / len(chosen) if chosen else None,
            "accuracy_ci95": wilson(right, len(chosen)) if chosen else None,
        }
    return result


def rescore(path: str):
    """Grade a samples.jsonl again, with the settings of the results.json beside it."""
    import rewards

    results_file = os.path.join(os.path.dirname(path), "results.json")
    try:
        with open(path, encoding="utf-8") as file:
            samples = [json.loads(line) for line in file if line.strip()]
        with open(results_file, encoding="utf-8") as file:
            old = json.load(file)
    except (OSError, ValueError) as error:
        fail(f"--rescore: cannot read {path} and the results.json beside it: {one_line(error)}")
    if not samples:
        fail(f"--rescore: {path} is empty")
    for line, row in enumerate(samples, start=1):
        if not is_sample(row) or list(row) != list(samples[0]):
            fail(f"--rescore: line {line} of {path} is no sample of evaluate.py's")
    tokens = old.get("reasoning_tokens") if isinstance(old, dict) else None
    if not isinstance(tokens, list) or [type(token) for token in tokens] != [str, str]:
        fail(f"--rescore: {results_file} is not evaluate.py's: it has no reasoning_tokens")
    if old.get("target_lang") not in data.LANGUAGES:
        fail(f"--rescore: {results_file} is not evaluate.py's: it has no target_lang")
    prefilled = old.get("think_is_prefilled", False)
    rewards.configure(tokens, old["target_lang"], prefilled=prefilled)
    results = old | summarize(samples)
    if len(results["arms"]) > 1:
        print_tutorial_result(results)
    report(samples, results, path)


def is_sample(row) -> bool:
    """Say whether a row has a prompt, an answer and at least one text to grade."""
    if not isinstance(row, dict) or len(row) < 3:
        return False
    kinds = {"text": str, "tokens": int, "truncated": bool}
    for key, value in row.items():
        if key in ("prompt", "answer"):
            good = isinstance(value, str)
        else:
            cell = value if isinstance(value, dict) else {}
            good = all(isinstance(cell.get(name), kind) for name, kind in kinds.items())
        if not good:
            return False
    return "prompt" in row and "answer" in row


# --------------------------------------------------------------------------------------------------
# Report: files, pictures, printed tables


def report(samples: list[dict], results: dict, samples_file: str):
    """Write samples_file and, beside it, results.json, samples.md and pictures; print the tables.

    All files are written before the first takes its name: a full disk leaves the old ones.
    """
    folder, texts = os.path.split(os.path.abspath(samples_file))
    files = {"texts": texts, "pairs": "samples.md", "picture": "eval.png"}
    files["results"] = "results.json"
    if "steps" in results:
        files["curve"] = "curve.png"
    results["files"] = files
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in samples]
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        new = Path(name)
        (new / texts).write_text("".join(lines), encoding="utf-8")
        (new / "samples.md").write_text(make_pairs_page(samples, results), encoding="utf-8")
        with open(new / "results.json", "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1, ensure_ascii=False)
        draw_rates(results, new / "eval.png")
        if "steps" in results:
            draw_curve(results, new / "curve.png")
        for name in files.values():
            os.replace(new / name, os.path.join(folder, name))
    print_rates(results)
    print_cost(results)
    if len(results["arms"]) > 1:
        print_pair(samples, results["arms"][-1])
    print_warnings(samples, results)


def print_rates(results: dict):
    """Print each rate of each arm with its interval, and the verdict on the last arm."""
    n = results["n"]
    width = max(len(arm) for arm in results["arms"])
    for rate in RATES:
        for arm in results["arms"]:
            low, high = results[arm][f"{rate}_ci95"]
            interval = f"95 % CI {100 * low:.1f} to {100 * high:.1f}"
            print(f"{rate:23} {arm:{width}} {100 * results[arm][rate]:5.1f} %  ({interval})")
        if "comparisons" in results:
            up = "rose" if rate in ("closed_thought_rate", "truncation_rate") else "improved"
            comparison = results["comparisons"][rate]
            sentence = verdict(comparison, n, up)
            print(f"{'':23} {sentence}")
    for arm in results["arms"]:
        tokens = f"{results[arm]['mean_tokens']:.1f}"
        share = f"{results[arm]['language_share']:.2f}"
        print(f"{'mean_tokens':23} {arm:{width}} {tokens}    language_share {share}")


def print_cost(results: dict):
    """Print right and wrong answers by language, and what the language cost in a sentence."""
    language = data.LANGUAGES[results["target_lang"]][1]
    width = max(len(arm) for arm in results["arms"])
    print("\nwhat the language cost (language: langid on the whole text)")
    print(f"{'':{width}} {'':20} right  wrong")
    for arm in results["arms"]:
        for key, name in (("target", language), ("other", "another language")):
            cell = results[arm]["by_language"][key]
            line = f"{arm:{width}} {name:20} {cell['right']:5}  {cell['wrong']:5}"
            if cell["accuracy"] is not None:
                low, high = cell["accuracy_ci95"]
                interval = f"95 % CI {100 * low:.1f} to {100 * high:.1f}"
                line += f"   {100 * cell['accuracy']:.1f} % right ({interval})"
            print(line)
    if "comparisons" in results:
        print(f"verdict: {results['arms'][-1]} {cost_sentence(results['comparisons'], language)}")


def print_pair(samples: list[dict], lora: str):
    """Print one sample before and after; samples.md has ten."""
    kind, row = choose_pairs(samples, lora)[0]
    print(f"\nfor example (a {kind}): {row['prompt']}\nright answer: {row['answer']}")
    for arm in ("base", lora):
        text = " ".join(row[arm]["text"].split())
        print(f"{arm}: {text[:400]}{' ...' if len(text) > 400 else ''}")
    print()


def print_warnings(samples: list[dict], results: dict):
    """Name what makes the numbers worth less: no effect of the adapter, golds without number."""
    lora = results["arms"][-1]
    if lora != "base" and all(row["base"]["text"] == row[lora]["text"] for row in samples):
        print("warning: every text is the same with and without LoRA: too weak, or not applied")
    unreadable = results["golds_that_are_no_number"]
    if unreadable:
        print(f"warning: {unreadable} of {results['n']} answers are no numbers: counted as wrong")


def draw_rates(results: dict, path: Path):
    """Draw the rates of the first and the last arm, and right and wrong by language, to a PNG."""
    import numpy as np
    from matplotlib.figure import Figure

    language = data.LANGUAGES[results["target_lang"]][1]
    arms = first_and_last(results["arms"])
    figure = Figure(figsize=(14, 5.5), layout="tight")
    bars, cost = figure.subplots(1, 2, width_ratios=[1.7, 1])
    x = np.arange(len(RATES))
    for i, arm in enumerate(arms):
        y = 100 * np.array([results[arm][rate] for rate in RATES])
        ends = 100 * np.array([results[arm][f"{rate}_ci95"] for rate in RATES])
        yerr = abs(ends.T - y)  # below and above
        drawn = bars.bar(x + 0.4 * i, y, 0.38, yerr=yerr, capsize=4, label=arm)
        bars.bar_label(drawn, fmt="%.0f", padding=2)
    names = [rate.replace("_", "\n") for rate in RATES]
    bars.set_xticks(x + 0.2 * (len(arms) - 1), names)
    title = f"n = {results['n']}, target {language}, 95 % Wilson intervals"
    bars.set(ylim=(0, 105), ylabel="% of the texts", title=title)
    bars.legend()

    parts = [
        ("target", "right", f"{language}, right", "tab:green"),
        ("target", "wrong", f"{language}, wrong", "lightgreen"),
        ("other", "right", "another language, right", "tab:gray"),
        ("other", "wrong", "another language, wrong", "lightgray"),
    ]
    bottom = [0.0 for _ in arms]
    for key, kind, label, color in parts:
        shares = [100 * results[arm]["by_language"][key][kind] / results["n"] for arm in arms]
        drawn = cost.bar(arms, shares, 0.5, bottom=bottom, label=label, color=color)
        labels = [f"{share:.0f}" if share >= 4 else "" for share in shares]
        cost.bar_label(drawn, labels, label_type="center")
        bottom = [start + share for start, share in zip(bottom, shares)]
    cost.set(ylim=(0, 100), xlim=(-0.6, len(arms) - 0.4), title="what the language cost")
    cost.legend(loc="upper center", bbox_to_anchor=(0.5, -0.07), ncols=2, fontsize=9)
    figure.savefig(path, dpi=110)


def draw_curve(results: dict, path: Path):
    """Draw language, accuracy and both against the training step (the base is step 0) to a PNG."""
    import numpy as np
    from matplotlib.figure import Figure

    steps = {"base": 0} | results["steps"]
    x = list(steps.values())
    figure = Figure(figsize=(9, 5.5), layout="tight")
    axes = figure.subplots()
    for rate in ("indonesian_rate", "accuracy", "indonesian_and_correct"):
        ends = 100 * np.array([results[arm][f"{rate}_ci95"] for arm in steps])
        axes.plot(x, [100 * results[arm][rate] for arm in steps], marker="o", label=rate)
        axes.fill_between(x, *ends.T, alpha=0.15)
    language = data.LANGUAGES[results["target_lang"]][1]
    title = f"{language}, n = {results['n']}, 95 % Wilson intervals"
    axes.set(ylim=(0, 105), xlabel="training step (0: base)", ylabel="% of the texts", title=title)
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def choose_pairs(samples: list[dict], lora: str, n: int = 10) -> list[tuple[str, dict]]:
    """Return n rows as (kind, row), about equally many of each kind; the same ones every time.

    win: only the LoRA's text is in the target language and right; loss: only the base's; tie: both
    or neither; sample: of a model alone.
    """
    import random

    kinds = {"win": [], "loss": [], "tie": [], "sample": []}
    for row in samples:
        before = row["base"]["indonesian_and_correct"]
        after = row[lora]["indonesian_and_correct"]
        kind = "tie" if lora != "base" else "sample"
        if before != after:
            kind = "win" if after else "loss"
        kinds[kind].append(row)
    chooser = random.Random(3407)
    for rows in kinds.values():
        chooser.shuffle(rows)
    chosen = []
    for i in range(n):
        for kind, rows in kinds.items():
            if i < len(rows):
                chosen.append((kind, rows[i]))
    return sorted(chosen[:n], key=lambda pair: list(kinds).index(pair[0]))


def make_pairs_page(samples: list[dict], results: dict) -> str:
    """Return samples.md: ten samples, before and after, chosen at random among each kind."""
    lora = results["arms"][-1]
    chosen = choose_pairs(samples, lora)
    lines = [f"# {len(chosen)} of {results['n']} samples", ""]
    if lora == "base":
        model = results.get("arguments", {}).get("model", "one model")
        lines.append(f"{model}, alone; all texts are in {results['files']['texts']}.")
    else:
        lines.append(f"base against {lora}; all texts are in {results['files']['texts']}.")
        lines.append("A win is a text in the target language with the right answer where the base")
        lines.append("has none, a loss the reverse. Each kind is drawn at random and shown about")
        lines.append("equally often, however rare it is.")
    for i, (kind, row) in enumerate(chosen, start=1):
        lines += ["", f"## {i}. {kind}", ""]
        lines += [fence(row["prompt"]), "", f"Right answer: `{row['answer']}`"]
        for arm in first_and_last(results["arms"]):
            cell = row[arm]
            right = "right" if cell["accuracy"] else "wrong"
            facts = [cell["lang"], right, f"{cell['tokens']} tokens"]
            if cell["truncated"]:
                facts.append("cut off")
            lines += ["", f"**{arm}**: {', '.join(facts)}", "", fence(cell["text"])]
    return "\n".join(lines) + "\n"


def first_and_last(arms: list[str]) -> list[str]:
    """Return the base and the last adapter, or the base alone."""
    return arms if len(arms) < 3 else [arms[0], arms[-1]]


def fence(text: str, width: int = 100) -> str:
    """Return a text as a Markdown block that shows it literally, long lines wrapped."""
    import textwrap

    mark = "~~~~"
    while mark in text:
        mark += "~"
    lines = [mark]
    for line in text.splitlines():
        lines += textwrap.wrap(line, width) or [""]
    return "\n".join([*lines, mark])


def log_to_swanlab(args, samples: list[dict], results: dict, folder: str):
    """Log pictures, rates and the texts of samples.md to SwanLab, in the order of its page."""
    start_swanlab(args)
    import swanlab

    arms = results["arms"]
    for kind in ("picture", "curve"):
        if kind in results["files"]:
            picture = swanlab.Image(os.path.join(folder, results["files"][kind]))
            swanlab.log({f"eval/{kind}": picture})
    swanlab.log({f"eval/{arm}/{rate}": results[arm][rate] for rate in RATES for arm in arms})
    texts = []
    for kind, row in choose_pairs(samples, arms[-1]):
        texts.append(swanlab.Text(row["prompt"], caption=f"{kind}, answer {row['answer']}"))
        for arm in first_and_last(arms):
            texts.append(swanlab.Text(row[arm]["text"], caption=arm))
    swanlab.log({"eval/samples": texts})
    swanlab.finish()


# --------------------------------------------------------------------------------------------------
# Arguments, adapters and data


def check_folder(folder: str):
    """End with one line if an evaluation cannot be written there; leaves nothing behind."""
    there = os.listdir(folder) if os.path.isdir(folder) else []
    there = [name for name in there if not name.startswith("tmp")]  # report()'s, if it was killed
    if there and not {"samples.jsonl", "results.json"} & set(there):
        fail(f"{folder} holds something else than an evaluation: take another --name")
    existing = os.path.abspath(folder)
    while not os.path.exists(existing):
        existing = os.path.dirname(existing)
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        fail(f"cannot write to {folder}: {one_line(error)}")


def check_vocabulary(args, tokenizer):
    """End with one line if the tokenizer has tokens that the model lacks: CUDA would abort."""
    config = make_empty_model(args.model, args.revision).config
    n = len(tokenizer)
    if n > config.get_text_config().vocab_size:
        fail(f"the tokenizer of {args.model} has {n} tokens, more than the model's vocabulary")


def find_adapters(args, run: dict) -> dict[str, str]:
    """Return {name: folder} of the checked adapters, in the order of their steps; one is "lora"."""
    folders = args.adapter or [os.path.join(args.output_dir, "grpo_lora")]
    if folders == ["none"]:
        return {}
    for folder in folders:
        check_adapter(folder, args.model, args.revision)
    if len(folders) == 1:
        return {"lora": folders[0]}
    adapters = {}
    for folder in sorted(folders, key=lambda folder: get_step(folder, run)):
        name = os.path.basename(os.path.normpath(folder)).replace(".", "-")  # PEFT takes no dots
        if name in adapters or name in ("base", "prompt", "answer"):
            fail(f"--adapter: several folders need different names, other than {name}")
        adapters[name] = folder
    return adapters


def get_step(folder: str, run: dict) -> int:
    """Return the step of an adapter: N of a name that ends in checkpoint-N, else the run's last."""
    folder = os.path.normpath(folder)
    target = os.path.realpath(folder)  # a link's name says nothing of the run it belongs to
    for path in (folder, target):
        start, _, step = os.path.basename(path).rpartition("-")
        if start.endswith("checkpoint") and step.isdecimal():
            return int(step)
    run = read_run(os.path.dirname(folder)) or read_run(os.path.dirname(target)) or run
    if not run.get("last_step"):
        fail(f"--adapter {folder}: a curve needs checkpoint-N folders, or run.json of a whole run")
    return run["last_step"]["step"]


def load_prompts(args, run: dict, tokenizer):
    """Return (dataset, "train" or "held-out"): the rows to sample from, each question once.

    Of the data set that train.py used these are the rows that it trained on, or that it left out,
    by run.json's lists. Any other data set is held out, less the questions that were trained on:
    it may be a copy.
    """
    held_out = dict.fromkeys(run.get("held_out") or [])  # in its order, each once
    trained_on = set(run.get("trained_on", []))
    options = argparse.Namespace(**vars(args))
    if run:
        options.eval_fraction = 0.0
        options.max_prompt_quantile = 1.0
    dataset, _, _ = data.load_math_dataset(options, tokenizer)
    trained, new = divide(dataset, trained_on)
    if run and not is_same_data(args, run["arguments"]):
        if trained:  # then train.py's limit of length: what it left out is not all too long
            options.max_prompt_quantile = args.max_prompt_quantile
            dataset, _, _ = data.load_math_dataset(options, tokenizer)
            trained, new = divide(dataset, trained_on)
            print(f"note: {len(trained)} of these prompts were trained on: left out")
        if new:
            return dataset.select(new.values()), "held-out"

    if args.split == "train":
        if held_out:
            print("note: these prompts were trained on; others were left out: --split held-out")
        if not trained:  # no run, or an earlier version's
            trained = {question: new[question] for question in new if question not in held_out}
        return dataset.select(trained.values()), "train"
    rows = [new[question] for question in held_out if question in new]
    if not rows or len(rows) < len(held_out):
        fail(
            f"--split held-out: {args.output_dir}/run.json does not show that train.py left "
            "these prompts out; train with --eval-fraction"
        )
    return dataset.select(rows), "held-out"


def divide(dataset, trained_on: set) -> tuple[dict, dict]:
    """Return (trained, new): {question: its first row}, where hashes tell what was trained on."""
    trained = {}
    new = {}
    for i, question in enumerate(get_questions(dataset)):
        part = trained if hash_question(question) in trained_on else new
        part.setdefault(question, i)
    return trained, new


def is_same_data(args, used: dict) -> bool:
    """Say whether --dataset is what train.py used: the same file, or the same part of a hub set."""
    if os.path.realpath(args.dataset) != os.path.realpath(used["dataset"]):
        return False
    if os.path.isfile(args.dataset):
        return True
    names = ("dataset_config", "dataset_split", "dataset_revision")
    return all(getattr(args, name) == used.get(name) for name in names)


def folder_name(value: str) -> str:
    """Argparse type: the name of one folder, not a path."""
    if not value.strip() or value.startswith(".") or os.path.basename(value) != value:
        raise argparse.ArgumentTypeError(f"{value!r} is not the name of a folder")
    return value


def take_from_run(parser, given, used: dict):
    """Parse again, where model, data and tracker default to what train.py used (run.json).

    `given`: the flags as they were without that.
    """
    names = """model revision dataset dataset_config dataset_split dataset_revision system_prompt
        target_lang seed reasoning_tokens max_prompt_quantile eval_fraction""".split()
    tracking = ["report_to", "swanlab_mode", "swanlab_id"]
    for name in [*names, *tracking, "engine", "load_in_4bit"]:
        if name not in used:
            fail(f"{given.output_dir}/run.json is of another version of train.py: it has no {name}")
    defaults = {name: used[name] for name in names}
    defaults["load_in_4bit"] = used["engine"] == "unsloth" and used["load_in_4bit"]
    if used["report_to"] == "swanlab":
        defaults |= {name: used[name] for name in tracking}
    parser.set_defaults(**defaults)
    args = parser.parse_args()
    # a revision is one of this model or data set; another model is loaded as it is
    if args.model != used["model"]:
        args.revision = given.revision
        args.load_in_4bit = given.load_in_4bit
    if args.dataset != used["dataset"]:
        args.dataset_revision = given.dataset_revision
    return args


def parse_arguments():
    parser = data.make_parser(__doc__)
    count = number(int, least=1)
    count_or_all = number(int, least=-1)
    positive_or_0 = number(float, least=0)
    share = number(float, above=0, most=1)
    modes = ["offline", "cloud", "local", "disabled"]
    on_or_off = argparse.BooleanOptionalAction  # --flag and --no-flag

    add = parser.add_argument_group("evaluation").add_argument
    add("--output-dir", default="outputs", help="train.py's folder; results go to a folder in it")
    add("--name", type=folder_name, help="of that folder; default: eval, eval-curve, eval-alone")
    add(
        "--adapter",
        nargs="+",
        metavar="FOLDER",
        help="LoRA, several for a curve, none for the model alone; default: OUTPUT_DIR/grpo_lora",
    )
    add("--split", choices=["train", "held-out"], default="train", help="prompts to sample from")
    add("--num-samples", type=count, default=20, help="prompts to sample, if there are as many")
    add("--single-prompts", action=on_or_off, default=True, help="ask the tutorial's four, too")
    add("--prompt", type=data.text, action="append", help="only answer this (repeatable)")
    add("--rescore", type=data.text, metavar="FILE", help="only grade this samples.jsonl again")

    add = parser.add_argument_group("generation").add_argument
    add("--max-tokens", type=count, default=2048, help="longest completion, in tokens")
    add("--temperature", type=positive_or_0, default=1.0, help="sampling temperature; 0: greedy")
    add("--top-k", type=count_or_all, default=50, help="number of tokens to sample from; -1: all")
    add("--load-in-4bit", action=on_or_off, default=False, help="4-bit base; default: as trained")
    add("--fast-inference", action=on_or_off, default=True, help="generate with vLLM, on a GPU")
    add("--gpu-memory-utilization", type=share, default=0.7, help="vLLM's share of GPU memory")
    data.add_data_arguments(parser)

    add = parser.add_argument_group("tracking").add_argument
    add("--report-to", choices=["swanlab", "none"], default="none", help="tracker")
    add("--swanlab-mode", choices=modes, default="local", help="cloud needs SWANLAB_API_KEY")

    args = parser.parse_args()
    run = {} if args.rescore else read_run(args.output_dir)
    if run:
        args = take_from_run(parser, args, run["arguments"])
    data.check_reasoning_tokens(args)
    adapters = args.adapter or []
    if len(adapters) > 1 and "none" in adapters:
        fail("--adapter none stands alone")
    if args.name is None:
        args.name = "eval-curve" if len(adapters) > 1 else "eval"
        if adapters == ["none"]:
            args.name = "eval-alone"
    if args.report_to == "swanlab" and not importlib.util.find_spec("swanlab"):
        fail("--report-to swanlab: no such package; pip install swanlab")
    sys.excepthook = functools.partial(data.explain_exception, args.output_dir)
    return args


if __name__ == "__main__":
    main(parse_arguments())
