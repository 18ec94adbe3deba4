"""Run evaluate.py (vLLM), then the tutorial's loop on the same engine: one prompt at a time, with LoRA, then without.

    python tests/gpu/eval_speed.py --model MODEL --adapter ADAPTER --dataset DATA ...     (evaluate.py's flags)

The loop takes 4 of the prompts and is scaled to all.
"""
import os
import runpy
import sys
import time

if __name__ == "__main__":  # vLLM's engine process imports this file again
    sys.path.insert(0, os.getcwd())
    sys.argv[0] = "evaluate.py"
    run = runpy.run_path("evaluate.py", run_name="__main__")
    n, loop, adapter = run["args"].num_samples, 4, os.path.abspath(run["adapter"])
    prompts = [ids for ids, (arm, *_) in zip(run["ids"], run["jobs"]) if arm == "base"][-n:][:loop]
    sampling = run["SamplingParams"](temperature=run["args"].temperature, top_k=run["args"].top_k, max_tokens=run["args"].max_tokens)
    started = time.time()
    for number, prompt in enumerate(prompts):
        for lora in (run["LoRARequest"](f"copy{number}", 2 + number, adapter), None):  # as load_lora in the tutorial: a new id each time
            run["llm"].generate([{"prompt_token_ids": prompt}], sampling, lora_request=lora, use_tqdm=False)
    seconds = (time.time() - started) / loop * n
    print(f"EVAL n = {n} x 2: loop {seconds:.1f} s (scaled from {loop}), evaluate.py {run['seconds']}, "
          f"ratio {seconds / run['seconds']['generate']:.1f}", flush=True)
