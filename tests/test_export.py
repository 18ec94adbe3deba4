"""export.py as users run it: every format, on a tiny Qwen3 whose adapter has learnt four texts; and what it refuses.

Its tokenizer is Qwen3's own (from PyPI's dashscope) with DeepSeek-R1's tokens: llama.cpp knows tokenizers by a hash.
"""
import base64
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
import export
from data import make_system_prompt
from make_demo_model import declare_llama
from train import LORA_TARGETS

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = ["<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜begin▁of▁sentence｜>", "<think>", "</think>"]
TEMPLATE = ("{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
            "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
            "{% else %}{{ '<｜Assistant｜>' + m['content'] + eos_token }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}")


def make_tokenizer():
    """Return Qwen3's tokenizer with DeepSeek-R1's special tokens. Its merges follow from the ranks, bytes -> id."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode
    path = os.path.join(os.path.dirname(importlib.util.find_spec("dashscope").origin), "resources", "qwen.tiktoken")
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, open(path))}
    letters = bytes_to_unicode()

    def text(token):
        return "".join(letters[byte] for byte in token)

    merges = []
    for token, rank in ranks.items():
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            i = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], rank))
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append((text(parts[0]), text(parts[1])))
    core = Tokenizer(models.BPE({text(token): rank for token, rank in ranks.items()}, merges))
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN), "isolated"),
                                                  pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=SPECIAL[0], pad_token=SPECIAL[0],
                                        bos_token=SPECIAL[3])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_adapter(base, folder, tokenizer, steps, rate=1e-2, device="cpu"):
    """Teach a LoRA on the model folder `base` fixed answers to export.PROBLEMS, for greedy tokens without near ties."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, device_map=device)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    rows = []
    for problem, words in zip(export.PROBLEMS, ["satu dua tiga", "lima enam tujuh", "delapan sembilan", "sepuluh"]):
        prompt = [{"role": "system", "content": make_system_prompt("zh")}, {"role": "user", "content": problem}]
        start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        rows.append((start, tokenizer(f"<think>{words}</think>{words}" + tokenizer.eos_token)["input_ids"]))
    for _ in range(steps):
        loss = 0
        for start, answer in rows:
            ids = torch.tensor([start + answer], device=device)
            logits = model(input_ids=ids, logits_to_keep=len(answer) + 1).logits[0, :-1]
            loss = loss + torch.nn.functional.cross_entropy(logits.float(), ids[0, len(start):])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """An output folder as train.py and evaluate.py leave it, with a trained adapter of a tiny base model."""
    from transformers import Qwen3Config, Qwen3ForCausalLM
    base, folder = (str(tmp_path_factory.mktemp("export") / name) for name in ("base", "outputs"))
    tokenizer = make_tokenizer()
    config = Qwen3Config(vocab_size=151680, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=1, head_dim=32, tie_word_embeddings=True,
                         initializer_range=0.1, bos_token_id=tokenizer.bos_token_id,
                         eos_token_id=tokenizer.eos_token_id)
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).bfloat16().save_pretrained(base)
    tokenizer.save_pretrained(base)
    declare_llama(base)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices: several threads wait for each other, much longer on a busy machine
    make_adapter(base, f"{folder}/grpo_lora", tokenizer, steps=20)
    torch.set_num_threads(threads)
    os.makedirs(f"{folder}/eval")
    rates = {"indonesian_rate": 0.25, "accuracy": 0.5, "accuracy_ci95": [0.4, 0.6]}
    arguments = {"model": base, "system_prompt": "zh", "target_lang": "id", "temperature": 0.7, "output_dir": folder,
                 "dataset": "open-r1/DAPO-Math-17k-Processed", "engine": "trl"}
    for name, value in (("run.json", {"arguments": arguments}),
                        ("eval/results.json", {"n": 200, "base": rates, "lora": {**rates, "indonesian_rate": 0.875}})):
        with open(f"{folder}/{name}", "w") as file:
            json.dump(value, file)
    return folder


def run(*arguments, patch="", **environment):
    """Run export.py on a CPU, after the statements `patch`; return the finished process."""
    code = f"import runpy, sys; {patch}; sys.path.insert(0, {ROOT!r}); runpy.run_path({ROOT!r} + '/export.py', run_name='__main__')"
    clean = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "UNSLOTH_LLAMA_CPP_PATH")}
    command = ["-c", code] if patch else [os.path.join(ROOT, "export.py")]
    return subprocess.run([sys.executable, *command, *arguments], capture_output=True, text=True,
                          env={**clean, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1",
                               **environment})


def test_all_formats(outputs):
    done = run("--output-dir", outputs, "--format", "lora", "gguf", "merged_4bit",
               "--quantization", "q4_k_m")
    assert done.returncode == 0, done.stderr
    folder = f"{outputs}/export"
    assert sorted(os.listdir(folder)) == ["export.json", "gguf", "lora", "merged_16bit", "merged_4bit"]
    formats = json.load(open(f"{folder}/export.json"))["formats"]
    for name, record in formats.items():
        files = {file: os.path.getsize(f"{folder}/{name}/{file}") for file in os.listdir(f"{folder}/{name}")}
        assert files == record["files"] and sum(files.values()) == record["bytes"] and record["seconds"] > 0
        card = open(f"{folder}/{name}/README.md").read()
        assert "| indonesian_rate | 0.25 | 0.875 |" in card and "datasets: open-r1/DAPO-Math-17k-Processed" in card
        assert outputs not in card and os.path.dirname(outputs) not in card, "a local path would be published"
    assert formats["merged_16bit"]["agreement_of_base"] < 0.5 < formats["merged_16bit"]["agreement"]["merged_16bit"]
    assert formats["merged_16bit"]["weights"]["applied"] > 0.95
    assert json.load(open(f"{folder}/merged_4bit/config.json"))["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    assert set(formats["gguf"]["agreement"]) == {"f16", "q4_k_m"}
    assert sorted(formats["gguf"]["files"]) == ["Modelfile", "README.md", "base-grpo-q4_k_m.gguf"]
    modelfile = open(f"{folder}/gguf/Modelfile").read()
    assert modelfile.startswith("FROM ./base-grpo-q4_k_m.gguf\n") and make_system_prompt("zh") in modelfile
    assert "{{ if .System }}<｜begin▁of▁sentence｜>{{ .System }}{{ end }}<｜User｜>{{ .Prompt }}<｜Assistant｜>{{ .Response }}<｜end▁of▁sentence｜>" in modelfile
    assert 'PARAMETER stop "<｜User｜>"' in modelfile and "PARAMETER temperature 0.7" in modelfile


def test_an_older_evaluation_is_not_published(outputs, tmp_path):
    shutil.copytree(outputs, tmp_path / "again", ignore=shutil.ignore_patterns("export"))
    for time, published in ((2e9, True), (1e9, False)):
        os.utime(tmp_path / "again" / "eval" / "results.json", (time, time))
        done = run("--output-dir", str(tmp_path / "again"), "--format", "lora")
        assert done.returncode == 0, done.stderr
        assert ("## Evaluation" in (tmp_path / "again" / "export" / "lora" / "README.md").read_text()) == published


def test_failed_export_leaves_nothing(outputs, tmp_path):
    (tmp_path / "convert_hf_to_gguf.py").write_text("raise SystemExit('unknown pre-tokenizer')")
    done = run("--output-dir", outputs, "--engine", "trl", "--format", "gguf", UNSLOTH_LLAMA_CPP_PATH=str(tmp_path))
    before = json.load(open(f"{outputs}/export/export.json"))["formats"]["gguf"]
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("convert_hf_to_gguf.py failed: unknown pre-tokenizer"), done.stderr
    assert sorted(os.listdir(f"{outputs}/export/gguf")) == sorted(before["files"]), "the earlier export stays"
    assert not os.path.exists(f"{outputs}/export/partial")


def test_sharded(outputs, tmp_path):
    """A model of several files, as 8B is: the proof of the weights and llama.cpp's converter go by its index."""
    shutil.copytree(f"{outputs}/grpo_lora", tmp_path / "grpo_lora")
    patch = ("import transformers; save = transformers.PreTrainedModel.save_pretrained; transformers.PreTrainedModel.save_pretrained = "
             "lambda self, folder, **kw: save(self, folder, **{**kw, 'max_shard_size': '100KB'})")
    model = json.load(open(f"{outputs}/run.json"))["arguments"]["model"]
    done = run("--output-dir", str(tmp_path), "--model", model, "--engine", "trl", "--format", "merged_4bit", "gguf", patch=patch)
    assert done.returncode == 0, done.stderr
    formats = json.load(open(tmp_path / "export" / "export.json"))["formats"]
    shards = [file for file in formats["merged_16bit"]["files"] if file.startswith("model-0")]
    assert len(shards) > 2 and "model.safetensors.index.json" in formats["merged_16bit"]["files"]
    assert formats["merged_16bit"]["weights"]["applied"] > 0.95 and set(formats["gguf"]["agreement"]) == {"q8_0"}


def test_disk_is_checked_before_anything_is_written(outputs, tmp_path):
    shutil.copytree(f"{outputs}/grpo_lora", tmp_path / "grpo_lora")
    model = json.load(open(f"{outputs}/run.json"))["arguments"]["model"]
    done = run("--output-dir", str(tmp_path), "--model", model, "--engine", "trl", "--format", "gguf",
               patch="import shutil, types; shutil.disk_usage = lambda path: types.SimpleNamespace(free=1e7)")
    last = done.stderr.splitlines()[-1]  # on some CPUs bitsandbytes has a line before it
    assert done.returncode == 2 and last.startswith(f"error: not enough disk for {tmp_path}: "), done.stderr
    assert os.listdir(tmp_path) == ["grpo_lora"]


def test_merged_weights_are_compared():
    base = torch.randn(64, 64).bfloat16()
    delta = torch.randn(64, 4) @ torch.randn(4, 64) * 0.05
    merged = [(base.float() + times * delta).bfloat16() for times in (0, 1, 2)]
    for times, weights in enumerate(merged):
        error, applied, possible = export.compare_weights(base, weights, delta)
        assert applied == pytest.approx(times, abs=0.02) and possible == pytest.approx(1, abs=0.02)
        assert (error < 2**-7) == (times == 1)
    assert export.compare_weights(base, base, delta * 1e-4)[2] < 0.1  # rounding drops it


@pytest.mark.parametrize("arguments, message", [
    (["--output-dir", "nowhere"], "error: no run.json in nowhere: name the base model with --model"),
    (["--model", "m", "--push-to-hub", "me/m"], "error: --push-to-hub needs a token that may write"),
    (["--model", "m", "--format", "gguf", "--llama-cpp", "."], "error: no ./convert_hf_to_gguf.py: name a llama.cpp"),
    (["--format", "merged_8bit"], "error: argument --format: invalid choice"),
    (["--model", "m", "--engine", "trl", "--adapter", "/"], "error: / is not a LoRA adapter"),
    (["--model", "m"], "error: --engine unsloth needs an NVIDIA GPU"),
])
def test_bad_input(arguments, message, tmp_path):
    done = run(*arguments)
    assert done.returncode == 2 and done.stderr.startswith(message) and done.stderr.count("\n") == 1, done.stderr


def test_push(outputs, tmp_path):
    token, requests, stored = "hf_" + "secret" * 6, [], {}

    class Hub(http.server.BaseHTTPRequestHandler):
        """The Hub's HTTP interface as huggingface_hub uploads, weights by git LFS; it refuses me/demo-merged_16bit."""

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((self.path, self.headers["Authorization"], body))
            answer = {"url": "http://127.0.0.1/me/demo", "commitUrl": "http://127.0.0.1/me/demo/commit/1",
                      "commitOid": "1", "errors": [], "warnings": []}
            if "/preupload/" in self.path:
                answer = {"files": [{"path": file["path"], "uploadMode": "lfs" if file["path"].endswith("tensors") else "regular",
                                     "shouldIgnore": False} for file in json.loads(body)["files"]]}
            if self.path.endswith("/info/lfs/objects/batch"):
                answer = {"transfer": "basic", "objects": [
                    {**item, "actions": {"upload": {"href": f"http://127.0.0.1:{self.server.server_port}/store/{item['oid']}"}}}
                    for item in json.loads(body)["objects"]]}
            self.send_response(403 if b'"demo-merged_16bit"' in body else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def do_PUT(self):
            stored[os.path.basename(self.path)] = self.rfile.read(int(self.headers["Content-Length"]))
            assert "Authorization" not in self.headers, "the storage gets a signed address, not the token"
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    done = run("--output-dir", outputs, "--engine", "trl", "--format", "lora", "merged_16bit", "--push-to-hub",
               "me/demo", HF_TOKEN=token, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1", HF_HOME=str(tmp_path),
               HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    assert done.returncode == 1 and done.stdout.count("pushed:") == 1
    assert "error: could not push merged_16bit to me/demo-merged_16bit: " in done.stderr.splitlines()[-1]
    assert {header for _, header, _ in requests} == {f"Bearer {token}"}
    assert requests[0][0] == "/api/repos/create" and json.loads(requests[0][2])["name"] == "demo-lora"
    commit, = (body for path, _, body in requests if path == "/api/models/me/demo-lora/commit/main")
    lines = [json.loads(line) for line in commit.splitlines()]
    sent = {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
    assert [line["value"]["path"] for line in lines if line["key"] == "lfsFile"] == ["adapter_model.safetensors"]
    sent |= {line["value"]["path"]: stored[line["value"]["oid"]] for line in lines if line["key"] == "lfsFile"}
    lora = f"{outputs}/export/lora"
    assert sent == {file: open(f"{lora}/{file}", "rb").read() for file in os.listdir(lora)}
    written = [open(os.path.join(folder, file), "rb").read() for top in (outputs, tmp_path)
               for folder, _, files in os.walk(top) for file in files]
    assert token not in done.stdout + done.stderr and not any(token.encode() in text for text in written)
