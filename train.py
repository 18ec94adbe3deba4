"""GRPO fine-tuning of DeepSeek-R1-0528-Qwen3-8B so that it thinks in Indonesian. Reads top to bottom like the tutorial.

Where this differs from the tutorial's text (README, "What differs", says why):
 1. warmup_ratio goes in as warmup_steps, and prompts are bounded by the length filter: TRL dropped max_prompt_length.
 2. loss_type, beta, masking and clipping are set here: their defaults have changed silently since the tutorial ran.
 3. min_p, top_p, top_k go through GRPOConfig; no seed goes to vLLM, which would make a group's completions alike.
 4. The check that the LoRA was trained really checks it, and one before training shows that rollouts follow the adapter.

    python train.py                                                    # the tutorial, one 80 GB GPU
    python train.py --engine trl --model ./tiny --dataset sums.jsonl   # stock TRL + PEFT: also on a CPU
"""
import argparse
import glob
import importlib.metadata
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time

from data import add_data_arguments, get_reasoning_tokens, load_math_dataset, load_tokenizer

# vLLM's default sampler is compiled on first use, which needs nvcc (vllm#49497); evaluate.py imports this too
os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def check_adapter(folder, model=None):
    """Raise ValueError unless `folder` holds a trained LoRA adapter, and one of `model` where that is given.

    Every lora_A and lora_B tensor must be finite and have a non-zero value. (The tutorial, "验证LoRA确实被训练了！",
    compares a fraction of zeros with a count of elements, which never fails.) Returns the adapter's configuration.
    """
    import numpy as np
    from safetensors import SafetensorError, safe_open
    try:
        with open(os.path.join(folder, "adapter_config.json")) as file:
            config = json.load(file)
        with safe_open(os.path.join(folder, "adapter_model.safetensors"), framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys() if "lora_" in key}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder} is not a LoRA adapter: it needs adapter_config.json and adapter_model.safetensors") from error
    # numpy, for torch's own checks took 24 s on a 32-core host
    bad = [key for key, tensor in tensors.items() if not 0 < np.abs(tensor.float().numpy()).max() < np.inf]
    if bad or not tensors:
        raise ValueError(f"adapter {folder} is not trained: {len(bad)} of {len(tensors)} tensors are zero or not finite"
                         + (f", {bad[0]} for one" if bad else ""))
    if model:
        from transformers import AutoConfig
        hidden_size = AutoConfig.from_pretrained(model).get_text_config().hidden_size
        trained_on = next((t.shape[1] for key, t in tensors.items() if "q_proj.lora_A" in key), hidden_size)
        base, this = (os.path.basename(os.path.normpath(name)).lower().split("-unsloth")[0].removesuffix("-bnb-4bit")
                      for name in (config["base_model_name_or_path"], model))
        if trained_on != hidden_size or base != this:
            raise ValueError(f"adapter {folder} was trained on {config['base_model_name_or_path']} (hidden size "
                             f"{trained_on}), not on {model} (hidden size {hidden_size}): pass its base as --model, "
                             "a folder of the same name")
    return config


def check_rollouts_follow_adapter(trainer, prompt_ids):
    """Exit with status 1 if vLLM samples from the base model instead of from the adapter that is trained.

    Some pairs of TRL and Unsloth versions did so, with a finite loss and exit status 0 (unsloth#8701). Between two greedy
    generations of 16 tokens the lora_B of the last seven adapted modules (one decoder layer) is filled with noise; then
    these and their base weights are put back. Tokens or their log-probabilities must differ: tokens alone do not, where a
    model is sure of its first sentence.
    """
    import numpy as np
    vllm = trainer.vllm_generation
    layers = [module for module in trainer.model.modules() if getattr(module, "lora_B", None)][-7:]
    lora_b = [layer.lora_B["default"].weight for layer in layers]
    # the base weights too: TRL adds the adapter to them and takes it off again, which rounds
    weights = lora_b + [layer.base_layer.weight for layer in layers]
    kept = [p.detach().clone() for p in weights], vllm.temperature, vllm.max_completion_length
    vllm.temperature, vllm.max_completion_length = 0.0, 16

    def generate():
        vllm.sync_weights()
        _, ids, logprobs, _ = vllm.generate(prompts=[prompt_ids], images=None, num_generations=1)
        return list(ids[0]), np.array(logprobs[0], dtype=float)

    ids, logprobs = generate()
    for p in lora_b:
        p.data.normal_(std=1.0)
    ids_with_noise, logprobs_with_noise = generate()
    for p, values in zip(weights, kept[0]):
        p.data.copy_(values)
    vllm.sync_weights()
    vllm.temperature, vllm.max_completion_length = kept[1:]
    if ids == ids_with_noise and np.allclose(logprobs, logprobs_with_noise, atol=0.05):  # kernels differ by less
        sys.exit("error: rollouts do not follow the adapter: vLLM samples from the base model. Install exactly the "
                 "versions in requirements.txt")


def find_stuck(log_history, n):
    """Return why the last `n` logged steps could teach nothing (all cut off, or all groups rewarded alike), or None."""
    causes = {"completions/clipped_ratio": "every completion was cut at the token limit: raise --max-seq-length",
              "frac_reward_zero_std": "all completions of every group got the same reward: raise --num-generations, or "
                                      "change the rewards or the data"}
    for key, cause in causes.items():
        values = [row[key] for row in log_history if key in row]
        if len(values) >= n and min(values[-n:]) == 1:
            return f"for {n} logged steps {cause}"
    return None


if __name__ == "__main__":
    # -----------------------------------------------------------------------------------------------------------------
    # Arguments: names are the tutorial's and TRL's, defaults the tutorial's values
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add_data_arguments(parser)
    group = parser.add_argument_group("model and LoRA")
    group.add_argument("--engine", choices=["unsloth", "trl"], default="unsloth",
                       help="unsloth: the tutorial's; trl: stock TRL + PEFT, also on a CPU")
    group.add_argument("--max-seq-length", type=int, default=1024, help="prompt + completion, in tokens")
    group.add_argument("--load-in-4bit", action=argparse.BooleanOptionalAction, default=True,
                       help="4-bit base (trl: never)")
    group.add_argument("--fast-inference", action=argparse.BooleanOptionalAction, default=True,
                       help="generate with vLLM (needs a GPU)")
    group.add_argument("--gpu-memory-utilization", type=float, default=0.7, help="vLLM's share of GPU memory, 0 to 1")
    group.add_argument("--lora-rank", type=int, default=32, help="LoRA rank r")
    group.add_argument("--lora-alpha", type=int, help="LoRA scale; None: 2 * rank")
    group.add_argument("--target-modules", nargs="+", default=LORA_TARGETS, help="layers that get an adapter")
    group.add_argument("--use-gradient-checkpointing", choices=["unsloth", "true", "false"], default="unsloth",
                       help="recompute activations to save memory (trl: unsloth means true)")
    group = parser.add_argument_group("sampling")
    group.add_argument("--temperature", type=float, default=1.0, help="sampling temperature")
    group.add_argument("--min-p", type=float, default=0.1, help="smallest probability, as a share of the likeliest token's")
    group.add_argument("--top-p", type=float, default=1.0, help="probability mass to sample from")
    group.add_argument("--top-k", type=int, default=-1, help="number of tokens to sample from; -1: all")
    group.add_argument("--num-generations", type=int, default=4, help="completions per prompt (the group)")
    group = parser.add_argument_group("GRPO")
    group.add_argument("--rewards", choices=["tutorial", "improved"], default="tutorial", help="reward functions of rewards.py")
    group.add_argument("--reward-weights", type=float, nargs="+", help="one per reward; None: 1 each, or IMPROVED_WEIGHTS")
    group.add_argument("--loss-type", default="bnpo", choices=["bnpo", "grpo", "dr_grpo", "dapo"],
                       help="TRL's loss_type; bnpo: Unsloth's default when the tutorial ran")
    group.add_argument("--beta", type=float, default=0.001, help="weight of the KL term; 0.001: Unsloth's default then")
    group.add_argument("--epsilon-high", type=float, help="upper clip; None: as the lower, 0.2")
    group.add_argument("--scale-rewards", choices=["group", "batch", "none"], default="group",
                       help="whose standard deviation divides the advantages")
    group.add_argument("--mask-truncated-completions", action="store_true", help="leave cut-off completions out of the loss")
    group.add_argument("--learning-rate", type=float, default=5e-6, help="peak learning rate")
    group.add_argument("--weight-decay", type=float, default=0.01, help="AdamW's weight decay")
    group.add_argument("--warmup-ratio", type=float, default=0.1, help="share of the steps to warm up, 0 to 1")
    group.add_argument("--lr-scheduler-type", default="linear", help="learning rate schedule")
    group.add_argument("--optim", default="adamw_8bit", help="optimizer (on a CPU: adamw_torch)")
    group.add_argument("--per-device-train-batch-size", type=int, default=1,
                       help="completions per device and micro-batch; 1 with no whole group in a step: --num-generations, as in Unsloth")
    group.add_argument("--gradient-accumulation-steps", type=int, default=1, help="micro-batches per step")
    group.add_argument("--max-steps", type=int, default=100, help="optimizer steps; -1: --num-train-epochs")
    group.add_argument("--num-train-epochs", type=float, default=1.0, help="passes over the data if --max-steps is -1")
    group.add_argument("--stop-if-stuck", type=int, default=0, metavar="N",
                       help="stop after N logged steps that cannot teach; 0: only warn")
    group = parser.add_argument_group("output")
    group.add_argument("--output-dir", default="outputs", help="folder for everything that is written")
    group.add_argument("--logging-steps", type=int, default=1, help="steps between lines of metrics.jsonl and the tracker")
    group.add_argument("--save-steps", type=int, default=100, help="steps between checkpoints")
    group.add_argument("--eval-steps", type=int, default=0, help="steps between rewards on held-out prompts; 0: never")
    group.add_argument("--resume", action="store_true", help="continue from the last checkpoint in --output-dir")
    group.add_argument("--report-to", choices=["swanlab", "wandb", "tensorboard", "none"], default="swanlab", help="tracker")
    group.add_argument("--swanlab-mode", choices=["offline", "cloud", "local", "disabled"], default="offline",
                       help="cloud needs `swanlab login` or SWANLAB_API_KEY; offline needs neither")
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    args = parser.parse_args()
    run_file = os.path.join(args.output_dir, "run.json")
    if args.resume and os.path.exists(run_file):  # the flags of the run that is continued, unless given anew
        before = json.load(open(run_file))["arguments"]
        parser.set_defaults(**{name: before[name] for name in vars(args) if name in before})
        args = parser.parse_args()
    args.lora_alpha = args.lora_alpha or 2 * args.lora_rank
    if not 0 <= args.warmup_ratio < 1:
        parser.error("--warmup-ratio must be at least 0 and less than 1")
    if args.temperature <= 0 or not 0 <= args.min_p <= 1:
        parser.error("--temperature must be above 0, and --min-p from 0 to 1")
    if args.num_generations < 2:
        parser.error("--num-generations must be at least 2: GRPO compares the completions of a group")
    processes = int(os.environ.get("WORLD_SIZE", 1))
    if args.per_device_train_batch_size == 1 and args.gradient_accumulation_steps * processes % args.num_generations:
        args.per_device_train_batch_size = args.num_generations
    completions_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    prompts_per_step = completions_per_step // args.num_generations
    if completions_per_step < 1 or completions_per_step % args.num_generations:
        parser.error(f"--num-generations {args.num_generations} must divide --per-device-train-batch-size "
                     f"{args.per_device_train_batch_size} * --gradient-accumulation-steps {args.gradient_accumulation_steps} "
                     f"* {processes} processes")
    if args.eval_steps and not args.eval_fraction:
        parser.error("--eval-steps needs --eval-fraction")
    if args.report_to != "none" and not importlib.util.find_spec(args.report_to):
        parser.error(f"--report-to {args.report_to}: no such package; activate run.sh's environment, or pip install {args.report_to}")
    checkpoints = glob.glob(os.path.join(args.output_dir, "checkpoint-*"))
    if args.resume and not checkpoints:
        parser.error(f"--resume: no checkpoint in {args.output_dir}")
    checkpoint = max(checkpoints, key=os.path.getmtime) if args.resume else None  # an older run may have gone further
    import rewards
    reward_funcs, weights = rewards.TUTORIAL_REWARDS, [1.0] * len(rewards.TUTORIAL_REWARDS)
    if args.rewards == "improved":
        reward_funcs, weights = rewards.IMPROVED_REWARDS, rewards.IMPROVED_WEIGHTS
    args.reward_weights = args.reward_weights or weights
    if len(args.reward_weights) != len(reward_funcs):
        parser.error(f"--reward-weights needs {len(reward_funcs)} values: {', '.join(f.__name__ for f in reward_funcs)}")
    started = time.time()

    # -----------------------------------------------------------------------------------------------------------------
    # Model and LoRA
    import torch
    gpu = torch.cuda.is_available()
    try:
        if args.engine == "unsloth":
            if not gpu:
                parser.error("--engine unsloth needs an NVIDIA GPU; use --engine trl here")
            from unsloth import FastLanguageModel
            model, tokenizer = FastLanguageModel.from_pretrained(
                model_name=args.model,
                max_seq_length=args.max_seq_length,
                load_in_4bit=args.load_in_4bit,
                fast_inference=args.fast_inference,
                max_lora_rank=args.lora_rank,
                gpu_memory_utilization=args.gpu_memory_utilization,
                use_exact_model_name=True,  # quantise this model, as from the tutorial's local path; no ready-made 4-bit copy
            )
            model = FastLanguageModel.get_peft_model(
                model,
                r=args.lora_rank,
                target_modules=args.target_modules,
                lora_alpha=args.lora_alpha,
                use_gradient_checkpointing={"true": True, "false": False}.get(args.use_gradient_checkpointing, "unsloth"),
                random_state=args.seed,
            )
            peft_config = None
        else:
            from peft import LoraConfig
            from transformers import AutoModelForCausalLM, set_seed
            set_seed(args.seed)
            tokenizer = load_tokenizer(args.model)
            model = AutoModelForCausalLM.from_pretrained(
                args.model, dtype=torch.bfloat16 if gpu else torch.float32,
                device_map=int(os.environ.get("LOCAL_RANK", 0)) if gpu else None)  # straight to its GPU
            peft_config = LoraConfig(r=args.lora_rank, lora_alpha=args.lora_alpha,
                                     target_modules=args.target_modules, task_type="CAUSAL_LM")
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: Unsloth's word for a model that is not there
        parser.error(f"cannot load {args.model}: {' '.join(str(error).split())}")

    # -----------------------------------------------------------------------------------------------------------------
    # Data and rewards
    try:
        rewards.reasoning_start, rewards.reasoning_end = args.reasoning_tokens or get_reasoning_tokens(tokenizer)
        rewards.target_lang = args.target_lang
        dataset, held_out, maximum_length = load_math_dataset(args, tokenizer)
    except ValueError as error:
        parser.error(str(error))
    first_prompt = tokenizer.apply_chat_template(dataset[0]["prompt"], tokenize=False, add_generation_prompt=True)
    rewards.think_is_prefilled = first_prompt.rstrip().endswith(rewards.reasoning_start)
    if len(dataset) < prompts_per_step:
        parser.error(f"a step needs {prompts_per_step} prompts, and there are {len(dataset)}")
    if args.rewards == "improved":
        unusable = sum(rewards.is_correct("", answer) is None for answer in dataset["answer"])
        if unusable:
            print(f"warning: {unusable} of {len(dataset)} answers are no numbers: answer_reward skips these rows")

    # -----------------------------------------------------------------------------------------------------------------
    # Trainer
    max_prompt_length = maximum_length + 1
    max_completion_length = args.max_seq_length - max_prompt_length
    if max_completion_length < 1:
        parser.error(f"--max-seq-length {args.max_seq_length} leaves no token after prompts of {maximum_length} tokens")
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer
    is_main = int(os.environ.get("RANK", 0)) == 0

    class Watch(TrainerCallback):
        """Keep metrics.jsonl up to date; warn, or stop, when nothing can be learned."""
        stuck = seconds_to_first_step = None

        def on_step_end(self, training_args, state, control, **kwargs):
            self.seconds_to_first_step = self.seconds_to_first_step or round(time.time() - started, 1)

        def on_log(self, training_args, state, control, **kwargs):
            if is_main:
                with open(os.path.join(args.output_dir, "metrics.jsonl"), "w") as file:
                    file.writelines(json.dumps(row) + "\n" for row in state.log_history)
            cause = find_stuck(state.log_history, args.stop_if_stuck or 10)
            if cause and cause != self.stuck and is_main:
                print(f"warning: {cause}")
            self.stuck = cause
            if cause and args.stop_if_stuck:
                control.should_training_stop = True

    watch = Watch()
    try:
        training_args = GRPOConfig(
            temperature=args.temperature,
            min_p=args.min_p,
            top_p=args.top_p,
            top_k=max(args.top_k, 0),  # vLLM calls "all" -1, TRL 0
            learning_rate=args.learning_rate,
            weight_decay=args.weight_decay,
            warmup_steps=args.warmup_ratio,  # transformers 5 reads a value below 1 as a share of the steps
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
            report_to=args.report_to,
            output_dir=args.output_dir,
            seed=args.seed,
            bf16=gpu,
            gradient_checkpointing=args.use_gradient_checkpointing != "false",
            loss_type=args.loss_type,
            beta=args.beta,
            epsilon_high=args.epsilon_high,
            scale_rewards=args.scale_rewards,
            mask_truncated_completions=args.mask_truncated_completions,
            reward_weights=args.reward_weights,
            use_vllm=gpu and args.fast_inference,
            vllm_gpu_memory_utilization=args.gpu_memory_utilization,
            vllm_max_model_length=max(args.max_seq_length, 2048),  # vLLM 0.23's warm-up overruns a shorter block table
            vllm_importance_sampling_correction=False,  # unknown when the tutorial ran; costs a forward pass a step
            per_device_eval_batch_size=args.num_generations,
            num_generations_eval=1,
            eval_strategy="steps" if args.eval_steps else "no",
            eval_steps=args.eval_steps or None,
        )
        trainer = GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=reward_funcs,
            args=training_args,
            train_dataset=dataset,
            eval_dataset=held_out,
            peft_config=peft_config,
            callbacks=[watch],
        )
        os.makedirs(args.output_dir, exist_ok=True)
    except (ValueError, OSError) as error:  # a value or a combination that TRL or PEFT refuses, or no such folder
        parser.error(str(error).split("\n")[0])
    effective = {
        "prompts_per_step": prompts_per_step,
        "completions_per_step": completions_per_step,
        "max_prompt_length": max_prompt_length,
        "max_completion_length": max_completion_length,
        "warmup_steps": training_args.get_warmup_steps(args.max_steps) if args.max_steps > 0 else None,
        "loss_type": training_args.loss_type,
        "beta": training_args.beta,
        "load_in_4bit": args.engine == "unsloth" and args.load_in_4bit,
        "fast_inference": training_args.use_vllm,
        "optim": training_args.optim.value,
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "train_rows": len(dataset),
        "held_out_rows": len(held_out or []),
    }
    if is_main:
        print("first prompt:", first_prompt, sep="\n")
        print("\n".join(f"{key}: {value}" for key, value in effective.items()), flush=True)

    # -----------------------------------------------------------------------------------------------------------------
    # Train, save, check, summary
    if args.report_to == "swanlab" and is_main:
        # transformers' own callback fails with swanlab >= 0.8 unless a run is open
        import swanlab
        swanlab.init(project="grpo-indonesian", mode=args.swanlab_mode, logdir=os.path.join(args.output_dir, "swanlog"),
                     config=vars(args))
    if training_args.use_vllm:
        check_rollouts_follow_adapter(trainer, tokenizer(first_prompt, add_special_tokens=False)["input_ids"])
    trainer.train(resume_from_checkpoint=checkpoint)
    if processes > 1:
        torch.distributed.destroy_process_group()  # a process that ends without can abort
    if not is_main:
        sys.exit()
    adapter = os.path.join(args.output_dir, "grpo_lora")
    if args.engine == "unsloth" and args.fast_inference:
        model.save_lora(adapter)
    else:
        trainer.model.save_pretrained(adapter)

    steps = [row for row in trainer.state.log_history if "reward" in row]
    run = {
        "arguments": vars(args) | {"reward_funcs": [f.__name__ for f in reward_funcs]},
        "effective": effective,
        "held_out": held_out and [prompt[-1]["content"] for prompt in held_out["prompt"]],
        "versions": {name: importlib.metadata.version(name) for name in
                     ("torch", "transformers", "trl", "peft", "datasets", "unsloth", "vllm", "langid")
                     if any(importlib.metadata.distributions(name=name))},
        "commit": subprocess.run("git rev-parse HEAD", shell=True, cwd=os.path.dirname(os.path.abspath(__file__)),
                                 capture_output=True, text=True).stdout.strip(),  # a shell, for where git is not installed
        "hardware": torch.cuda.get_device_name() if gpu else f"CPU, {os.cpu_count()} cores",
        "seconds": round(time.time() - started, 1),
        "seconds_to_first_step": watch.seconds_to_first_step,
        "peak_memory_gib": round(torch.cuda.max_memory_reserved() / 2**30 if gpu else
                                 resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "last_step": steps[-1],
    }
    with open(run_file, "w") as file:
        json.dump(run, file, indent=1, ensure_ascii=False)
    for key in ("reward", "completions/clipped_ratio", "completions/mean_length", "frac_reward_zero_std", "kl"):
        print(f"{key}: {steps[0].get(key)} -> {steps[-1].get(key)}")
    print(f"steps: {trainer.state.global_step}\nseconds: {run['seconds']}\npeak_memory_gib: {run['peak_memory_gib']}")
    print(f"adapter: {adapter}")
    if watch.stuck and args.stop_if_stuck:
        sys.exit(f"error: stopped at step {trainer.state.global_step}: {watch.stuck}")
    try:
        check_adapter(adapter)
    except ValueError as error:
        sys.exit(f"error: {error}")
