"""Print one row for each output folder of train.py: time to the first step, median step, tokens/s, peak memory.

    python tests/gpu/table.py outputs/a outputs/b
"""
import json
import statistics
import sys

print("| run | completions | tokens/step | start to end of step 1, s | median step, s | tokens/s | peak GiB (torch) |\n|---|---|---|---|---|---|---|")
for folder in sys.argv[1:]:
    try:
        run = json.load(open(f"{folder}/run.json"))
    except OSError as error:
        print(f"| {folder} | failed: {error} |")
        continue
    steps = [row for row in map(json.loads, open(f"{folder}/metrics.jsonl")) if "step_time" in row]
    completions = run["effective"]["completions_per_step"]
    tokens = completions * statistics.median(row["completions/mean_length"] for row in steps[1:] or steps)
    median = statistics.median(row["step_time"] for row in steps[1:] or steps)
    print(f"| {folder.rstrip('/').split('/')[-1]} | {completions} | {tokens:.0f} | {run['seconds_to_first_step']} | {median:.2f} | "
          f"{tokens / median:.0f} | {run['peak_memory_gib']} |", flush=True)
