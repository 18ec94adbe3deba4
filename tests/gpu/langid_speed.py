"""Time the language rewards a completion, with one BLAS thread and with one a core.

    python tests/gpu/langid_speed.py
"""
import os
import subprocess
import sys

CODE = """
import time, numpy, torch, rewards
text = "<think>" + "Baik, mari kita selesaikan soal ini langkah demi langkah. Pertama, kita tahu bahwa jumlahnya adalah 12. " * 30 + "</think>12"
for name in ("format_and_language_reward_func", "language_reward"):
    f, batch = getattr(rewards, name), [[{"content": text}]] * 16
    f(prompts=batch, completions=batch)
    t = time.perf_counter(); f(prompts=batch, completions=batch); print(name, round((time.perf_counter() - t) / 16 * 1000, 2), "ms a completion of", len(text), "characters")
"""
root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
for threads in ("1", str(os.cpu_count())):
    print(f"OPENBLAS_NUM_THREADS={threads}", flush=True)
    subprocess.run([sys.executable, "-c", CODE], cwd=root, env=os.environ | {"OPENBLAS_NUM_THREADS": threads}, check=True)
