"""Time the trainer's half of a GRPO step alone: forward, recomputation, backward, optimizer.

    python tests/gpu/time_update.py MODEL [VARIANT ...]

The completions are random tokens, as many each as --tokens or --lengths says, so there is no vLLM
and no sampling; the rest is TRL's own trainer on the model as train.py loads it. One line a
variant: seconds and tokens/s of a step of --completions, and peak memory; --profile also prints
where the GPU's time goes. Variants:
    plain        micro-batch 8, gradient checkpointing, PEFT casts the LoRA's input to its dtype
    nocast       without that cast: under autocast the product is the same
    N            nocast with micro-batch N; behind it, each with a dash, any of
      keep         activations are kept: no checkpointing
      chunked      TRL's log-probabilities without whole logits (use_liger_kernel, less the package)
      compile      torch_compile
      layers       each decoder layer compiled by itself; they stay so, too
      liger        Liger's RMSNorm, RoPE and SwiGLU, as train.py has them; they stay, so name such
                   variants last
      unpadded     no padding and no mask, as train.py's skip_padding
"""

import argparse
import contextlib
import itertools
import json
import tempfile
import time

from rollouts_see_update import load, train

VARIANTS = ["plain", "nocast", "16", "8-chunked", "16-chunked", "4-keep-chunked", "8-compile"]


def main(args):
    import torch
    from peft import get_peft_model
    from transformers.integrations import liger

    apply_liger_kernel = liger.apply_liger_kernel
    liger.apply_liger_kernel = lambda model, config: None  # not by load
    torch.backends.cuda.enable_cudnn_sdp(False)  # as train.py does
    model, tokenizer, peft_config = load(args.model)
    model = get_peft_model(model, peft_config)
    for p in model.parameters():  # as the trainer has them
        if p.requires_grad:
            p.data = p.data.float()
    model.config.use_cache = False
    for variant in args.variants:
        if "liger" in variant:
            apply_liger_kernel(model, {"fused_linear_cross_entropy": False})
        try:
            time_variant(args, model, tokenizer, variant)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            print(f"{variant}: {str(error).splitlines()[0]}", flush=True)


def time_variant(args, model, tokenizer, variant):
    """Train on fixed random completions and print the mean step, without the first."""
    import torch
    from datasets import Dataset
    from peft.helpers import disable_input_dtype_casting
    from trl import GRPOConfig, GRPOTrainer
    from trl.models.utils import _ForwardRedirection

    size, *ways = variant.split("-")
    size = int(size) if size.isdigit() else 8
    gpu = torch.cuda.is_available()
    model.gradient_checkpointing_disable()
    if "layers" in ways:
        for layer in model.get_base_model().model.layers:
            layer.compile(dynamic=True)
    trainer = GRPOTrainer(
        model=model,
        processing_class=tokenizer,
        reward_funcs=lambda completions, **kwargs: [0.0 for _ in completions],
        args=GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=args.completions // size,
            num_generations=2,
            max_steps=args.steps,
            beta=0.0,
            bf16=gpu,
            gradient_checkpointing="keep" not in ways,
            torch_compile="compile" in ways,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1000,
        ),
        train_dataset=Dataset.from_list([{"prompt": "a"}] * args.completions),
    )
    if "chunked" in ways:
        trainer.use_liger_kernel = True
        trainer._forward_redirection = _ForwardRedirection()
    if "unpadded" in ways:
        train.skip_padding(trainer)
    lengths = args.lengths or [args.tokens] * args.completions
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    batches = []
    for first in range(0, args.completions, size):
        mine = torch.tensor(lengths[first : first + size])[:, None]
        prompt_mask = torch.ones(size, args.prompt_tokens, dtype=torch.long)
        prompt_mask[: size // 2, :10] = 0  # prompts differ in length
        batch = {
            "prompt_ids": torch.randint(10, vocabulary, prompt_mask.shape, generator=generator),
            "prompt_mask": prompt_mask,
            "completion_ids": torch.randint(
                10, vocabulary, (size, max(lengths)), generator=generator
            ),
            "completion_mask": (torch.arange(max(lengths)) < mine).long(),  # as long as TRL's step
            "advantages": torch.randn(size, generator=generator),
            "num_items_in_batch": torch.tensor(sum(lengths)),
        }
        batches.append({key: value.to(trainer.args.device) for key, value in batch.items()})
    batches = itertools.cycle(batches)
    trainer._prepare_inputs = lambda inputs: next(batches)
    ends = []
    training_step = trainer.training_step

    def timed(*arguments, **options):
        loss = training_step(*arguments, **options)
        if gpu:
            torch.cuda.synchronize()
        ends.append(time.time())
        return loss

    trainer.training_step = timed
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.time()
    with disable_input_dtype_casting(model, active=variant != "plain"):
        with profile(args.profile and variant == args.variants[-1]):
            trainer.train()
    micro = args.completions // size
    seconds = ends[-1] - start
    if args.steps > 1:
        seconds = (ends[-1] - ends[micro - 1]) / (args.steps - 1)
    tokens = sum(lengths)
    peak = torch.cuda.max_memory_allocated() / 2**30 if gpu else 0
    cached = torch.cuda.max_memory_reserved() / 2**30 if gpu else 0
    print(
        f"{variant}: {seconds:.2f} s for {args.completions} completions, "
        f"{tokens / seconds:.0f} tokens/s, first step {ends[micro - 1] - start:.1f} s, "
        f"peak {peak:.1f} GiB, {cached:.1f} with PyTorch's cache",
        flush=True,
    )
    del trainer
    if gpu:
        torch.cuda.empty_cache()


@contextlib.contextmanager
def profile(active):
    """Print the kernels that take the most GPU time."""
    from torch.profiler import ProfilerActivity

    if not active:
        yield
        return
    import torch

    with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as prof:
        yield
    table = prof.key_averages().table(
        sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=70
    )
    print(table, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="local folder")
    parser.add_argument("variants", nargs="*", default=VARIANTS)
    parser.add_argument("--completions", type=int, default=128, help="completions of a step")
    parser.add_argument("--tokens", type=int, default=907, help="tokens of each completion")
    parser.add_argument("--lengths", metavar="FILE", help="JSON list: tokens of each completion")
    parser.add_argument("--prompt-tokens", type=int, default=117)
    parser.add_argument("--steps", type=int, default=3, help="the first is not counted")
    parser.add_argument("--profile", action="store_true", help="profile the last variant")
    arguments = parser.parse_args()
    if arguments.lengths:
        with open(arguments.lengths) as file:
            arguments.lengths = json.load(file)
        arguments.completions = len(arguments.lengths)
    main(arguments)
