"""Print one row for each output folder of train.py: first step, median step, tokens/s, memory.

python tests/gpu/table.py outputs/a outputs/b

Tokens are those of all processes together. A folder NAME-ddpN (N processes) is compared with
NAME-ddp1, or else NAME: efficiency is tokens/s over N times theirs. Where a NAME.log beside the
folder has profile_step.py's lines, the parts of the last whole step (rank 0's) are printed below.
"""

import ast
import json
import os
import re
import statistics
import sys

COLUMNS = ["run", "completions", "tokens/step", "start to end of step 1, s", "median step, s"]
COLUMNS += ["tokens/s", "logp difference", "peak GiB (torch)", "efficiency"]
print(f"| {' | '.join(COLUMNS)} |")
print("|---" * len(COLUMNS) + "|")
rates = {}
parts = {}


def get_efficiency(name):
    """Return speed and share of the ideal against one process, as text; "" for other names."""
    match = re.fullmatch(r"(.*)-ddp(\d+)", name)
    if not match:
        return ""
    one = rates.get(f"{match[1]}-ddp1") or rates.get(match[1])
    if not one or match[2] == "1":
        return ""
    speed = rates[name] / one
    return f"{speed:.2f} x, {speed / int(match[2]):.0%}"


def get_parts(log):
    """Return the seconds between the last two lines of profile_step.py, by TRL's names."""
    if not os.path.exists(log):
        return {}
    with open(log, errors="replace") as file:
        found = re.findall(r"PROFILE, seconds since the start: (\{.*?\})", file.read())
    if len(found) < 2:
        return {}
    before, after = [ast.literal_eval(text) for text in found[-2:]]
    return {key: round(after[key] - before.get(key, 0), 2) for key in after}


folders = [os.path.normpath(folder) for folder in sys.argv[1:]]
folders.sort(key=lambda folder: folder.endswith(("-ddp2", "-ddp4", "-ddp8")))  # after one GPU's
for folder in folders:
    name = os.path.basename(folder)
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
    rates[name] = tokens / seconds
    parts[name] = get_parts(f"{folder}.log")
    cells = [name, completions, f"{tokens:.0f}", run.get("seconds_to_first_step")]
    cells += [f"{seconds:.2f}", f"{tokens / seconds:.0f}"]
    cells += [
        f"{statistics.median(differences):.4f}",
        run.get("peak_memory_gib"),
        get_efficiency(name),
    ]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)
for name, seconds in parts.items():
    if seconds:
        print(f"\n{name}, seconds of a step: {seconds}")
