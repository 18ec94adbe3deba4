"""GRPO fine-tuning of DeepSeek-R1-0528-Qwen3-8B so that it thinks in Indonesian.

main() reads straight down like the tutorial; what the tutorial has not stands below it. It differs
from the tutorial's text in this (tests/DEVIATIONS.md says why):
 1. warmup_ratio goes in as warmup_steps; a length filter bounds prompts (no max_prompt_length).
 2. loss_type, beta, masking and clipping are set here: their defaults have changed since.
 3. min_p, top_p, top_k go through GRPOConfig; no seed goes to vLLM: a group would be alike.
 4. The check that the LoRA was trained really checks it; one before shows that rollouts follow it.
 5. A checkpoint every 20 steps, and --resume goes on after any interruption. Without it an earlier
    run's folder is moved aside, to outputs-1, outputs-2, ...

    python train.py                                          # the tutorial, one 80 GB GPU
    python train.py --resume                                 # go on with the run in outputs/
    python train.py --engine trl --model ./tiny --dataset sums.jsonl   # TRL + PEFT: also on a CPU
"""

import argparse
import functools
import glob
import hashlib
import importlib.util
import itertools
import json
import logging
import math
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
import warnings

import data
from data import fail, number, one_line, whole_file

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CHECKPOINTING = {"unsloth": "unsloth", "true": True, "false": False}


def main(args):
    started = time.time()
    set_environment()
    # refuses what cannot work, locks output_dir; a checkpoint to go on from, or None
    checkpoint = begin_run(args)

    # 模型加载, LoRA配置
    if args.engine == "unsloth":
        from unsloth import FastLanguageModel

        read_attn_factor()
        model, tokenizer = FastLanguageModel.from_pretrained(
            model_name=args.model,
            revision=args.revision,
            max_seq_length=args.max_seq_length,
            load_in_4bit=args.load_in_4bit,
            fast_inference=args.fast_inference,
            max_lora_rank=args.lora_rank,
            gpu_memory_utilization=args.gpu_memory_utilization,
            use_exact_model_name=True,  # quantise this model; Unsloth has ready-made others
        )
        model = FastLanguageModel.get_peft_model(
            model,
            r=args.lora_rank,
            target_modules=args.target_modules,
            lora_alpha=args.lora_alpha,
            use_gradient_checkpointing=CHECKPOINTING[args.use_gradient_checkpointing],
            random_state=args.seed,
        )
        peft_config = None
    else:
        model, tokenizer, peft_config = load_with_trl(args)

    # GRPO对话模板, 数据准备: data.py has these cells
    args.reasoning_tokens = args.reasoning_tokens or data.get_reasoning_tokens(tokenizer)
    # load_dataset, map, and 获取前90%的提示长度, which the tutorial has after the rewards
    dataset, held_out, maximum_length = data.load_math_dataset(args, tokenizer)
    if is_main_process():
        print("first prompt:", data.render_prompt(tokenizer, dataset[0]["prompt"]), sep="\n")

    # 奖励函数: rewards.py has these cells
    import rewards

    reward_funcs = [*rewards.REWARDS[args.rewards], *rewards.MEASURED]  # measured: weight 0

    # 训练模型
    max_prompt_length = maximum_length + 1  # +1, as the tutorial has it
    max_completion_length = args.max_seq_length - max_prompt_length
    configure_rewards(args, tokenizer, dataset, max_completion_length)
    # end with one line where nothing could be learned; then move an earlier run's folder aside
    check_sizes(args, tokenizer, dataset, max_prompt_length)
    check_same_data(args, checkpoint, dataset, held_out)
    move_earlier_run(args)

    import torch
    from trl import GRPOConfig, GRPOTrainer

    gpu = torch.cuda.is_available()
    torch.backends.cuda.enable_cudnn_sdp(False)  # NaN gradients on H100s (pytorch#196678)
    training_args = GRPOConfig(
        temperature=args.temperature,
        min_p=args.min_p,  # these three are the tutorial's vllm_sampling_params
        top_p=args.top_p,
        top_k=max(args.top_k, 0),  # vLLM calls "all" -1, TRL 0
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        warmup_steps=args.warmup_ratio,  # transformers 5 reads a value below 1 as a share
        lr_scheduler_type=args.lr_scheduler_type,
        optim=args.optim if gpu else "adamw_torch",
        logging_steps=args.logging_steps,
        per_device_train_batch_size=args.per_device_train_batch_size,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        num_generations=args.num_generations,
        max_completion_length=max_completion_length,
        max_steps=args.max_steps,
        num_train_epochs=args.num_train_epochs,
        save_steps=args.save_steps,
        save_total_limit=args.save_total_limit,
        report_to=args.report_to,
        output_dir=args.output_dir,
        # What the tutorial leaves to defaults, which have changed since it ran
        seed=args.seed,
        bf16=gpu,
        gradient_checkpointing=args.use_gradient_checkpointing != "false",
        loss_type=args.loss_type,
        beta=args.beta,
        scale_rewards=args.scale_rewards,
        mask_truncated_completions=args.mask_truncated_completions,
        # rewards.py's unless given: check_names
        reward_weights=args.reward_weights + [0.0] * len(rewards.MEASURED),
        use_vllm=gpu and args.fast_inference,
        vllm_gpu_memory_utilization=args.gpu_memory_utilization,
        vllm_max_model_length=max(args.max_seq_length, 2048),  # vLLM 0.23's warm-up needs it
        vllm_enable_sleep_mode=args.engine == "trl" and args.vllm_enable_sleep_mode,
        vllm_importance_sampling_correction=False,  # came later; costs a forward pass a step
        disable_tqdm=True,  # one line a step instead: make_watch
        log_completions=True,  # all of a logged step, to completions/*.parquet
        dataloader_pin_memory=gpu,
        num_completions_to_print=0,  # make_watch prints one now and then
    )
    if args.engine == "trl" and training_args.use_vllm:
        let_vllm_take_adapters(args.lora_rank)
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward_funcs,
        args=training_args,
        train_dataset=dataset,
        peft_config=peft_config,
    )
    if args.engine == "trl":
        skip_padding(trainer)
    if args.engine == "trl" and training_args.use_vllm:
        send_adapters_to_vllm(trainer)
    if training_args.use_vllm:
        log_rollout_difference(trainer)
        check_rollouts_follow_adapter(trainer, data.encode_prompt(tokenizer, dataset[0]["prompt"]))
    record_run(args, trainer, dataset, held_out, max_prompt_length)
    start_swanlab(args)
    watch = make_watch(args, trainer, started)
    train(args, trainer, watch, checkpoint)

    # 推理: save the LoRA and verify that it was trained; evaluate.py has the rest
    if not is_main_process():
        return
    adapter = os.path.join(args.output_dir, "grpo_lora")
    if args.engine == "unsloth" and args.fast_inference:
        model.save_lora(adapter)
    else:
        trainer.model.save_pretrained(adapter)
    if not watch.stopped:
        check_adapter(adapter)
    finish_run(args, trainer, watch, started)


# --------------------------------------------------------------------------------------------------
# Loading


def load_with_trl(args):
    """Return (model, tokenizer, peft_config) for TRL + PEFT: the same LoRA, also on a CPU."""
    import torch
    from peft import LoraConfig
    from transformers import set_seed
    from transformers.integrations.liger import apply_liger_kernel

    set_seed(args.seed)
    tokenizer = data.load_tokenizer(args.model, args.revision)
    model = load_model(args.model, args.revision)
    if torch.cuda.is_available():  # fused RMSNorm, RoPE, SwiGLU: an update takes a quarter less
        apply_liger_kernel(model, {"fused_linear_cross_entropy": False})  # TRL's own loss stays
    peft_config = LoraConfig(
        r=args.lora_rank,
        lora_alpha=args.lora_alpha,
        target_modules=args.target_modules,
        task_type="CAUSAL_LM",
    )
    return model, tokenizer, peft_config


def load_model(name: str, revision: str | None = None, dtype: str | None = None, **options):
    """Return a model, on this process's GPU where there is one; fail where it is not complete."""
    import torch
    from transformers import AutoModelForCausalLM

    gpu = torch.cuda.is_available()
    read_attn_factor()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            name,
            revision=revision,
            dtype=dtype or ("bfloat16" if gpu else "float32"),
            device_map=int(os.environ.get("LOCAL_RANK", 0)) if gpu else None,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # transformers, safetensors and torch raise a dozen types here
        fail(f"cannot load {name}: {one_line(error)}")
    missing = sorted(info["missing_keys"])
    if missing:  # transformers fills them with random numbers
        fail(f"{name} lacks {len(missing)} weights that its config.json asks for, as {missing[0]}")
    return model


def read_attn_factor():
    """Let transformers multiply YaRN's scale of cos and sin by config.json's attn_factor.

    vLLM does. Without it R1-0528-Qwen3-8B (attn_factor 0.878, for a scale of 1) is trained with
    1.3 times the attention scores that its rollouts have (DeepSeek-R1#684).
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, _compute_yarn_parameters

    def compute_yarn(config, *args, **kwargs):
        inv_freq, scale = _compute_yarn_parameters(config, *args, **kwargs)
        rope = config.rope_parameters
        if "attention_factor" not in rope:  # transformers' own key, the whole scale
            scale *= rope.get("attn_factor", 1)
        return inv_freq, scale

    ROPE_INIT_FUNCTIONS["yarn"] = compute_yarn


def set_environment():
    """Set what libraries read when they are imported; evaluate.py and export.py call this too."""
    # FlashInfer's sampler is compiled with nvcc at start: minutes, or an error where there is none
    # (vllm#49497). Unsloth turns it on again unless its own switch is set.
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    os.environ.setdefault("UNSLOTH_VLLM_NO_FLASHINFER", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # warns, on a CPU with AVX512-BF16, that a package for 4-bit models on a CPU is missing
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # warns that it lacks packages for other kinds of hardware
    logging.getLogger("liger_kernel.backends.registry").setLevel(logging.ERROR)
    # says that it does not know YaRN's attn_factor: read_attn_factor mends that
    rope = logging.getLogger("transformers.modeling_rope_utils")
    rope.addFilter(lambda record: "attn_factor" not in record.getMessage())
    # asks to be imported before transformers, which checks --model first: steps take as long
    warnings.filterwarnings("ignore", message="WARNING: Unsloth should be imported before")


def is_main_process() -> bool:
    """Say whether this process writes: the only one, or rank 0 of several."""
    return int(os.environ.get("RANK", 0)) == 0


# --------------------------------------------------------------------------------------------------
# Checks before the model is loaded, and before it is trained


def check_arguments(args):
    """Set the flags that follow from others; end with one line where they do not fit together."""
    args.lora_alpha = args.lora_alpha or 2 * args.lora_rank
    completions = get_completions_per_step(args)
    one = args.per_device_train_batch_size == args.gradient_accumulation_steps == 1
    if one and completions % args.num_generations:
        args.per_device_train_batch_size = args.num_generations  # as Unsloth does
        completions = get_completions_per_step(args)
    if completions % args.num_generations:
        fail(
            f"--num-generations {args.num_generations} must divide {completions}: "
            "--per-device-train-batch-size * --gradient-accumulation-steps * processes"
        )
    if args.report_to != "none" and not importlib.util.find_spec(args.report_to):
        fail(f"--report-to {args.report_to}: pip install it, or use run.sh's environment")
    if args.max_steps == 1 and args.warmup_ratio > 0:
        fail("--max-steps 1: its learning rate would be 0, the warm-up's: add --warmup-ratio 0")
    data.check_reasoning_tokens(args)


def get_completions_per_step(args) -> int:
    """Return the completions of one optimizer step, over all processes."""
    processes = int(os.environ.get("WORLD_SIZE", 1))
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * processes


def check_hardware(args):
    """End with one line where the engine, or the number of GPUs, is not what this machine has."""
    import torch

    if args.engine == "unsloth" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        fail("--engine unsloth trains in one process; several need --engine trl")
    if args.engine == "unsloth" and not torch.cuda.is_available():
        fail("--engine unsloth needs an NVIDIA GPU; use --engine trl here")
    n = torch.cuda.device_count()
    if n > 1 and "LOCAL_RANK" not in os.environ:  # Trainer would wrap the model in DataParallel
        fail(
            f"{n} GPUs are visible: take one (CUDA_VISIBLE_DEVICES=0), or all: "
            f"torchrun --nproc-per-node {n} train.py --engine trl ..."
        )


def check_names(args):
    """Refuse rewards, weights, prompts and languages that our files or langid do not have.

    Sets args.reward_weights where they were not given.
    """
    import langid

    import rewards

    if args.rewards not in rewards.REWARDS:
        fail(f"--rewards {args.rewards}: rewards.REWARDS has {', '.join(rewards.REWARDS)}")
    weights = rewards.REWARDS[args.rewards]  # {match_format_exactly: 1.0, ...}
    args.reward_weights = args.reward_weights or list(weights.values())
    names = [function.__name__ for function in weights]
    if len(set(names)) < len(names):  # TRL would log the mean of two under one name
        fail(f"--rewards {args.rewards}: two functions have one name: {', '.join(names)}")
    if len(args.reward_weights) != len(names):
        fail(f"--reward-weights needs {len(names)} values: {', '.join(names)}")
    data.make_system_prompt(args.system_prompt, args.target_lang, ("", ""))
    if args.target_lang not in dict(langid.rank("")):  # all that it knows
        fail(f"--target-lang {args.target_lang}: langid does not know it, so no reward could")


def check_model(args):
    """End with one line where --model is no model, or lacks a layer that --target-modules names.

    Sets args.model_commit: that of a hub model, None for a folder.
    """
    from torch.nn import Linear

    model = make_empty_model(args.model, args.revision)
    args.model_commit = model.config._commit_hash
    head = model.get_output_embeddings()  # vLLM and export.py take no adapter for it
    layers = [name for name, m in model.named_modules() if isinstance(m, Linear) and m is not head]
    linear = {name.split(".")[-1] for name in layers}
    for name in args.target_modules:
        if name not in linear:
            fail(f"--target-modules {name}: {args.model} has {', '.join(sorted(linear))}")


def make_empty_model(name: str, revision: str | None = None):
    """Return a model without its weights, for the names and shapes of its layers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with data.say_what_is_tried(name):
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever a wrong config.json leads to
        fail(f"cannot load {name}: {one_line(error)}")


def check_sizes(args, tokenizer, dataset, max_prompt_length):
    """End with one line where data, lengths or tags make no training."""
    start, end = args.reasoning_tokens
    ids = tokenizer(f"{start}a{end}", add_special_tokens=False)["input_ids"]
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    if start not in decoded or end not in decoded:
        fail(
            f"{start} and {end} are special tokens, which TRL removes before rewards see them: "
            "name others with --reasoning-tokens"
        )
    if args.max_seq_length <= max_prompt_length:
        longest = f"the longest prompt, of {max_prompt_length - 1} tokens"
        fail(f"--max-seq-length {args.max_seq_length} leaves no token after {longest}")
    prompts = get_completions_per_step(args) // args.num_generations
    if len(dataset) < prompts:
        fail(f"a step needs {prompts} prompts, and there are {len(dataset)}")
    import rewards

    if rewards.answer_reward in rewards.REWARDS[args.rewards]:
        unusable = sum(rewards.is_correct("", answer) is None for answer in dataset["answer"])
        if unusable == len(dataset):
            fail(f"no answer of the data is a number: --rewards {args.rewards} compares numbers")
        if unusable and is_main_process():
            print(f"warning: {unusable} of {len(dataset)} answers are no numbers: not rewarded")


def check_same_data(args, checkpoint, dataset, held_out):
    """End with one line where the data of a resumed run are not those that it began with.

    A new split would train on what was held out.
    """
    if checkpoint is None:
        return
    run = read_run(args.output_dir)
    rows = run["effective"]["train_rows"]
    if run["held_out"] != get_questions(held_out) or rows != len(dataset):
        fail(
            f"--resume: {args.dataset} is not what this run began with ({rows} rows to train on, "
            f"now {len(dataset)}): bring it back, or take another --output-dir"
        )


def configure_rewards(args, tokenizer, dataset, max_completion_length):
    """Tell the rewards the tags, the language, and whether the template opens the thought."""
    import rewards

    start, _ = args.reasoning_tokens
    prompt = data.render_prompt(tokenizer, dataset[0]["prompt"])
    prefilled = prompt.rstrip().endswith(start)
    rewards.configure(args.reasoning_tokens, args.target_lang, prefilled, max_completion_length)


def check_same_checkpoint(args, checkpoint):
    """End with one line where a process sees another checkpoint: they would wait for each other."""
    from accelerate.utils import gather_object

    seen = sorted(set(gather_object([os.path.basename(str(checkpoint))])))
    if len(seen) > 1:
        fail(
            f"processes see different checkpoints, {' and '.join(seen)}: let all machines share "
            f"{args.output_dir}, or copy it to those that lack it"
        )


def check_adapter(folder: str, model: str | None = None, revision: str | None = None) -> dict:
    """Return a trained LoRA adapter's configuration (tutorial, "验证LoRA确实被训练了！").

    Ends with one line unless every tensor is finite and has a non-zero value (the tutorial compares
    a fraction of zeros with a count, which never fails) and, where `model` is given, all tensors
    are there in the shapes that this model needs, and the run was trained on this model.
    """
    import numpy as np
    from safetensors import SafetensorError, safe_open

    if not os.path.exists(folder):
        fail(f"there is no adapter {folder}: train.py makes it; the model alone: --adapter none")
    try:
        with open(os.path.join(folder, "adapter_config.json")) as file:
            config = json.load(file)
        with safe_open(os.path.join(folder, "adapter_model.safetensors"), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        config["r"], config["lora_alpha"], config["target_modules"]
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        fail(f"{folder} is not a LoRA adapter: {one_line(error)}")

    bad = []
    for key, tensor in tensors.items():
        largest = np.abs(tensor.float().numpy()).max()  # torch's own took 24 s on a 32-core host
        if not 0 < largest < math.inf:
            bad.append(key)
    if bad or not tensors:
        count = f"{len(bad)} of {len(tensors)} tensors are zero or not finite"
        hint = "no gradient, or a warm-up step alone? see metrics.jsonl"
        fail(f"adapter {folder} is not trained: {count} ({hint})", status=1)
    if model:
        check_adapter_fits(folder, config, tensors, model, revision)
    return config


def check_adapter_fits(folder, config, tensors, model, revision):
    """End with one line unless an adapter's tensors, and its run's base, are those of `model`."""
    from torch.nn import Linear

    here = {key: list(tensor.shape) for key, tensor in tensors.items()}
    there = {}  # not PEFT's own: its import is a tenth of evaluate.py's start
    for name, module in make_empty_model(model, revision).named_modules():
        if isinstance(module, Linear) and name.split(".")[-1] in config["target_modules"]:
            lora = f"base_model.model.{name}.lora_"
            there[f"{lora}A.weight"] = [config["r"], module.in_features]
            there[f"{lora}B.weight"] = [module.out_features, config["r"]]
    for key in here.keys() | there.keys():
        if here.get(key) != there.get(key):
            fail(
                f"adapter {folder} was trained on {config.get('base_model_name_or_path')}, not on "
                f"{model}: {key} has shape {here.get(key)}, {there.get(key)} there (None: missing)"
            )
    run = read_run(os.path.dirname(os.path.normpath(folder)))
    fingerprints = [run.get("base_fingerprint"), fingerprint(model, revision)]
    if None not in fingerprints and fingerprints[0] != fingerprints[1]:
        fail(
            f"adapter {folder} was trained on another model than {model}: its run.json names "
            f"{run['arguments']['model']}, and the weights differ"
        )


def fingerprint(model: str, revision: str | None = None) -> str | None:
    """Return a hash of the sizes and ends of a model's weight files; None if not downloaded yet."""
    from transformers.utils import cached_file

    folder = os.path.dirname(cached_file(model, "config.json", revision=revision))
    names = ["model.safetensors"]
    index = os.path.join(folder, "model.safetensors.index.json")
    if os.path.exists(index):
        with open(index, encoding="utf-8") as file:
            names = sorted(set(json.load(file)["weight_map"].values()))
    paths = [os.path.join(folder, name) for name in names]
    if not all(os.path.exists(path) for path in paths):
        return None
    digest = hashlib.sha256()
    for path in paths:
        digest.update(str(os.path.getsize(path)).encode())
        with open(path, "rb") as file:
            digest.update(file.read(2**20))
            file.seek(-min(2**20, os.path.getsize(path)), os.SEEK_END)
            digest.update(file.read())
    return digest.hexdigest()


# --------------------------------------------------------------------------------------------------
# Rollouts come from the adapter itself. TRL 1.14 merges it into the bfloat16 weights for vLLM and
# takes it off again: small updates are rounded away, and the base drifts (trl#6688). So vLLM gets
# the adapter instead, as a LoRA request with a new name at every update: vLLM keys its prefix cache
# by that name. TRL's internals replaced or read here and in make_watch; guards in test_train.py:
#   vllm_generation.LLM: test_trl_can_start_vllm_with_adapters
#   VLLMGeneration's methods, settings, llm: test_the_stand_in_engine_has_the_real_signature
#   compute_loss: test_trl_still_has_what_log_rollout_difference_replaces
#   UnslothEfficientGRPO: tests/gpu/test_smoke.py
#   _get_per_token_logps_and_entropies: test_without_padding_loss_and_gradient_are_the_same
#   _metrics, _logs, create_model_card: test_two_steps_train_the_adapter_and_write_everything


def let_vllm_take_adapters(rank: int):
    """Make TRL start vLLM with LoRA support, for adapters of `rank`."""
    from trl.generation import vllm_generation
    from vllm import LLM

    vllm_generation.LLM = functools.partial(
        LLM, enable_lora=True, max_loras=1, max_lora_rank=get_vllm_rank(rank)
    )
    sleep = LLM.sleep  # at TRL's level 2 it throws the base away, which adapters do not bring back
    LLM.sleep = lambda llm, level: sleep(llm, level=1)


def get_vllm_rank(rank: int) -> int:
    """Return the smallest LoRA rank that vLLM has kernels for and that holds `rank`."""
    return next(size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank)


def send_adapters_to_vllm(trainer):
    """Replace TRL's weight sync: save the adapter to memory, and let vLLM load it from there."""
    import torch
    from vllm.lora.request import LoRARequest

    vllm = trainer.vllm_generation
    vllm.generation_kwargs["detokenize"] = False  # TRL decodes the tokens itself
    generate = vllm.llm.generate
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    folder = tempfile.TemporaryDirectory(dir=memory, prefix="grpo_lora-")
    versions = itertools.count(1)

    def sync_weights():
        if vllm._llm_weights_sleeping:
            torch.cuda.empty_cache()  # what training has used
            vllm.llm.wake_up(tags=["weights"])
            vllm._llm_weights_sleeping = False
        version = next(versions)
        trainer.model.save_pretrained(folder.name, save_embedding_layers=False)
        request = LoRARequest(f"update-{version}", version, folder.name)
        vllm.llm.generate = functools.partial(generate, lora_request=request)
        vllm.llm.reset_prefix_cache()

    vllm.sync_weights = sync_weights


def check_rollouts_follow_adapter(trainer, prompt_ids):
    """Exit with status 1 if vLLM samples from the base model instead of from the adapter.

    Some pairs of TRL and Unsloth versions did so, with a finite loss and exit status 0
    (unsloth#8701). The adapter is filled with noise between two greedy generations of 16 tokens:
    tokens or their log-probabilities must differ.
    """
    import numpy as np

    vllm = trainer.vllm_generation
    settings = vllm.temperature, vllm.max_completion_length
    lora_b = [p for name, p in trainer.model.named_parameters() if "lora_B" in name]
    lora_b = lora_b[-7:]  # the last layer's
    kept = [p.detach().clone() for p in lora_b]

    def generate():
        vllm.sync_weights()
        _, ids, logprobs, _ = vllm.generate([prompt_ids], images=None, num_generations=1)
        return list(ids[0]), np.array(logprobs[0], dtype=float)

    vllm.temperature, vllm.max_completion_length = 0.0, 16
    ids, logprobs = generate()
    for p in lora_b:
        p.data.normal_(std=1.0)
    noisy_ids, noisy_logprobs = generate()
    for p, values in zip(lora_b, kept):
        p.data.copy_(values)
    vllm.sync_weights()
    vllm.temperature, vllm.max_completion_length = settings
    if ids == noisy_ids and np.allclose(logprobs, noisy_logprobs, atol=0.05):  # kernels: less
        fail(
            "rollouts do not follow the adapter: vLLM samples from the base model. Install "
            "exactly the versions in requirements.txt",
            status=1,
        )


def log_rollout_difference(trainer):
    """Log rollout_logp_difference: mean |trainer's - vLLM's log-probability| of sampled tokens.

    Both exist anyway, so it costs no forward pass. It shows whether the policy that samples is the
    one that learns: about 0.01 in bfloat16, 0.05 with Unsloth's 4-bit base. --min-p above 0
    changes vLLM's probabilities, and adds.
    """
    compute_loss = trainer.compute_loss
    batch = {}

    def keep_batch(model, inputs, **kwargs):
        batch.update(inputs)
        return compute_loss(model, inputs, **kwargs)

    def compare(logps, mask):
        logps = logps.detach()[mask.bool()]
        rollout = batch["sampling_per_token_logps"][batch["completion_mask"].bool()]
        if len(logps) == len(rollout):  # Unsloth's mask leaves a pad token out, if one is sampled
            difference = (logps - rollout).abs().nanmean()
            mean = trainer.accelerator.gather(difference).nanmean().item()
            trainer._metrics["train"]["rollout_logp_difference"].append(mean)

    trainer.compute_loss = keep_batch
    module = sys.modules[type(trainer).__module__]  # TRL's, or what Unsloth has made of it
    if hasattr(module, "UnslothEfficientGRPO"):
        apply_loss = module.UnslothEfficientGRPO.apply

        def compare_and_apply(logps, *args):
            compare(logps, mask=args[5])
            return apply_loss(logps, *args)

        module.UnslothEfficientGRPO.apply = compare_and_apply
    else:
        get_logps = trainer._get_per_token_logps_and_entropies

        def get_and_compare(*args, **kwargs):
            result = get_logps(*args, **kwargs)
            if result[0].requires_grad:  # not the reference's
                compare(result[0], batch["completion_mask"])
            return result

        trainer._get_per_token_logps_and_entropies = get_and_compare


def skip_padding(trainer):
    """Compute log-probabilities of the tokens alone, for the same loss: 2 to 3 times fewer.

    TRL pads a step's prompts on the left and its completions on the right, all to the longest of
    the step (trl#7179). Here each row's tokens come first and what is padding in all rows is cut;
    behind its tokens it needs no mask, so PyTorch can take flash attention.
    """
    import torch

    get_logps = trainer._get_per_token_logps_and_entropies

    def get_logps_of_tokens(model, input_ids, attention_mask, logits_to_keep, **kwargs):
        prompts = attention_mask[:, :-logits_to_keep].sum(1)  # tokens of each row's prompt
        shortest = prompts.min().item()
        width = max(attention_mask.sum(1).max().item(), shortest + 1)
        tokens_first = attention_mask.argsort(dim=1, descending=True, stable=True)
        ids = input_ids.gather(1, tokens_first)[:, :width]
        kept = width - shortest
        logps, entropies, aux_loss = get_logps(model, ids, torch.ones_like(ids), kept, **kwargs)
        # back to TRL's columns, with its zeros where there is no token
        columns = torch.arange(logits_to_keep, device=ids.device) + (prompts - shortest)[:, None]
        columns = columns.clamp(max=kept - 1)
        empty = attention_mask[:, -logits_to_keep:] == 0
        logps = logps.gather(1, columns).masked_fill(empty, 0)
        if entropies is not None:
            entropies = entropies.gather(1, columns).masked_fill(empty, 0)
        return logps, entropies, aux_loss

    trainer._get_per_token_logps_and_entropies = get_logps_of_tokens


# --------------------------------------------------------------------------------------------------
# A run and its folder: one run a folder, --resume goes on with it

# What a resumed run may change; everything else is part of what the run is
MAY_CHANGE = """
    resume output_dir max_steps num_train_epochs stop_if_stuck
    logging_steps save_steps save_total_limit report_to swanlab_mode
    gpu_memory_utilization vllm_enable_sleep_mode fast_inference use_gradient_checkpointing
""".split()


def read_run(output_dir: str) -> dict:
    """Return run.json of an output folder, {} where there is none."""
    path = os.path.join(output_dir, "run.json")
    if not os.path.exists(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            run = json.load(file)
        run["arguments"]["model"]
        run["arguments"] | run.get("given", {}) | run.get("effective", {})  # TypeError: no dicts
    except (OSError, ValueError, KeyError, TypeError) as error:
        fail(f"{path} is not readable as train.py's: {one_line(error)}")
    return run


def resume_arguments(parser, args):
    """Return the arguments of the run in --output-dir, with what may change changed."""
    run = read_run(args.output_dir)
    if not run:
        return args
    given = run.get("given", run["arguments"])  # an earlier version's had no "given"
    given = {name: value for name, value in given.items() if hasattr(args, name)}
    parser.set_defaults(**given | {"output_dir": args.output_dir})
    args = parser.parse_args()
    checkpoints = glob.glob(os.path.join(glob.escape(args.output_dir), "checkpoint-*"))
    if run.get("state") == "running" and not checkpoints:
        return args  # out of memory at the first step, for instance: nothing to keep to yet
    for name, value in given.items():
        if name not in MAY_CHANGE and getattr(args, name) != value:
            flag = "--" + name.replace("_", "-")
            fail(
                f"--resume: the run in {args.output_dir} has {flag} {value}, not "
                f"{getattr(args, name)}: leave it out, or move {args.output_dir} aside"
            )
    return args


def begin_run(args) -> str | None:
    """Check the machine and the model; lock the output folder, which belongs to one run.

    With --resume it returns the newest complete checkpoint, if there is one.
    """
    check_hardware(args)
    check_login(args)
    check_names(args)
    check_model(args)
    run = read_run(args.output_dir) if args.resume else {}
    args.swanlab_id = run.get("arguments", {}).get("swanlab_id") or uuid.uuid4().hex
    checkpoint = find_checkpoint(args.output_dir) if run else None
    made = run.get("effective", {})
    finished = run.get("state") == "finished"
    if finished and has_all_steps(args, made.get("steps") or 0, made.get("epochs") or 0):
        if is_main_process():
            print(f"{args.output_dir}: this run is finished, nothing to do")
        raise SystemExit(0)
    if is_main_process():
        if checkpoint and ("train_rows" not in made or "held_out" not in run):
            fail(f"--resume: {args.output_dir}/run.json has lost parts: take another --output-dir")
        if checkpoint:
            print(f"resuming {args.output_dir} from {checkpoint}")
        elif finished:
            fail(f"--resume: {args.output_dir} is trained, and no checkpoint is left to go on from")
        elif run:
            print(f"starting {args.output_dir} again: it has no complete checkpoint")
        lock_folder(args.output_dir)
        holds_earlier_run(args)  # fails before anything is loaded
    return checkpoint


def has_all_steps(args, steps: int, epochs: float) -> bool:
    """Say whether so many steps and epochs are what the run shall have."""
    if args.max_steps > 0:
        return steps >= args.max_steps
    return epochs >= args.num_train_epochs


def lock_folder(folder):
    """Make the folder and lock it until this process ends; end with one line where it is taken."""
    import fcntl

    folder = os.path.realpath(folder)
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"another run is writing to {folder}: wait for it, or take another --output-dir")
    except OSError as error:
        fail(f"cannot write to {folder}: {one_line(error)}")


def holds_earlier_run(args) -> bool:
    """Say whether the output folder has to be moved aside; fail where it cannot, or is no run's."""
    names = os.listdir(args.output_dir)
    if not names or (args.resume and read_run(args.output_dir)):
        return False
    folder = os.path.realpath(args.output_dir)
    for path in filter(os.path.exists, (os.getcwd(), args.model, args.dataset)):
        if os.path.commonpath([folder, os.path.realpath(path)]) == folder:
            fail(f"cannot move {folder} aside, {path} is in it: take another --output-dir")
    ours = r"(completions|swanlog|checkpoint|grpo_lora|eval|export|metrics|curves|README)\b.*"
    if "run.json" not in names and not all(re.match(ours, name) for name in names):
        fail(f"{folder} holds something else than a run: take another --output-dir")
    return True


def move_earlier_run(args):
    """Move an earlier run's folder to FOLDER-1, FOLDER-2, ...: nothing is deleted or mixed.

    Called once all checks are over, so that a command that ends in an error changes nothing.
    """
    if not is_main_process() or not holds_earlier_run(args):
        return
    folder = os.path.realpath(args.output_dir)  # what a link leads to, not the link
    number = 1
    while os.path.exists(f"{folder}-{number}"):
        number += 1
    try:
        os.rename(folder, f"{folder}-{number}")
    except OSError as error:  # a mount point
        fail(f"cannot move {folder} aside, take another --output-dir: {one_line(error)}")
    print(f"the earlier run in {folder} is now in {folder}-{number}")
    lock_folder(folder)


def find_checkpoint(folder) -> str | None:
    """Return the newest checkpoint whose files are all there, as complete.json lists them."""
    paths = glob.glob(os.path.join(glob.escape(folder), "checkpoint-*"))
    paths = [path for path in paths if path.split("-")[-1].isdigit()]
    for path in sorted(paths, key=lambda path: int(path.split("-")[-1]), reverse=True):
        try:
            with open(os.path.join(path, "complete.json")) as file:
                sizes = json.load(file)
            with open(os.path.join(path, "trainer_state.json")) as file:
                json.load(file)  # after a power loss its end can be NUL bytes, too
            if sizes and all(is_whole(f"{path}/{name}", sizes[name]) for name in sizes):
                return path
        except (OSError, ValueError, TypeError):
            pass
        if is_main_process():
            print(f"{path} is not complete: trying an older one")
    return None


def is_whole(path, size) -> bool:
    """Say whether a file has its size, and not only NUL bytes, as after a power loss."""
    if os.path.isdir(path):
        return True
    with open(path, "rb") as file:
        return os.path.getsize(path) == size and file.read(8) != bytes(8)


def mark_complete(path):
    """List a checkpoint's files with their sizes, so that a half-written one is never resumed."""
    names = set(os.listdir(path)) - {"complete.json"}  # there already if the step is trained again
    sizes = {name: os.path.getsize(os.path.join(path, name)) for name in names}
    write(os.path.join(path, "complete.json"), json.dumps(sizes))


def write_run(args, state, **entries):
    """Write run.json; `state`: running, finished, or stuck where nothing could be learned."""
    if not is_main_process():
        return
    import torch

    arguments = vars(args).copy()
    given = arguments.pop("given")
    here = os.path.dirname(os.path.abspath(__file__))
    command = "git rev-parse HEAD"  # by a shell, for where git is not installed
    git = subprocess.run(command, shell=True, cwd=here, capture_output=True, text=True)
    gpu = torch.cuda.is_available()
    run = {
        "state": state,
        "arguments": arguments,
        "given": given,  # before anything followed from it: for --resume
        "base_fingerprint": fingerprint(args.model, args.revision),
        "versions": data.get_versions(),
        "commit": git.stdout.strip(),
        "hardware": torch.cuda.get_device_name() if gpu else f"CPU, {os.cpu_count()} cores",
    }
    text = json.dumps(run | entries, indent=1, ensure_ascii=False)
    write(os.path.join(args.output_dir, "run.json"), text)


def write(path: str, text: str):
    """Write a text file; whoever reads it meanwhile finds the one before, whole."""
    with whole_file(path) as name:
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)


def get_questions(dataset):
    """Return the questions of a data set without system prompt and template; None for None."""
    if dataset is None:
        return None
    return [prompt[-1]["content"] for prompt in dataset["prompt"]]


def hash_question(question: str) -> str:
    """Return 8 hex digits, by which evaluate.py knows what was trained on under any file's name."""
    return hashlib.sha256(question.encode()).hexdigest()[:8]


def finish_run(args, trainer, watch, started):
    """Write run.json of a finished run and print its summary."""
    import torch

    run = read_run(args.output_dir)
    state = trainer.state
    steps = [row for row in state.log_history if "reward" in row]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_reserved() / 2**30
    memory = round(memory, 2)
    if trainer.args.use_vllm and trainer.args.vllm_enable_sleep_mode:
        memory = None  # torch counts what sleeps, too; nvidia-smi does not
    summary = {
        "effective": run["effective"] | {"steps": state.global_step, "epochs": state.epoch},
        "held_out": run["held_out"],
        "trained_on": run["trained_on"],
        "seconds": round(time.time() - started, 1),
        "seconds_to_first_step": watch.seconds_to_first_step,
        "peak_memory_gib": memory,
        "last_step": steps[-1],
    }
    write_run(args, state="stuck" if watch.stopped else "finished", **summary)
    draw_curves(args.output_dir, state.log_history)
    print_summary(steps)
    print(f"steps: {state.global_step}")
    print(f"seconds: {summary['seconds']}")
    print(f"peak_memory_gib: {summary['peak_memory_gib']}")
    print(f"adapter: {args.output_dir}/grpo_lora")
    print(f"curves: {args.output_dir}/curves.png")
    if watch.stopped:
        fail(f"stopped at step {state.global_step}: {watch.stuck}", status=1)


def print_summary(steps):
    """Print the means of the first and of the last ten logged steps (fewer in a short run)."""
    n = min(10, max(1, len(steps) // 2))
    print(f"means of the first and last {n} logged steps:")
    keys = ["reward", "completions/clipped_ratio", "completions/mean_length"]
    keys += ["frac_reward_zero_std", "rollout_logp_difference", "kl"]
    keys += [key for key in steps[-1] if key.startswith("rewards/") and key.endswith("/mean")]
    for key in keys:
        first = [row[key] for row in steps[:n] if row.get(key) is not None]
        last = [row[key] for row in steps[-n:] if row.get(key) is not None]
        if first and last:
            print(f"{key}: {sum(first) / len(first):.4g} -> {sum(last) / len(last):.4g}")


# --------------------------------------------------------------------------------------------------
# Training: what is checked and recorded before the first step, and what happens while it trains


def record_run(args, trainer, dataset, held_out, max_prompt_length):
    """Print what became of the flags that libraries or the hardware decide; write run.json."""
    training_args = trainer.args
    completions = get_completions_per_step(args)
    warmup = training_args.get_warmup_steps(args.max_steps) if args.max_steps > 0 else None
    trainable = [p.numel() for p in trainer.model.parameters() if p.requires_grad]
    effective = {
        "prompts_per_step": completions // args.num_generations,
        "completions_per_step": completions,
        "max_prompt_length": max_prompt_length,
        "max_completion_length": training_args.max_completion_length,
        "warmup_steps": warmup,
        "loss_type": training_args.loss_type,
        "beta": training_args.beta,
        "load_in_4bit": args.engine == "unsloth" and args.load_in_4bit,
        "fast_inference": training_args.use_vllm,
        "optim": training_args.optim.value,
        "trainable_parameters": sum(trainable),
        "train_rows": len(dataset),
        "held_out_rows": len(held_out) if held_out else 0,
    }
    if is_main_process():
        for key, value in effective.items():
            print(f"{key}: {value}", flush=True)
    args.dataset_commit = data.get_dataset_commit(dataset)
    trained_on = [hash_question(question) for question in get_questions(dataset)]
    held_out = get_questions(held_out)
    write_run(args, state="running", effective=effective, held_out=held_out, trained_on=trained_on)


def check_login(args):
    """End with one line where SwanLab's cloud has no key of this user; before models are loaded."""
    if args.report_to != "swanlab" or args.swanlab_mode != "cloud" or not is_main_process():
        return
    import swanlab

    try:
        swanlab.login()
    except Exception as error:
        fail(f"--swanlab-mode cloud: {one_line(error)} (SWANLAB_API_KEY; needs the network)")


def start_swanlab(args):
    """Open the SwanLab run: transformers' own callback fails with swanlab >= 0.8 without one."""
    if args.report_to != "swanlab" or not is_main_process():
        return
    import swanlab

    run_id = getattr(args, "swanlab_id", None) if args.swanlab_mode == "cloud" else None
    name = os.path.basename(os.path.abspath(args.output_dir))
    if run_id is None and "name" in args:  # evaluate.py's
        name += f"-{args.name}"
    swanlab.init(
        # a resumed run and its evaluation go on in its curves; elsewhere than in the cloud SwanLab
        # cannot, and they are further experiments of the same page
        id=run_id,
        resume="allow" if run_id else None,
        project="grpo-indonesian",
        name=name,
        mode=args.swanlab_mode,
        log_dir=os.path.join(args.output_dir, "swanlog"),
        config={name: value for name, value in vars(args).items() if name != "given"},
    )


def train(args, trainer, watch, checkpoint):
    """trainer.train(), from a checkpoint if there is one; SIGINT and SIGTERM save and stop.

    torchrun (torch 2.11) waits 30 s for that: with longer steps the last checkpoint counts.
    """
    import torch
    from peft.helpers import disable_input_dtype_casting

    def stop_after_step(signum, frame):
        watch.signal = signum
        signal.signal(signum, signal.SIG_DFL)  # a second one ends at once
        print("stopping after this step; once more: at once", flush=True)

    check_same_checkpoint(args, checkpoint)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop_after_step)
    if is_trained(args, checkpoint):
        take_adapter(trainer, checkpoint)  # transformers would train one step more
    else:
        # PEFT casts a LoRA's input to float32 and autocast back to bfloat16: 13 % of an update's
        # time on an H100, for the same product
        is_bfloat16 = args.engine == "trl" and torch.cuda.is_available()
        with disable_input_dtype_casting(trainer.model, active=is_bfloat16):
            trainer.train(resume_from_checkpoint=checkpoint)
    if torch.distributed.is_initialized():
        # a process that ends with the group's threads alive can abort (pytorch#179291): the wrapped
        # model would keep them
        trainer.model_wrapped = trainer.model
        trainer.accelerator.free_memory()
        torch.distributed.destroy_process_group()
    if watch.signal and not is_trained(args, find_checkpoint(args.output_dir)):
        if is_main_process():
            folder = shlex.quote(args.output_dir)
            launcher = "python"
            if "LOCAL_WORLD_SIZE" in os.environ:
                hosts = os.environ["GROUP_WORLD_SIZE"]
                here = os.environ["LOCAL_WORLD_SIZE"]
                launcher = f"torchrun --nproc-per-node {here} --nnodes {hosts}"
            print(f"stopped: {launcher} train.py --resume --output-dir {folder} goes on")
        raise SystemExit(128 + watch.signal)


def is_trained(args, checkpoint) -> bool:
    """Say whether a checkpoint has all the steps that the run shall have."""
    if checkpoint is None:
        return False
    with open(os.path.join(checkpoint, "trainer_state.json")) as file:
        state = json.load(file)
    return has_all_steps(args, state["global_step"], state["epoch"])


def take_adapter(trainer, checkpoint):
    """Put a checkpoint's adapter and history into the trainer."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import TrainerState

    tensors = load_file(os.path.join(checkpoint, "adapter_model.safetensors"))
    set_peft_model_state_dict(trainer.model, tensors)
    trainer.state = TrainerState.load_from_json(os.path.join(checkpoint, "trainer_state.json"))


def make_watch(args, trainer, started):
    """Add and return the callback that logs, prints a line a step, warns and stops."""
    import torch
    from transformers import PrinterCallback, TrainerCallback

    class Watch(TrainerCallback):
        stuck = None  # why nothing can be learned, if so
        stopped = False  # for that
        signal = 0
        seconds_to_first_step = None

        def on_step_end(self, training_args, state, control, **kwargs):
            if self.seconds_to_first_step is None:
                self.seconds_to_first_step = round(time.time() - started, 1)
            signum = torch.tensor(self.signal, device=training_args.device)
            if torch.distributed.is_initialized():  # all ranks stop at the same step
                torch.distributed.all_reduce(signum, op=torch.distributed.ReduceOp.MAX)
            if signum.item():
                self.signal = signum.item()
                control.should_save = True
                control.should_training_stop = True

        def on_save(self, training_args, state, control, **kwargs):
            trainer.accelerator.wait_for_everyone()
            if is_main_process():
                mark_complete(os.path.join(args.output_dir, f"checkpoint-{state.global_step}"))
                draw_curves(args.output_dir, state.log_history)

        def on_log(self, training_args, state, control, logs, **kwargs):
            check_finite(logs, state.global_step)
            before = self.stuck
            self.stuck = find_stuck(state.log_history, args.stop_if_stuck or 10)
            if self.stuck and args.stop_if_stuck:
                self.stopped = True
                control.should_training_stop = True  # every process: they log the same values
            if not is_main_process():
                return
            rows = [json.dumps(row) + "\n" for row in state.log_history]
            write(os.path.join(args.output_dir, "metrics.jsonl"), "".join(rows))
            if "reward" in logs:
                print(describe_step(logs, state), flush=True)
                steps = sum("reward" in row for row in state.log_history)
                if args.rewards != "tutorial" and steps % 10 == 1:
                    texts = trainer._logs  # the tutorial's check_numbers prints its own
                    print(texts["prompt"][-1], texts["completion"][-1], "", sep="\n----\n")
                if args.report_to == "swanlab":
                    log_what_matters(trainer, logs, state.global_step)
            if self.stuck and self.stuck != before:
                print(f"warning: {self.stuck}")

    watch = Watch()
    trainer.remove_callback(PrinterCallback)
    trainer.callback_handler.callbacks.insert(0, watch)  # before SwanLab's: log_what_matters
    trainer.create_model_card = lambda **options: write_card(args)  # TRL's says little of the run
    return watch


def check_finite(logs, step):
    """End where gradient or reward is not finite: nothing could be learned from there on."""
    for key in ("grad_norm", "reward"):
        value = logs.get(key)
        if value is not None and not math.isfinite(value):
            fail(f"{key} is {value} at step {step}: lower --learning-rate", status=1)


def find_stuck(log_history: list[dict], n: int) -> str | None:
    """Return why the last `n` logged steps could teach nothing, or None."""
    causes = {
        "completions/clipped_ratio": "every completion was cut at the token limit: "
        "raise --max-seq-length",
        "frac_reward_zero_std": "all completions of every group got the same reward: "
        "raise --num-generations, or change the rewards or the data",
    }
    for key, cause in causes.items():
        values = [row[key] for row in log_history if key in row]
        if len(values) >= n and min(values[-n:]) == 1:
            return f"for {n} logged steps {cause}"
    return None


def describe_step(logs, state) -> str:
    """Return one line on a step: 12/100  reward 3.1  Indonesian 0.42 ... ETA 20 min."""
    import rewards

    language = data.LANGUAGES[rewards.target_lang][1].replace("Bahasa Indonesia", "Indonesian")
    seconds = logs.get("step_time") or 0.0
    minutes = seconds * (state.max_steps - state.global_step) / 60
    return (
        f"{state.global_step}/{state.max_steps}  reward {logs['reward']:.2f}  "
        f"{language} {logs.get('rewards/indonesian_rate/mean', math.nan):.2f}  "
        f"right {logs.get('rewards/accuracy/mean', math.nan):.2f}  "  # nan: a fork's measures
        f"cut {logs['completions/clipped_ratio']:.2f}  "
        f"{logs['completions/mean_length']:.0f} tokens  {seconds:.1f} s  ETA {minutes:.0f} min"
    )


def log_what_matters(trainer, logs, step):
    """Log reward, language, answers, length and a group's texts to SwanLab before the rest.

    Its local page has the charts in the order in which they were first logged, and shows no tables
    but lists of texts. SwanLab's own callback, which comes later, logs what is left in `logs`.
    """
    import swanlab

    keys = ["reward", "rewards/indonesian_rate/mean", "rewards/accuracy/mean"]
    keys += ["completions/mean_length", "completions/clipped_ratio"]
    parts = [key for key in logs if key.startswith("rewards/") and key.endswith("/mean")]
    keys += [key for key in parts if key not in keys]
    first = {f"train/{key}": logs.pop(key) for key in keys if key in logs}
    swanlab.log(first, step=step)

    texts = [swanlab.Text(trainer._logs["prompt"][-1], caption="prompt")]
    for i in range(-trainer.args.num_generations, 0):
        advantage = trainer._logs["advantages"][i]
        completion = trainer._logs["completion"][i]
        texts.append(swanlab.Text(completion, caption=f"advantage {advantage:.2f}"))
    swanlab.log({"train/completions": texts}, step=step)


def draw_curves(folder, log_history):
    """Draw what was logged against the steps to curves.png: language, answers, rewards, length."""
    rows = [row for row in log_history if "reward" in row]
    if not rows:
        return
    from matplotlib.figure import Figure

    steps = [row["step"] for row in rows]
    parts = [key for key in rows[-1] if key.startswith("rewards/") and key.endswith("/mean")]
    measured = ["rewards/indonesian_rate/mean", "rewards/accuracy/mean"]
    panels = {
        "target language, right (shares)": measured,
        "rewards (means)": [key for key in parts if key not in measured],
        "tokens a completion": ["completions/mean_length"],
        "cut off, group all alike (shares)": ["completions/clipped_ratio", "frac_reward_zero_std"],
    }
    figure = Figure(figsize=(13, 8), layout="tight")
    axes = figure.subplots(2, 2)
    for axis, (title, keys) in zip(axes.flat, panels.items()):
        for key in keys:
            name = key.removeprefix("rewards/").removesuffix("/mean").split("/")[-1]
            axis.plot(steps, [row.get(key) for row in rows], marker=".", label=name)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    with whole_file(os.path.join(folder, "curves.png")) as name:
        figure.savefig(name, dpi=100, format="png")


CARD = """# {model}, GRPO ({rewards} rewards)

| file | what |
|---|---|
| grpo_lora/ | the trained LoRA adapter |
| checkpoint-N/ | what `python train.py --resume --output-dir {folder}` goes on from |
| run.json | arguments, versions, held-out questions |
| metrics.jsonl, curves.png, completions/ | every logged step |
| swanlog/ | the same for `swanlab watch` |
| eval/ | evaluate.py's results: results.json, samples.md |
| export/ | export.py's models |
"""


def write_card(args):
    """Write OUTPUT_DIR/README.md in place of TRL's card: what lies there, and what to do next."""
    if is_main_process():  # TRL calls this in every process
        model = os.path.basename(os.path.normpath(args.model))
        folder = shlex.quote(args.output_dir)
        text = CARD.format(model=model, rewards=args.rewards, folder=folder)
        write(os.path.join(args.output_dir, "README.md"), text)


# --------------------------------------------------------------------------------------------------
# Arguments: names are the tutorial's and TRL's, defaults the tutorial's values


def parse_arguments():
    parser = data.make_parser(__doc__)
    count = number(int, least=1)
    count_or_0 = number(int, least=0)
    count_or_all = number(int, least=-1)
    positive = number(float, above=0)
    positive_or_0 = number(float, least=0)
    share = number(float, above=0, most=1)
    share_or_0 = number(float, least=0, most=1)
    on_or_off = argparse.BooleanOptionalAction  # --flag and --no-flag

    add = parser.add_argument_group("run").add_argument
    add("--output-dir", type=data.text, default="outputs", help="folder for all that is written")
    add("--resume", action="store_true", help="go on with the run in --output-dir, if there is one")
    add("--max-steps", type=count_or_all, default=100, help="optimizer steps; -1: by epochs")
    add("--learning-rate", type=share, default=5e-6, help="peak learning rate")
    add("--rewards", default="tutorial", help="entry of rewards.REWARDS: tutorial or improved")
    add("--engine", choices=["unsloth", "trl"], default="unsloth", help="trl: also on a CPU")
    data.add_data_arguments(parser)

    add = parser.add_argument_group("model and LoRA").add_argument
    add("--max-seq-length", type=count, default=1024, help="prompt + completion, in tokens")
    add("--load-in-4bit", action=on_or_off, default=True, help="4-bit base (trl: always 16-bit)")
    add("--fast-inference", action=on_or_off, default=True, help="generate with vLLM, on a GPU")
    add("--gpu-memory-utilization", type=share, default=0.7, help="vLLM's share of GPU memory")
    add("--vllm-enable-sleep-mode", action=on_or_off, default=False, help="trl: frees it meanwhile")
    add("--lora-rank", type=number(int, least=1, most=512), default=32, help="LoRA rank r")
    add("--lora-alpha", type=positive, help="LoRA scale; default: 2 * rank")
    add("--target-modules", nargs="+", default=LORA_TARGETS, help="layers that get an adapter")
    add("--use-gradient-checkpointing", choices=CHECKPOINTING, default="unsloth", help="saves VRAM")

    add = parser.add_argument_group("sampling").add_argument
    add("--temperature", type=positive, default=1.0, help="sampling temperature of rollouts")
    add("--min-p", type=share_or_0, default=0.1, help="least probability beside the likeliest's")
    add("--top-p", type=share, default=1.0, help="probability mass to sample from")
    add("--top-k", type=count_or_all, default=-1, help="number of tokens to sample from; -1: all")
    add("--num-generations", type=number(int, least=2), default=4, help="completions of a group")

    add = parser.add_argument_group("GRPO").add_argument
    add("--reward-weights", type=number(float), nargs="+", help="default: those in rewards.py")
    losses = ["bnpo", "grpo", "dr_grpo", "dapo"]
    add("--loss-type", choices=losses, default="bnpo", help="TRL's; bnpo was Unsloth's choice then")
    add("--beta", type=positive_or_0, default=0.001, help="KL weight, as Unsloth's was then")
    scales = ["group", "batch", "none"]
    add("--scale-rewards", choices=scales, default="group", help="whose deviation divides rewards")
    add("--mask-truncated-completions", action="store_true", help="no loss on cut-off completions")
    add("--weight-decay", type=positive_or_0, default=0.01, help="AdamW's weight decay")
    add("--warmup-ratio", type=number(float, least=0, below=1), default=0.1, help="share of steps")
    schedules = ["linear", "cosine", "constant", "constant_with_warmup"]
    add("--lr-scheduler-type", choices=schedules, default="linear", help="learning rate schedule")
    optimizers = ["adamw_8bit", "paged_adamw_8bit", "adamw_torch", "adamw_torch_fused"]
    add("--optim", choices=optimizers, default="adamw_8bit", help="on a CPU always adamw_torch")
    add(
        "--per-device-train-batch-size",
        type=count,
        default=1,
        help="completions a device and micro-batch; 1 x 1 becomes --num-generations if it must",
    )
    add("--gradient-accumulation-steps", type=count, default=1, help="micro-batches per step")
    add("--num-train-epochs", type=positive, default=1.0, help="passes if --max-steps is -1")
    add("--stop-if-stuck", type=count_or_0, default=0, help="0: warn; N: stop after N stuck steps")

    add = parser.add_argument_group("output").add_argument
    add("--logging-steps", type=count, default=1, help="steps between lines and texts logged")
    add("--save-steps", type=count, default=20, help="steps between checkpoints (tutorial: 100)")
    add("--save-total-limit", type=count, default=2, help="checkpoints to keep, the newest")
    trackers = ["swanlab", "wandb", "tensorboard", "none"]
    add("--report-to", choices=trackers, default="swanlab", help="where curves are drawn")
    modes = ["offline", "cloud", "local", "disabled"]
    add("--swanlab-mode", choices=modes, default="local", help="cloud needs SWANLAB_API_KEY")

    args = parser.parse_args()
    if args.max_steps == 0:
        fail("--max-steps must be at least 1, or -1")
    if args.resume:
        args = resume_arguments(parser, args)
    given = vars(args).copy()
    check_arguments(args)
    args.given = given
    sys.excepthook = functools.partial(data.explain_exception, args.output_dir)
    return args


if __name__ == "__main__":
    main(parse_arguments())
