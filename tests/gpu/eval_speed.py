"""Run evaluate.py (vLLM), then the tutorial's loop on the same engine: one prompt at a time.

    python tests/gpu/eval_speed.py --model MODEL --adapter ADAPTER --dataset DATA ...

takes evaluate.py's flags. The loop takes 4 of the prompts, with LoRA and without, and is scaled.
"""

import json
import os
import sys
import time


def main():
    import vllm
    from vllm.lora.request import LoRARequest

    import evaluate

    kept = {}

    class KeptLLM(vllm.LLM):
        """The engine of evaluate.py, kept with what it was given."""

        def generate(self, prompts, sampling_params, **options):
            if not kept:
                kept.update(llm=self, prompts=prompts, sampling_params=sampling_params)
            return super().generate(prompts, sampling_params, **options)

    vllm.LLM = KeptLLM
    args = evaluate.parse_arguments()
    evaluate.main(args)
    with open(os.path.join(args.output_dir, args.name, "results.json"), encoding="utf-8") as file:
        results = json.load(file)

    loop = 4
    adapter = os.path.abspath(results["adapters"]["lora"])
    started = time.time()
    for i in range(loop):  # the first prompts are the base's
        prompt = kept["prompts"][i]
        sampling = kept["sampling_params"][i]
        lora = LoRARequest(
            f"copy{i}", 2 + i, adapter
        )  # load_lora in the tutorial: a new id each time
        for lora_request in (lora, None):
            kept["llm"].generate([prompt], [sampling], lora_request=[lora_request], use_tqdm=False)
    n = results["n"]
    seconds = (time.time() - started) / loop * n
    ratio = seconds / results["seconds"]["generate"]
    print(
        f"EVAL n = {n} x 2: loop {seconds:.1f} s (scaled from {loop}), "
        f"evaluate.py {results['seconds']}, ratio {ratio:.1f}",
        flush=True,
    )


if __name__ == "__main__":  # vLLM's engine process imports this file again
    sys.path.insert(0, os.getcwd())
    sys.argv[0] = "evaluate.py"
    main()
