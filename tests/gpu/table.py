"""Print one row for each output folder of train.py: first step, median step, tokens/s, memory.

python tests/gpu/table.py outputs/a outputs/b
"""

import json
import os
import statistics
import sys

COLUMNS = ["run", "completions", "tokens/step", "start to end of step 1, s", "median step, s"]
COLUMNS += ["tokens/s", "logp difference", "peak GiB (torch)"]
print(f"| {' | '.join(COLUMNS)} |")
print("|---" * len(COLUMNS) + "|")
for folder in sys.argv[1:]:
    name = os.path.basename(os.path.normpath(folder))
    try:
        with open(f"{folder}/run.json") as file:
            run = json.load(file)
        with open(f"{folder}/metrics.jsonl") as file:
            rows = [json.loads(line) for line in file]
    except OSError as error:
        print(f"| {name} | failed: {error} |")
        continue
    steps = [row for row in rows if "step_time" in row]
    later = steps[1:] or steps
    completions = run["effective"]["completions_per_step"]
    tokens = completions * statistics.median(row["completions/mean_length"] for row in later)
    seconds = statistics.median(row["step_time"] for row in later)
    differences = [row.get("rollout_logp_difference") or 0 for row in later]
    cells = [name, completions, f"{tokens:.0f}", run.get("seconds_to_first_step")]
    cells += [f"{seconds:.2f}", f"{tokens / seconds:.0f}"]
    cells += [f"{statistics.median(differences):.4f}", run.get("peak_memory_gib")]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
