"""Compare the trained LoRA with its base model on the same prompts: language, accuracy, and how sure that is.

The tutorial's "推理" cells: its four single prompts, then its comparison on 20 shuffled samples, with the model loaded
once: one batch with vLLM on a GPU, batches of 64 with transformers + PEFT elsewhere, where the tutorial sends prompts one
at a time. Data and model default to what OUTPUT_DIR/run.json says that train.py used.

    python evaluate.py                                          # the tutorial: 20 prompts that it trained on
    python evaluate.py --split held-out --num-samples 200       # what train.py --eval-fraction left out
    python evaluate.py --model outputs/export/merged_16bit --adapter none     # any one model, alone
    python evaluate.py --rescore outputs/eval/samples.jsonl     # grade saved texts again, in seconds, no GPU
"""
import argparse
import json
import math
import os
import time

from data import add_data_arguments, get_reasoning_tokens, load_math_dataset, load_tokenizer, make_system_prompt
from train import check_adapter

RATES = ("indonesian_rate", "accuracy", "indonesian_and_correct", "truncation_rate")


def wilson(k, n):
    """Return the 95 % Wilson score interval [low, high] of the rate k / n (Wilson 1927)."""
    from scipy.stats import binomtest
    interval = binomtest(k, n).proportion_ci(method="wilson")
    return [interval.low, interval.high]


def mcnemar(only_first, only_second):
    """Return the two-sided p of the exact McNemar test, from the two counts of discordant pairs."""
    from scipy.stats import binomtest
    return binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0


def paired_difference(both, only_first, only_second, neither):
    """Return (difference, [low, high]) of two rates on the same n = sum of the four counts of pairs, first - second.

    95 % interval by Newcombe's method 10 (Statistics in Medicine 17, 1998, 2635-2650): two Wilson intervals, joined with
    the correlation of the pairs.
    """
    n = both + only_first + only_second + neither
    first, second = both + only_first, both + only_second
    (l1, u1), (l2, u2), p1, p2 = wilson(first, n), wilson(second, n), first / n, second / n
    cross = both * neither - only_first * only_second
    spread = math.sqrt(first * (n - first) * second * (n - second))
    phi = (max(cross - n / 2, 0) if cross > 0 else cross) / spread if spread else 0.0
    low = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    high = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    return p1 - p2, [p1 - p2 - math.sqrt(max(low, 0)), p1 - p2 + math.sqrt(max(high, 0))]


def samples_needed(p1, p2):
    """Return the samples per arm that show p1 against p2 at 5 % with 80 % power (Fleiss, normal approximation)."""
    from scipy.stats import norm
    mean, a, b = (p1 + p2) / 2, norm.ppf(0.975), norm.ppf(0.8)
    root = a * math.sqrt(2 * mean * (1 - mean)) + b * math.sqrt(p1 * (1 - p1) + p2 * (1 - p2))
    return math.ceil((root / (p1 - p2)) ** 2)


def verdict(comparison, n, base_rate, lora_rate, up="improved"):
    """Return one sentence on a comparison (a value of summarize(...)["comparisons"]); `up` names a rise."""
    points, (low, high), p = (100 * comparison["difference"], comparison["difference_ci95"], comparison["mcnemar_p"])
    if p < 0.05:
        p_text = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
        return (f"{up if points > 0 else 'fell'} by {abs(points):.0f} points "
                f"(95 % CI {100 * low:.0f} to {100 * high:.0f}, n = {n}, {p_text})")
    sentence = f"no difference shown at n = {n} (p = {p:.2f})"
    if abs(points) < 1:
        return sentence
    return f"{sentence}; about {samples_needed(base_rate, lora_rate)} per arm are needed for {abs(points):.0f} points"


def grade(text, truncated, gold, problem):
    """Return the verdicts on one completion: language as the tutorial takes it, graded share, correctness."""
    from rewards import get_lang, is_correct, language_share, split_reasoning, target_lang
    lang, correct = get_lang(text), bool(is_correct(text, gold))
    return {"lang": lang, "language_share": language_share(split_reasoning(text)[0], problem),
            "indonesian_rate": lang == target_lang, "accuracy": correct,
            "indonesian_and_correct": lang == target_lang and correct, "truncation_rate": truncated}


def summarize(samples):
    """Grade samples (rows of samples.jsonl) in place and return results.json's numbers for each arm they have."""
    from rewards import target_lang
    n, arms = len(samples), [arm for arm in ("base", "lora") if arm in samples[0]]
    results = {"n": n, "target_lang": target_lang}
    for arm in arms:
        for row in samples:
            row[arm] |= grade(row[arm]["text"], row[arm]["truncated"], row["answer"], row["prompt"])
        cells = [row[arm] for row in samples]
        results[arm] = {"mean_tokens": sum(cell["tokens"] for cell in cells) / n,
                        "language_share": sum(cell["language_share"] for cell in cells) / n}
        for rate in RATES:
            k = sum(cell[rate] for cell in cells)
            results[arm] |= {rate: k / n, f"{rate}_ci95": wilson(k, n)}
        # langid's one label against the graded share: good Indonesian read as Malay, or a foreign thought as Indonesian
        differ = [cell for cell in cells if (cell["language_share"] >= 0.5) != cell["indonesian_rate"]]
        examples = [{key: cell[key] for key in ("lang", "language_share", "text")} for cell in differ[:3]]
        results[arm]["langid_disagrees"] = {"n": len(differ), "labels": sorted({cell["lang"] for cell in differ}),
                                            "examples": examples}
    if len(arms) == 2:
        results["comparisons"] = {}
        for rate in RATES:
            pairs = [(row["lora"][rate], row["base"][rate]) for row in samples]
            counts = [pairs.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
            difference, interval = paired_difference(*counts)
            results["comparisons"][rate] = {"difference": difference, "difference_ci95": interval,
                                            "mcnemar_p": mcnemar(*counts[1:3])}
        results |= results["comparisons"]["indonesian_rate"]
    return results


def draw(samples, results, path):
    """Draw the rates with their intervals, and the first pairs of texts, to a PNG."""
    import textwrap
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    arms = [arm for arm in ("base", "lora") if arm in results]
    figure, (bars, texts) = plt.subplots(1, 2, figsize=(14, 6), width_ratios=[1, 1.4])
    for offset, arm in enumerate(arms):
        y = [100 * results[arm][rate] for rate in RATES]
        error = [[100 * abs(results[arm][rate] - results[arm][f"{rate}_ci95"][side]) for rate in RATES] for side in (0, 1)]
        bars.bar([i + 0.38 * offset for i in range(len(RATES))], y, 0.36, yerr=error, capsize=4, label=arm)
    bars.set_xticks([i + 0.19 * (len(arms) - 1) for i in range(len(RATES))], [rate.replace("_", "\n") for rate in RATES])
    bars.set(ylim=(0, 105), ylabel="%", title=f"{results['target_lang']}, n = {results['n']}, 95 % Wilson intervals")
    bars.legend()
    lines = []
    for row in samples[:3]:
        lines += [f"Q: {row['prompt'][:150]} (gold {row['answer']})", *(f"{arm}: {row[arm]['text'][:330]}" for arm in arms), ""]
    wrapped = "\n".join(textwrap.fill(line, 95) for line in lines)
    texts.text(0, 1, wrapped.replace("$", r"\$"), va="top", fontsize=8, family=["monospace"])
    texts.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def report(samples, results, samples_file):
    """Write samples_file, results.json and eval.png, and print the tutorial's lines, then the rates and verdicts."""
    folder = os.path.dirname(samples_file)
    draw(samples, results, os.path.join(folder, "eval.png"))
    with open(samples_file, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in samples)
    with open(os.path.join(folder, "results.json"), "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1, ensure_ascii=False)
    n = results["n"]
    if "comparisons" in results:
        from data import LANGUAGES
        language = LANGUAGES[results["target_lang"]][0]
        with_lora, without = (round(results[arm]["indonesian_rate"] * n) for arm in ("lora", "base"))
        print(f"\n在{n}个样本上比较使用和不使用LoRA的语言使用情况:\n{'=' * 60}")
        print(f"使用LoRA - {language}响应: {with_lora}/{n} ({with_lora / n * 100:.1f}%)")
        print(f"不使用LoRA - {language}响应: {without}/{n} ({without / n * 100:.1f}%)")
        print(f"改进: 使用LoRA增加了{with_lora - without}个{language}响应\n")
    for rate in RATES:
        for arm in ("base", "lora"):
            if arm in results:
                low, high = results[arm][f"{rate}_ci95"]
                print(f"{rate:23} {arm}  {100 * results[arm][rate]:5.1f} %  (95 % CI {100 * low:.1f} to {100 * high:.1f})")
        if "comparisons" in results:
            up = "rose" if rate == "truncation_rate" else "improved"
            print(f"{'':23} {verdict(results['comparisons'][rate], n, results['base'][rate], results['lora'][rate], up)}")
    for arm in ("base", "lora"):
        if arm in results:
            differ = results[arm]["langid_disagrees"]
            print(f"{'mean_tokens':23} {arm}  {results[arm]['mean_tokens']:.1f}    language_share {results[arm]['language_share']:.2f}, "
                  f"which langid contradicts on {differ['n']} of {n} {differ['labels'] or ''}")


if __name__ == "__main__":
    # -----------------------------------------------------------------------------------------------------------------
    # Arguments
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_data_arguments(parser)
    group = parser.add_argument_group("evaluation")
    group.add_argument("--output-dir", default="outputs", help="train.py's output folder; results go to its eval/")
    group.add_argument("--adapter", help="LoRA folder, or none for the model alone (None: OUTPUT_DIR/grpo_lora)")
    group.add_argument("--split", choices=["train", "held-out"], default="train",
                       help="prompts to sample; train: the tutorial's choice")
    group.add_argument("--num-samples", type=int, default=20, help="number of prompts")
    group.add_argument("--max-tokens", type=int, default=2048, help="longest completion, in tokens")
    group.add_argument("--temperature", type=float, default=1.0, help="sampling temperature; 0: greedy")
    group.add_argument("--top-k", type=int, default=50, help="number of tokens to sample from")
    group.add_argument("--load-in-4bit", action=argparse.BooleanOptionalAction, default=True,
                       help="4-bit base (GPU); where run.json is, as trained")
    group.add_argument("--fast-inference", action=argparse.BooleanOptionalAction, default=True,
                       help="generate with vLLM (needs a GPU)")
    group.add_argument("--gpu-memory-utilization", type=float, default=0.7, help="vLLM's share of GPU memory, 0 to 1")
    group.add_argument("--rescore", metavar="FILE", help="only grade this samples.jsonl again")
    group.add_argument("--report-to", choices=["swanlab", "none"], default="none", help="tracker")
    group.add_argument("--swanlab-mode", choices=["offline", "cloud", "local", "disabled"], default="offline",
                       help="cloud needs `swanlab login`")
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    args = parser.parse_args()
    run, split_seed = {}, args.seed
    run_file = os.path.join(args.output_dir, "run.json")
    if os.path.exists(run_file) and not args.rescore:
        run = json.load(open(run_file))
        names = ("model", "dataset", "dataset_config", "dataset_split", "system_prompt", "target_lang", "reasoning_tokens",
                 "max_prompt_quantile", "eval_fraction", "seed")
        parser.set_defaults(**{name: run["arguments"][name] for name in names})
        same_model = parser.parse_args().model == run["arguments"]["model"]  # not so: merged_16bit alone, for instance
        parser.set_defaults(load_in_4bit=same_model and run["effective"]["load_in_4bit"])
        args, split_seed = parser.parse_args(), run["arguments"]["seed"]

    import rewards
    if args.rescore:
        try:
            samples = [json.loads(line) for line in open(args.rescore, encoding="utf-8")]
            old = json.load(open(os.path.join(os.path.dirname(args.rescore), "results.json"), encoding="utf-8"))
            rewards.target_lang = old["target_lang"]
            rewards.reasoning_start, rewards.reasoning_end = old["reasoning_tokens"]
            report(samples, old | summarize(samples), args.rescore)
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            parser.error(f"--rescore {args.rescore}: these are not evaluate.py's samples beside their results.json ({error!r})")
        raise SystemExit

    # -----------------------------------------------------------------------------------------------------------------
    # Adapter, tokenizer and prompts
    started = time.time()
    rewards.target_lang = args.target_lang
    adapter = None if args.adapter == "none" else args.adapter or os.path.join(args.output_dir, "grpo_lora")
    folder = os.path.join(args.output_dir, "eval" if adapter else "eval-alone")
    import torch
    from transformers import AutoConfig
    try:
        tokenizer = load_tokenizer(args.model)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        adapter_config = check_adapter(adapter, args.model) if adapter else None
        if len(tokenizer) > AutoConfig.from_pretrained(args.model).get_text_config().vocab_size:
            raise ValueError(f"the tokenizer of {args.model} has {len(tokenizer)} tokens, more than the model's vocabulary")
        rewards.reasoning_start, rewards.reasoning_end = args.reasoning_tokens or get_reasoning_tokens(tokenizer)
        dataset, held_out, _ = load_math_dataset(argparse.Namespace(**vars(args) | {"seed": split_seed}), tokenizer)
    except (ValueError, OSError) as error:
        parser.error(str(error).split("\n")[0])
    if args.split == "held-out":
        questions = held_out and [prompt[-1]["content"] for prompt in held_out["prompt"]]
        if not questions or questions != run.get("held_out"):
            parser.error(f"--split held-out: {run_file} does not show that train.py left these prompts out; train with "
                         "--eval-fraction")
        dataset = held_out
    if args.num_samples > len(dataset) or args.num_samples < 1:
        parser.error(f"--num-samples {args.num_samples}: the {args.split} split has {len(dataset)} prompts")
    if args.max_tokens < 1 or args.temperature < 0:
        parser.error("--max-tokens must be at least 1, and --temperature at least 0")
    try:
        os.makedirs(folder, exist_ok=True)
        open(os.path.join(folder, "samples.jsonl"), "a").close()  # fails now, not after an hour, where we may not write
    except OSError as error:
        parser.error(str(error))
    dataset = dataset.shuffle(seed=args.seed).select(range(args.num_samples))

    def render(messages):
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    system = {"role": "system", "content": make_system_prompt(args.system_prompt, args.target_lang)}
    user = {"role": "user", "content": "Solve (x + 2)^2 = 0"}
    arms = ("base", "lora") if adapter else ("base",)
    singles = [{"arm": arm, "title": title, "prompt": prompt} for arm, title, prompt in (
        ("base", "no template", "What is the sqrt of 101?"), ("lora", "no system prompt", render([user])),
        ("lora", "system prompt", render([system, user])), ("base", "system prompt", render([system, user]))) if arm in arms]
    samples = [{"prompt": row["prompt"][-1]["content"], "answer": row["answer"]} | {arm: {} for arm in arms} for row in dataset]
    prompts = [render(row["prompt"]) for row in dataset]
    # A job: arm, prompt as text, seed, and the dictionary that takes the completion; a prompt has one seed for both arms
    jobs = [(single["arm"], single["prompt"], args.seed, single) for single in singles]
    for arm in arms:
        jobs += [(arm, prompt, args.seed + i, sample[arm]) for i, (prompt, sample) in enumerate(zip(prompts, samples))]
    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for _, prompt, _, _ in jobs]

    # -----------------------------------------------------------------------------------------------------------------
    # Generate: outputs is a list of (token ids, was it cut off)
    if torch.cuda.is_available() and args.fast_inference:
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest
        rank = next(size for size in (8, 16, 32, 64, 128, 256, 512) if size >= adapter_config["r"]) if adapter else 16  # vLLM's sizes
        llm = LLM(model=args.model, enable_lora=bool(adapter), max_lora_rank=rank,
                  max_model_len=max(max(map(len, ids)) + args.max_tokens, 2048), max_num_batched_tokens=4096,  # as in train.py
                  gpu_memory_utilization=args.gpu_memory_utilization,
                  max_num_seqs=min(len(ids), 256),  # few sequences need few CUDA graphs: the engine starts faster
                  quantization="bitsandbytes" if args.load_in_4bit else None, enable_prefix_caching=True, seed=args.seed)
        loaded = time.time()
        lora = adapter and LoRARequest("grpo_lora", 1, os.path.abspath(adapter))
        finished = llm.generate(
            [{"prompt_token_ids": row} for row in ids],
            [SamplingParams(temperature=args.temperature, top_k=args.top_k, seed=seed, max_tokens=args.max_tokens)
             for _, _, seed, _ in jobs],
            lora_request=[lora if arm == "lora" else None for arm, _, _, _ in jobs])
        outputs = [(list(item.outputs[0].token_ids), item.outputs[0].finish_reason == "length") for item in finished]
    else:
        from contextlib import nullcontext
        from tqdm import tqdm
        from transformers import AutoModelForCausalLM
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).to(device)
        if adapter:
            from peft import PeftModel
            model = PeftModel.from_pretrained(model, adapter)
        loaded = time.time()
        args.load_in_4bit = False  # results.json says what was evaluated
        sampling = ({"do_sample": True, "temperature": args.temperature, "top_k": max(args.top_k, 0), "top_p": 1.0}
                    if args.temperature else {"do_sample": False})
        batches = []
        for arm in arms:
            own = [i for i, job in enumerate(jobs) if job[0] == arm]
            batches += [own[start:start + 64] for start in range(0, len(own), 64)]
        outputs = [None] * len(jobs)
        for batch in tqdm(batches, desc="generate"):
            torch.manual_seed(jobs[batch[-1]][2])
            padded = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, padding_side="left", return_tensors="pt").to(device)
            with torch.no_grad(), model.disable_adapter() if adapter and jobs[batch[0]][0] == "base" else nullcontext():
                rows = model.generate(**padded, max_new_tokens=args.max_tokens, **sampling)[:, padded["input_ids"].shape[1]:]
            for i, row in zip(batch, rows.tolist()):
                end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
                outputs[i] = row[:end], tokenizer.eos_token_id not in row

    # -----------------------------------------------------------------------------------------------------------------
    # Grade, save, summary
    seconds = {"load": round(loaded - started, 1), "generate": round(time.time() - loaded, 1)}
    for (_, _, _, cell), (row, truncated) in zip(jobs, outputs):
        cell |= {"text": tokenizer.decode(row, skip_special_tokens=True), "tokens": len(row), "truncated": truncated}
    for single in singles:
        print(f"{'=' * 60}\n{single['arm']}, {single['title']}: {single['prompt']}\n{single['text']}")
    results = summarize(samples) | {
        "split": args.split,
        "reasoning_tokens": [rewards.reasoning_start, rewards.reasoning_end],
        "single_prompts": singles,
        "arguments": vars(args),
        "versions": run.get("versions"),
        "commit": run.get("commit"),
        "seconds": seconds,
    }
    report(samples, results, os.path.join(folder, "samples.jsonl"))
    if adapter and all(row["base"]["text"] == row["lora"]["text"] for row in samples):
        print("warning: every text is the same with and without LoRA: the adapter changes too little, or is not applied")
    print(f"seconds: {seconds}\nwritten: {folder}/results.json, samples.jsonl, eval.png")
    if args.report_to == "swanlab":
        import swanlab
        swanlab.init(project="grpo-indonesian", mode=args.swanlab_mode, logdir=os.path.join(args.output_dir, "swanlog"),
                     config=vars(args))
        swanlab.log({f"eval/{arm}/{rate}": results[arm][rate] for arm in arms for rate in RATES})
        table = swanlab.echarts.Table()
        rows = [[row["prompt"], row["answer"], *(row[arm]["text"] for arm in arms)] for row in samples]
        table.add(["prompt", "answer", *arms], rows)
        swanlab.log({"eval/samples": table, "eval/picture": swanlab.Image(os.path.join(folder, "eval.png"))})
        swanlab.finish()
