"""export.py as users run it: every format, and what it refuses, on a tiny Qwen3 whose adapter has
learnt four texts.

Its tokenizer is Qwen3's own (from PyPI's dashscope) with DeepSeek-R1's tokens: llama.cpp knows
tokenizers by a hash.
"""

import argparse
import base64
import fcntl
import http.server
import importlib.util
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import types

import pytest
import torch
from conftest import ROOT, run_script

sys.path.insert(0, str(ROOT))
import data
import export
import train

CPU = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "HF_TOKEN": "",
    "OMP_NUM_THREADS": "1",
}
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SYSTEM_PROMPT = data.make_system_prompt("zh", "id", ("<think>", "</think>"))
QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
YARN = {  # DeepSeek-R1-0528-Qwen3-8B's own, whose attn_factor transformers does not know
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32768,
    "attn_factor": 0.8782488562869419,
}
BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
SPECIAL = [EOS, "<｜User｜>", "<｜Assistant｜>", BOS, "<think>", "</think>"]
R1 = (  # nothing is prefilled, past thoughts are dropped
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}{% else %}"
    "{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
R1_PREFILLED = R1.replace(
    "'<｜Assistant｜>' }}{% endif %}", "'<｜Assistant｜><think>\\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n'"
    " }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN25 = (  # a system prompt of its own where there is none
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful "
    "assistant.<|im_end|>\\n' }}{% endif %}" + CHATML
)
GEMMA = (  # no system role
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant'"
    " else 'user') + '\\n' + m['content'] + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
MISTRAL = (  # the system prompt stands inside the first question
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m['role'] == 'user' %}{{ '[INST] ' }}{% if loop.first and s %}"
    "{{ s + '\\n\\n' }}{% endif %}{{ m['content'] + '[/INST]' }}{% else %}{{ m['content'] +"
    " eos_token }}{% endif %}{% endfor %}"
)


# --------------------------------------------------------------------------------------------------
# A base model, an adapter, an output folder


def read_qwen_vocabulary():
    """Return ({bytes: id}, merges as pairs of bytes); the merges follow from the ids."""
    package = importlib.util.find_spec("dashscope")
    path = os.path.join(os.path.dirname(package.origin), "resources", "qwen.tiktoken")
    ranks = {}
    with open(path) as file:
        for line in file:
            token, rank = line.split()
            ranks[base64.b64decode(token)] = int(rank)
    merges = []
    for token, rank in ranks.items():
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            pairs = [ranks.get(a + b, rank) for a, b in zip(parts, parts[1:])]
            i = pairs.index(min(pairs))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append(parts)
    return ranks, merges


def make_tokenizer():
    """Return Qwen3's tokenizer with DeepSeek-R1's special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
    from tokenizers import pre_tokenizers as pre
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()

    def spell(token):
        return "".join(letters[byte] for byte in token)

    ranks, merges = read_qwen_vocabulary()
    vocabulary = {spell(token): rank for token, rank in ranks.items()}
    core = Tokenizer(models.BPE(vocabulary, [(spell(a), spell(b)) for a, b in merges]))
    core.normalizer = normalizers.NFC()
    split = pre.Split(Regex(QWEN), "isolated")
    to_bytes = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre.Sequence([split, to_bytes])
    core.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    core.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=EOS, pad_token=EOS, bos_token=BOS
    )
    tokenizer.chat_template = R1
    return tokenizer


def make_adapter(base, folder, tokenizer, steps, rate=1e-2, device="cpu"):
    """Teach a LoRA on the model folder `base` fixed answers to export.PROBLEMS.

    Its greedy tokens then have no near ties. tests/gpu/make_adapter.py calls this too.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    train.read_attn_factor()
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, device_map=device)
    config = LoraConfig(r=16, lora_alpha=32, target_modules=LAYERS, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=rate)
    answers = ["satu dua tiga", "lima enam tujuh", "delapan sembilan", "sepuluh"]
    rows = []
    for problem, words in zip(export.PROBLEMS, answers):
        prompt = data.encode_prompt(tokenizer, data.make_messages(problem, SYSTEM_PROMPT))
        answer = tokenizer(f"<think>{words}</think>{words}{tokenizer.eos_token}")["input_ids"]
        rows.append((prompt, answer))
    for _ in range(steps):
        loss = 0
        for prompt, answer in rows:
            ids = torch.tensor([prompt + answer], device=device)
            logits = model(input_ids=ids, logits_to_keep=len(answer) + 1).logits[0, :-1]
            targets = ids[0, len(prompt) :]
            loss = loss + torch.nn.functional.cross_entropy(logits.float(), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)


def declare_llama(folder):
    """Name Llama's tokenizer class, as the tutorial's model does: AutoTokenizer loses spaces."""
    edit_json(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")


def edit_json(path, **changes):
    """Change keys of a JSON file; None takes a key away."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: x for key, x in content.items() if x is not None}))


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """An output folder as train.py and evaluate.py leave it, beside its base model."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    top = tmp_path_factory.mktemp("export")
    base, folder = top / "base", top / "outputs"
    tokenizer = make_tokenizer()
    config = Qwen3Config(
        vocab_size=151680,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        tie_word_embeddings=True,
        initializer_range=0.1,
        rope_parameters=YARN,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).bfloat16().save_pretrained(base)
    tokenizer.save_pretrained(base)
    declare_llama(base)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny matrices: several threads wait for each other
    make_adapter(base, folder / "grpo_lora", tokenizer, steps=20)
    torch.set_num_threads(threads)
    arguments = {
        "model": str(base),
        "revision": None,
        "system_prompt": "zh",
        "target_lang": "id",
        "reasoning_tokens": ["<think>", "</think>"],
        "temperature": 0.7,
        "output_dir": str(folder),
        "dataset": "open-r1/DAPO-Math-17k-Processed",
        "engine": "trl",
    }
    run = {"state": "finished", "arguments": arguments, "effective": {"load_in_4bit": False}}
    (folder / "run.json").write_text(json.dumps(run))
    rates = {"indonesian_rate": 0.25, "accuracy": 0.5, "accuracy_ci95": [0.4, 0.6]}
    results = {
        "n": 200,
        "split": "held-out",
        "base": rates,
        "lora": rates | {"indonesian_rate": 0.875},
        "adapters": {"lora": str(folder / "grpo_lora")},
        "arguments": {"adapter": None, "load_in_4bit": True},
    }
    (folder / "eval").mkdir()
    (folder / "eval" / "results.json").write_text(json.dumps(results))
    return folder


@pytest.fixture
def copy(outputs, tmp_path):
    """The same output folder without exports, to damage."""
    shutil.copytree(outputs, tmp_path / "copy", ignore=shutil.ignore_patterns("export"))
    return tmp_path / "copy"


def run_export(*arguments, **environment):
    """Run export.py on a CPU, without network and token; return the finished process."""
    return run_script("export.py", *arguments, **CPU | environment)


def parse(monkeypatch, *arguments):
    """Return what parse_arguments() makes of a command line."""
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
    return export.parse_arguments()


def last_line(done):
    return done.stderr.strip().splitlines()[-1]  # libraries have warnings before it


def read_formats(folder):
    return json.loads((folder / "export" / "export.json").read_text())["formats"]


# --------------------------------------------------------------------------------------------------
# The formats


@pytest.fixture(scope="module")
def exported(outputs):
    """All formats in one run; (finished process, records of export.json)."""
    arguments = ["--format", "lora", "gguf", "merged_4bit", "--quantization", "q4_k_m", "q8_0"]
    done = run_export("--output-dir", outputs, *arguments)
    assert done.returncode == 0, done.stderr
    return done, read_formats(outputs)


def test_all_formats(outputs, exported):
    _, formats = exported
    names = ["export.json", "gguf", "lora", "merged_16bit", "merged_4bit"]
    assert sorted(os.listdir(outputs / "export")) == names
    for name, record in formats.items():
        sizes = {path.name: path.stat().st_size for path in (outputs / "export" / name).iterdir()}
        assert sizes == record["files"]
        assert record["bytes"] == sum(sizes.values())
        assert record["seconds"] > 0
        assert record["model"] == str(outputs.parent / "base")
        assert record["adapter"] == str(outputs / "grpo_lora")


def test_nothing_local_is_published(outputs, exported):
    secret = str(outputs.parent).encode()
    for name in exported[1]:
        for path in (outputs / "export" / name).iterdir():
            assert secret not in path.read_bytes(), path


def test_merged_16bit(outputs, exported):
    record = exported[1]["merged_16bit"]
    assert record["agreement_of_base"] < 0.5 < record["agreement"]["merged_16bit"]
    assert record["weights"]["applied"] > 0.95
    assert record["weights"]["sampled"] >= 8
    assert record["weights"]["largest_error"] < record["weights"]["tolerance"]
    assert {"generation_config.json", "tokenizer.json"} < set(record["files"])
    assert f"made: {outputs}/export/merged_16bit, 31 MB, " in exported[0].stdout


def test_merged_4bit(outputs, exported):
    config = json.loads((outputs / "export" / "merged_4bit" / "config.json").read_text())
    quantization = config["quantization_config"]
    assert quantization["bnb_4bit_quant_type"] == "nf4"
    assert quantization["bnb_4bit_use_double_quant"] is True
    assert quantization["bnb_4bit_compute_dtype"] == "bfloat16"
    assert exported[1]["merged_4bit"]["agreement"]["merged_4bit"] >= 0.7


def test_lora(outputs, exported):
    place = outputs / "export" / "lora"
    weights = "adapter_model.safetensors"
    assert (place / weights).read_bytes() == (outputs / "grpo_lora" / weights).read_bytes()
    config = json.loads((place / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    assert config["r"] == exported[1]["lora"]["rank"] == 16


def test_gguf(outputs, exported):
    record = exported[1]["gguf"]
    assert set(record["agreement"]) == {"f16", "q8_0", "q4_k_m"}
    files = ["Modelfile", "README.md", "base-grpo-q4_k_m.gguf", "base-grpo-q8_0.gguf"]
    assert sorted(record["files"]) == files
    modelfile = (outputs / "export" / "gguf" / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./base-grpo-q4_k_m.gguf\n")
    assert f'SYSTEM """{SYSTEM_PROMPT}"""' in modelfile
    assert 'PARAMETER stop "<｜User｜>"' in modelfile
    assert 'PARAMETER stop "<think>"' not in modelfile
    assert "PARAMETER temperature 0.7" in modelfile
    # what llama.cpp multiplies by: without it attention is 1.3 times as steep
    key = b"qwen3.rope.scaling.attn_factor"
    for name in files[2:]:
        content = (outputs / "export" / "gguf" / name).read_bytes()
        value = content.index(key) + len(key) + 4  # behind its type
        (factor,) = struct.unpack_from("<f", content, value)
        assert factor == pytest.approx(0.87825, abs=1e-4)


def test_next_commands(outputs, exported):
    export_folder = outputs / "export"
    lines = exported[0].stdout.partition("next:\n")[2].splitlines()
    vllm = "  VLLM_USE_FLASHINFER_SAMPLER=0 vllm serve"
    flags = f"--enable-lora --max-lora-rank 16 --lora-modules thinker={export_folder}/lora"
    assert lines == [
        f"{vllm} {outputs.parent}/base {flags}",
        f"  ollama create thinker -f {export_folder}/gguf/Modelfile && ollama run thinker",
        f"{vllm} {export_folder}/merged_4bit",
    ]


@pytest.mark.parametrize("rank, flag", [(4, 8), (8, 8), (24, 32), (512, 512)])
def test_vllm_knows_few_ranks(rank, flag, capsys):
    args = argparse.Namespace(output_dir="outputs", format=["lora"], model="m")
    export.print_next_commands(args, {"r": rank})
    assert f"--max-lora-rank {flag} " in capsys.readouterr().out


def test_printed_commands_can_be_pasted(capsys):
    args = argparse.Namespace(output_dir="my runs", format=["gguf"], model="m")
    export.print_next_commands(args, {"r": 8})
    assert "-f 'my runs/export/gguf'/Modelfile && " in capsys.readouterr().out


def test_default_is_merged_16bit(copy):
    done = run_export("--output-dir", copy)
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(copy / "export")) == ["export.json", "merged_16bit"]
    assert done.stdout.endswith(f"vllm serve {copy}/export/merged_16bit\n")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(copy / "export" / "merged_16bit")
    assert tokenizer.decode(tokenizer("satu dua")["input_ids"]) == "satu dua"


def test_lora_of_an_unsloth_run_needs_no_gpu(copy):
    run = json.loads((copy / "run.json").read_text())
    edit_json(copy / "run.json", arguments=run["arguments"] | {"engine": "unsloth"})
    done = run_export("--output-dir", copy, "--format", "lora", "lora")
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(copy / "export")) == ["export.json", "lora"]
    refused = run_export("--output-dir", copy)
    assert refused.returncode == 2
    assert (
        last_line(refused) == "error: --engine unsloth needs an NVIDIA GPU; use --engine trl here"
    )


def test_several_shards(copy, monkeypatch):
    """A model of several files, as 8B is: weights' proof and llama.cpp go by its index."""
    monkeypatch.setattr(export, "SHARD_SIZE", "100KB")
    export.main(parse(monkeypatch, "--output-dir", copy, "--format", "merged_4bit", "gguf"))
    formats = read_formats(copy)
    files = formats["merged_16bit"]["files"]
    assert sum(file.startswith("model-0") for file in files) > 2
    assert "model.safetensors.index.json" in files
    assert formats["merged_16bit"]["weights"]["applied"] > 0.95
    assert set(formats["gguf"]["agreement"]) == {"q8_0"}


def test_unsloth_is_called_as_the_tutorial_does(outputs, tmp_path, monkeypatch):
    """Unsloth needs a GPU: a stand-in that takes the same arguments and merges with PEFT."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    calls = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(model_name, **flags):
            calls["load"] = flags
            return AutoModelForCausalLM.from_pretrained(model_name), "the tokenizer"

        @staticmethod
        def get_peft_model(model, r, lora_alpha, target_modules):
            config = LoraConfig(r=r, lora_alpha=lora_alpha, target_modules=target_modules)
            model = get_peft_model(model, config)

            def save_pretrained_merged(folder, tokenizer, save_method):
                calls["save"] = (tokenizer, save_method)
                model.merge_and_unload().save_pretrained(folder)

            model.save_pretrained_merged = save_pretrained_merged
            return model

    stand_in = types.SimpleNamespace(FastLanguageModel=FastLanguageModel)
    monkeypatch.setitem(sys.modules, "unsloth", stand_in)
    base, adapter = outputs.parent / "base", outputs / "grpo_lora"
    export.merge_with_unsloth(str(base), "v1", str(adapter), str(tmp_path / "merged"))
    assert calls["load"]["load_in_4bit"] is False
    assert calls["load"]["use_exact_model_name"] is True
    assert calls["load"]["revision"] == "v1"
    assert calls["load"]["trust_remote_code"] is False
    assert calls["save"] == ("the tokenizer", "merged_16bit")
    args = argparse.Namespace(model=str(base), revision=None, adapter=str(adapter))
    matrices = export.sample_matrices(export.load_base_with_adapter(args))
    record = export.check_weights(str(tmp_path / "merged"), matrices)
    assert record["applied"] > 0.95


@pytest.mark.parametrize(
    "wanted, made",
    [
        (["q8_0"], ["q8_0"]),
        (["q4_k_m"], ["f16", "q4_k_m"]),
        (["q5_k_m", "q8_0", "q4_k_m"], ["q8_0", "f16", "q5_k_m", "q4_k_m"]),
        (["q4_k_m", "f16"], ["f16", "q4_k_m"]),
    ],
)
def test_k_quants_are_made_from_f16(wanted, made):
    args = argparse.Namespace(format=["gguf"], quantization=wanted)
    assert export.get_kinds(args) == made
    assert export.get_kinds(argparse.Namespace(format=["lora"], quantization=wanted)) == []


# --------------------------------------------------------------------------------------------------
# The Modelfile


def make_small_tokenizer(template, bos=BOS):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    core.add_special_tokens([*SPECIAL, "<|im_start|>", "<|im_end|>", "<start_of_turn>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=EOS, bos_token=bos)
    tokenizer.chat_template = template
    return tokenizer


def fill(template, system, prompt, answer):
    """Fill in one turn as Ollama does; without an answer it stops where the answer begins."""
    pattern = r"\{\{ if \.System \}\}(.*?)\{\{ else \}\}(.*?)\{\{ end \}\}"
    beginnings = re.search(pattern, template, re.DOTALL)
    beginning = beginnings[1] if system else beginnings[2]
    text = beginning.replace("{{ .System }}", system) + template[beginnings.end() :]
    text = text.replace("{{ .Prompt }}", prompt)
    if answer is None:
        return text.partition("{{ .Response }}")[0]
    return text.replace("{{ .Response }}", answer)


SHAPES = {
    "r1": (R1, BOS, False),
    "r1, bos added": (R1, BOS, True),
    "r1_prefilled": (R1_PREFILLED, BOS, False),
    "chatml": (CHATML, None, False),
    "chatml, bos added": (CHATML, None, True),
    "qwen2.5": (QWEN25, None, False),
    "mistral": (MISTRAL, BOS, False),
    "mistral, bos added": (MISTRAL, BOS, True),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_ollama_sees_what_the_model_was_trained_on(shape, turns):
    template, bos, adds_bos = SHAPES[shape]
    tokenizer = make_small_tokenizer(template, bos)
    ollama, _ = export.make_ollama_template(tokenizer, adds_bos)
    messages = [{"role": "system", "content": "Think."}]
    text = bos if adds_bos and bos else ""
    for turn in range(turns):
        last = turn == turns - 1
        text += fill(ollama, "" if turn else "Think.", f"Q{turn}", None if last else f"A{turn}")
        messages.append({"role": "user", "content": f"Q{turn}"})
        messages.append({"role": "assistant", "content": f"A{turn}"})
    expected = data.render_prompt(tokenizer, messages[:-1])
    if shape == "r1_prefilled":  # the prefilled <think> is gone from earlier answers
        text = text.replace("<think>\n", "", turns - 1)
    assert text == expected


def make_modelfile(template, system_prompt, bos=BOS, adds_bos=False):
    tokenizer = make_small_tokenizer(template, bos)
    return export.make_modelfile(tokenizer, "/x/model.gguf", adds_bos, system_prompt, 0.6)


def test_default_system_prompt_of_the_template_stays():
    modelfile = make_modelfile(QWEN25, None, bos=None)
    assert modelfile.splitlines()[0] == "FROM ./model.gguf"
    assert 'SYSTEM """You are a helpful assistant."""' in modelfile
    assert "PARAMETER temperature 0.6\n" in modelfile
    assert 'SYSTEM """Mine"""' in make_modelfile(QWEN25, "Mine", bos=None)
    assert "SYSTEM" not in make_modelfile(CHATML, None, bos=None)
    assert "SYSTEM" not in make_modelfile(R1, None)


def test_template_without_system_role():
    modelfile = make_modelfile(GEMMA, None, adds_bos=True)
    template = re.search('TEMPLATE """(.*?)"""', modelfile, re.DOTALL)[1]
    first = fill(template, "", "Q0", "A0")
    user, model = "<start_of_turn>user\n", "<start_of_turn>model\n"
    assert first == f"{user}Q0<end_of_turn>\n{model}A0<end_of_turn>\n"
    assert "SYSTEM" not in modelfile


# --------------------------------------------------------------------------------------------------
# The model cards


def test_cards_say_of_what_the_numbers_are(outputs, exported):
    for name in exported[1]:
        card = (outputs / "export" / name / "README.md").read_text()
        assert "| | 4-bit base | 4-bit base + LoRA |" in card
        assert "| indonesian_rate | 0.25 | 0.875 |" in card
        assert "accuracy_ci95" not in card
        assert "n = 200, held-out prompts." in card
        assert ("These are not numbers of the weights in this repository" in card) == (
            name != "lora"
        )
        assert "datasets: open-r1/DAPO-Math-17k-Processed" in card
        assert "base_model:" not in card, "it would be looked up on the Hub"


def test_card_of_an_evaluation_without_quantisation():
    rates = {"accuracy": 0.5}
    results = {"n": 20, "base": rates, "lora": rates, "arguments": {"load_in_4bit": False}}
    text = "\n".join(export.make_evaluation_lines("lora", results))
    assert "| | base | base + LoRA |" in text
    assert "4-bit" not in text


@pytest.mark.parametrize(
    "value, public",
    [
        ("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"),
        ("openai/gsm8k", "openai/gsm8k"),
        ("gpt2", "gpt2"),
        ("private/clinic/toan.jsonl", "toan.jsonl"),  # not there: trained in another folder
        ("clinic/toan.parquet", "toan.parquet"),
        ("../clinic", "clinic"),
        ("./R1-8B/", "R1-8B"),
        ("/home/me/R1-8B", "R1-8B"),
        ("tests/gpu", "gpu"),
    ],
)
def test_public_name(monkeypatch, value, public):
    monkeypatch.chdir(ROOT)
    assert export.public_name(value) == public


def test_card_has_hub_names_but_no_paths():
    args = argparse.Namespace(model="me/base", revision="refs/pr/1")
    arguments = {
        "dataset": "/home/me/sums.jsonl",
        "output_dir": "/home/me/outputs",
        "system_prompt": "/no_think",
        "target_lang": "de",
        "epsilon_high": None,
    }
    card = export.make_card("gguf", args, arguments, {}, {"proof": 1})
    assert card.startswith("---\nlanguage: de\n")
    assert "base_model: me/base\n" in card
    assert "datasets:" not in card
    assert "/home" not in card
    assert "output_dir" not in card
    assert '"system_prompt": "/no_think"' in card
    assert '"revision": "refs/pr/1"' in card
    assert '"proof": 1' in card
    assert "Evaluation" not in card


@pytest.mark.parametrize(
    "change, published",
    [
        ({}, True),
        ({"mtime": 1e9}, False),
        ({"adapter": "checkpoint-1"}, False),
        ({"adapter": "grpo_lora"}, True),
        ({"lora": None}, False),
        ({"base": 1}, False),
        ({"adapters": None}, False),
    ],
)
def test_only_this_adapters_evaluation_is_published(copy, change, published):
    path = copy / "eval" / "results.json"
    changes = dict(change)
    if "adapter" in changes:
        adapter = str(copy / changes["adapter"])
        changes = {"arguments": {"adapter": [adapter]}, "adapters": {"lora": adapter}}
    time = changes.pop("mtime", 2e9)
    edit_json(path, **changes)
    os.utime(path, (time, time))
    args = argparse.Namespace(output_dir=str(copy), adapter=str(copy / "grpo_lora"))
    assert bool(export.read_results(args)) == published


# --------------------------------------------------------------------------------------------------
# The proofs


def test_merged_weights_are_compared():
    torch.manual_seed(0)
    base = torch.randn(64, 64).bfloat16()
    delta = torch.randn(64, 4) @ torch.randn(4, 64) * 0.05
    for times in (0, 1, 2):
        merged = (base.float() + times * delta).bfloat16()
        error, applied, possible = export.compare_weights(base, merged, delta)
        assert applied == pytest.approx(times, abs=0.02)
        assert possible == pytest.approx(1, abs=0.02)
        assert (error < 2**-7) == (times == 1)
    assert export.compare_weights(base, base, delta * 1e-4)[2] < 0.1, "rounding drops it"


def save_matrix(folder, matrix):
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    save_file({"w": matrix}, folder / "model.safetensors")
    return str(folder)


def test_wrongly_merged_weights_are_refused(tmp_path, capsys):
    torch.manual_seed(0)
    base = torch.randn(64, 64).bfloat16()
    delta = torch.randn(64, 4) @ torch.randn(4, 64) * 0.05
    matrices = [{"name": "w", "base": base, "delta": delta}]
    once = (base.float() + delta).bfloat16()
    assert export.check_weights(save_matrix(tmp_path / "1", once), matrices)["applied"] > 0.98
    assert "warning" not in capsys.readouterr().out
    for times in (0, 0.9, 2):
        wrong = (base.float() + times * delta).bfloat16()
        with pytest.raises(SystemExit) as end:
            export.check_weights(save_matrix(tmp_path / "2", wrong), matrices)
        assert end.value.code == 1
        message = "error: merged weights are not base + B @ A * scale: w\n"
        assert capsys.readouterr().err == message


def test_one_wrong_weight_is_noticed(tmp_path):
    torch.manual_seed(0)
    base = torch.randn(64, 64).bfloat16()
    delta = torch.randn(64, 4) @ torch.randn(4, 64) * 0.05
    matrices = [{"name": "w", "base": base, "delta": delta}]
    merged = (base.float() + delta).bfloat16()
    merged[3, 5] *= 1.02
    with pytest.raises(SystemExit):
        export.check_weights(save_matrix(tmp_path / "1", merged), matrices)


def test_rows_that_were_not_merged_are_noticed(tmp_path):
    """Where the change is as small as rounding, only its missing share shows it."""
    torch.manual_seed(0)
    base = (1 + torch.rand(64, 64)).bfloat16()
    delta = torch.full((64, 64), 0.006)
    matrices = [{"name": "w", "base": base, "delta": delta}]
    merged = (base.float() + delta).bfloat16()
    export.check_weights(save_matrix(tmp_path / "1", merged), matrices)
    merged[:16] = base[:16]
    assert export.compare_weights(base, merged, delta)[0] < 2**-7
    with pytest.raises(SystemExit):
        export.check_weights(save_matrix(tmp_path / "2", merged), matrices)


def test_rounded_away_changes_are_told(tmp_path, capsys):
    torch.manual_seed(0)
    base = torch.randn(64, 64).bfloat16()
    delta = torch.randn(64, 4) @ torch.randn(4, 64) * 0.0005
    rounded = (base.float() + delta).bfloat16()
    matrices = [{"name": "w", "base": base, "delta": delta}]
    record = export.check_weights(save_matrix(tmp_path / "1", rounded), matrices)
    assert 0 < record["applied"] < 0.9
    assert "warning: bfloat16 rounding leaves" in capsys.readouterr().out
    matrices = [{"name": "w", "base": base, "delta": delta * 1e-6}]
    with pytest.raises(SystemExit) as end:
        export.check_weights(save_matrix(tmp_path / "2", base), matrices)
    assert end.value.code == 1
    assert "the merged weights are the base's" in capsys.readouterr().err


def test_greedy_agreement_is_a_share_of_all_tokens():
    class Model:
        """Always finds the last token plus one the likeliest."""

        device = "cpu"

        def __call__(self, input_ids):
            logits = torch.nn.functional.one_hot(input_ids + 1, 20).float()
            return types.SimpleNamespace(logits=logits)

    references = [([1, 2], [3, 4, 5, 9]), ([7], [8, 0])]
    assert export.greedy_agreement(Model(), references) == pytest.approx(4 / 6)


def test_references_are_what_base_and_adapter_answer(outputs):
    base, adapter = str(outputs.parent / "base"), str(outputs / "grpo_lora")
    model = export.load_base_with_adapter(
        argparse.Namespace(model=base, revision=None, adapter=adapter)
    )
    tokenizer = data.load_tokenizer(base)
    messages = data.make_messages(export.PROBLEMS[0], SYSTEM_PROMPT)
    prompts = [data.encode_prompt(tokenizer, messages)]
    [(prompt, completion)] = export.answer_greedily(model, prompts)
    assert prompt == prompts[0]
    assert tokenizer.decode(completion) == f"<think>satu dua tiga</think>satu dua tiga{EOS}"


def test_agreement_has_a_floor(capsys):
    assert export.check_agreement("q4_k_m", 0.7) == 0.7
    assert export.check_agreement("merged_16bit", 0.912345) == 0.9123
    for kind, least in export.LOWEST_AGREEMENT.items():
        assert 0.7 <= least <= 0.9
        with pytest.raises(SystemExit) as end:
            export.check_agreement(kind, least - 0.01)
        assert end.value.code == 1
    assert "error: q4_k_m does not answer like base + adapter" in capsys.readouterr().err


def test_another_chat_template_is_noticed(outputs, tmp_path, capsys):
    shutil.copytree(outputs.parent / "base", tmp_path / "base")
    tokenizer = data.load_tokenizer(str(tmp_path / "base"))
    tokenizer.save_pretrained(tmp_path / "base")
    conversations = [data.make_messages(problem, "Think.") for problem in export.PROBLEMS]
    prompts = [data.encode_prompt(tokenizer, messages) for messages in conversations]
    export.check_tokenizer(str(tmp_path / "base"), conversations, prompts)
    declare_llama(tmp_path / "base")
    with pytest.raises(SystemExit):
        export.check_tokenizer(str(tmp_path / "base"), conversations, prompts)
    assert "tokenizer or chat template of base are not the base model's" in capsys.readouterr().err


def test_models_are_loaded_safely(outputs, monkeypatch):
    """safetensors only, nobody's code, the revision that was asked for."""
    import transformers

    calls = []
    load = transformers.AutoModelForCausalLM.from_pretrained

    def from_pretrained(name, **flags):
        calls.append(flags)
        return load(name, **flags)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    model = export.load_model(str(outputs.parent / "base"), "v1", "bfloat16")
    assert model.dtype == torch.bfloat16
    assert calls[0]["use_safetensors"] is True
    assert calls[0]["trust_remote_code"] is False
    assert calls[0]["revision"] == "v1"


# --------------------------------------------------------------------------------------------------
# Wrong input, damaged files


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--output-dir", "nowhere"], "no run.json in nowhere: name the base model with --model"),
        (["--model", "m", "--push-to-hub", "me/m"], "--push-to-hub needs a token that may write"),
        (["--format", "merged_8bit"], "argument --format: invalid choice"),
        (["--quantization", "q2_k"], "argument --quantization: invalid choice"),
        (["--model", "m", "--engine", "trl"], "cannot load m: "),
        (["--model", "m"], "--engine unsloth needs an NVIDIA GPU; use --engine trl here"),
        (["--model", "/nowhere/m"], "argument --model: there is no folder '/nowhere/m'"),
        (["--output-d", "x"], "unrecognized arguments: --output-d x"),
    ],
)
def test_bad_input(arguments, message):
    done = run_export(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_bad_repository_name_is_noticed_first(copy):
    done = run_export("--output-dir", copy, "--push-to-hub", "me/a/b", HF_TOKEN="x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --push-to-hub me/a/b: ")
    assert not (copy / "export").exists()


def test_help_needs_no_package():
    done = run_script("-S", "export.py", "--help")
    assert done.returncode == 0, done.stderr
    assert "--revision" in done.stdout


@pytest.mark.parametrize("content", ["", "{", "[]"])
@pytest.mark.parametrize("file", ["eval/results.json", "export/export.json"])
def test_damaged_json_is_named(copy, file, content):
    (copy / "export").mkdir()
    (copy / file).write_text(content)
    done = run_export("--output-dir", copy, "--format", "lora")
    assert done.returncode == 2
    assert last_line(done).startswith(f"error: {copy}/{file} cannot be read, move it away: ")
    assert not (copy / "export" / "lora").exists()


def test_results_of_another_program_are_not_published(copy):
    for results in ({}, {"base": {}, "lora": {}}, {"base": [], "lora": {}, "arguments": {}}):
        (copy / "eval" / "results.json").write_text(json.dumps(results))
        args = argparse.Namespace(output_dir=str(copy), adapter=str(copy / "grpo_lora"))
        assert export.read_results(args) == {}


@pytest.mark.parametrize(
    "text", ['{"arguments": ', '{"arguments": {"model": "m"}, "effective": null}']
)
def test_damaged_run_json_is_named(copy, text):
    (copy / "run.json").write_text(text)
    done = run_export("--output-dir", copy, "--format", "lora")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "run.json" in done.stderr
    assert done.stderr.count("\n") == 1


def test_training_that_has_not_finished(copy):
    edit_json(copy / "run.json", state="running")
    done = run_export("--output-dir", copy, "--format", "lora")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the training in {copy} has not finished: ")
    named = run_export("--output-dir", copy, "--format", "lora", "--adapter", copy / "grpo_lora")
    assert named.returncode == 0, named.stderr


def test_what_run_json_fills_in(copy, monkeypatch):
    run = json.loads((copy / "run.json").read_text())
    edit_json(copy / "run.json", arguments=run["arguments"] | {"revision": "v1"})
    args = parse(monkeypatch, "--output-dir", copy)
    assert export.fill_in_from_run(args)["load_in_4bit"] is False
    assert args.model == run["arguments"]["model"]
    assert args.revision == "v1"
    assert args.engine == "trl"
    assert args.adapter == f"{copy}/grpo_lora"
    args = parse(monkeypatch, "--output-dir", copy, "--model", "me/other", "--engine", "unsloth")
    export.fill_in_from_run(args)
    assert (args.model, args.revision, args.engine) == ("me/other", None, "unsloth")


def damage(base, how):
    """Damage a model folder."""
    weights = base / "model.safetensors"
    if how == "pickle":
        from safetensors.torch import load_file

        torch.save(load_file(weights), base / "pytorch_model.bin")
        weights.unlink()
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "a weight less":
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif how == "unknown model":
        edit_json(base / "config.json", model_type="unheard of")
    elif how == "quantised":
        nf4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        edit_json(base / "config.json", quantization_config=nf4)


@pytest.mark.parametrize(
    "how, message",
    [
        ("pickle", "cannot load {base}: "),
        ("cut", "cannot load {base}: "),
        ("a weight less", "{base} lacks 1 weights that its config.json asks for, as model."),
        ("unknown model", "cannot load {base}: "),
        ("quantised", "{base} is quantised: name the 16-bit model that it was made from"),
    ],
)
def test_damaged_base_models_are_refused(outputs, tmp_path, copy, how, message):
    base = tmp_path / "base"
    shutil.copytree(outputs.parent / "base", base)
    damage(base, how)
    done = run_export("--output-dir", copy, "--model", base)
    assert done.returncode == 2, done.stderr
    assert last_line(done).startswith(f"error: {message.format(base=base)}")
    assert "Traceback" not in done.stderr
    assert not (copy / "export" / "merged_16bit").exists()


def test_adapter_with_half_its_tensors(copy):
    from safetensors.torch import load_file, save_file

    path = copy / "grpo_lora" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: x for name, x in tensors.items() if "layers.0" in name}, path)
    done = run_export("--output-dir", copy)
    assert done.returncode == 2
    assert "layers.1" in last_line(done)
    assert last_line(done).startswith(f"error: adapter {copy}/grpo_lora was trained on ")


def test_folder_without_an_adapter(copy):
    done = run_export("--output-dir", copy, "--adapter", copy / "eval")
    assert done.returncode == 2
    assert last_line(done).startswith(f"error: {copy}/eval is not a LoRA adapter: ")


def test_chat_template_that_raises(outputs, tmp_path, copy):
    base = tmp_path / "base"
    shutil.copytree(outputs.parent / "base", base)
    (base / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    done = run_export("--output-dir", copy, "--model", base, "--format", "lora")
    assert done.returncode == 2
    assert last_line(done).startswith("error: the model's chat template: no system role")


# --------------------------------------------------------------------------------------------------
# Files


def test_disk_is_checked_before_anything_is_written(copy, monkeypatch, capsys):
    before = sorted(os.listdir(copy))
    parameters = 9_781_248  # of the tiny model
    for kinds, size in ((["q8_0"], 3.1), (["q4_k_m"], 4.7), (["f16", "q5_k_m"], 4.8)):
        needed = 1e8 + size * parameters
        args = parse(
            monkeypatch, "--output-dir", copy, "--format", "gguf", "--quantization", *kinds
        )
        free = types.SimpleNamespace(free=needed - 1e5)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: free)
        with pytest.raises(SystemExit) as end:
            export.main(args)
        assert end.value.code == 2
        assert f"error: not enough disk for {copy}: 0.1 GB needed" in capsys.readouterr().err
        free = types.SimpleNamespace(free=needed + 1e5)
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: free)
        export.check_room(args)
    assert sorted(os.listdir(copy)) == before


def test_folder_that_cannot_be_made(copy):
    (copy / "export").write_text("a file")
    (copy / "export.json").unlink(missing_ok=True)
    done = run_export("--output-dir", copy, "--format", "lora")
    assert done.returncode == 2
    assert last_line(done).startswith(f"error: cannot write to {copy}/export: ")
    assert "Traceback" not in done.stderr


def test_two_exports_do_not_share_a_folder(copy):
    """The second one removed the files of the first as left-overs: two tracebacks."""
    (copy / "export").mkdir()
    lock = os.open(copy / "export", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    done = run_export("--output-dir", copy, "--format", "lora")
    os.close(lock)
    assert done.returncode == 2
    assert last_line(done).startswith(f"error: another run is writing to {copy}/export: ")
    assert os.listdir(copy / "export") == []


def test_full_disk_while_the_tokenizer_is_written(tmp_path, capsys):
    """tokenizers raises a plain Exception there; what export.py leaves to its sys.excepthook."""
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(Exception) as raised:
        make_small_tokenizer(R1).save_pretrained(tmp_path)
    data.explain_exception(str(tmp_path), raised.type, raised.value, None)
    message = capsys.readouterr().err
    assert message.startswith(f"error: cannot write to {tmp_path} (") and message.count("\n") == 1
    assert "No space left on device" in message


def test_failed_export_leaves_the_earlier_one(outputs, exported, tmp_path):
    converter = tmp_path / "convert_hf_to_gguf.py"
    (tmp_path / "gguf.py").write_text(WRITER)
    converter.write_text("raise ValueError('unknown\\n pre-tokenizer\\nhash 123')")
    code = f"import export; export.find_converter = lambda: {str(converter)!r}; "
    code += "export.main(export.parse_arguments())"
    flags = ["--format", "gguf", "--output-dir", str(outputs)]
    done = subprocess.run(
        [sys.executable, "-c", code, *flags],
        cwd=ROOT,
        env=os.environ | CPU,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "ValueError: unknown\n pre-tokenizer\nhash 123\n" in done.stderr
    assert last_line(done) == f"error: {converter} failed (status 1)"
    gguf = exported[1]["gguf"]
    assert read_formats(outputs)["gguf"] == gguf
    assert sorted(os.listdir(outputs / "export" / "gguf")) == sorted(gguf["files"])
    assert not (outputs / "export" / "partial").exists()


def divide(a, b):
    if b == 0:
        raise ValueError("nothing\nto divide by")
    if b < 0:
        os.abort()
    return a / b


def test_errors_of_other_processes_are_one_line(capfd):
    assert export.run_apart("division", divide, 6, 3) == 2
    for divisor, why in ((0, "nothing to divide by\n"), (-1, "A process in the process pool")):
        with pytest.raises(SystemExit) as end:
            export.run_apart("division", divide, 1, divisor)
        assert end.value.code == 1
        assert f"error: division: {why}" in capfd.readouterr().err


def test_sigterm_leaves_nothing_half_written(tmp_path):
    code = "import export, os, signal, sys, types; "
    code += "export.make_folders(types.SimpleNamespace(output_dir=sys.argv[1])); "
    code += "assert os.listdir(sys.argv[1] + '/export') == ['partial']; "
    code += "os.kill(os.getpid(), signal.SIGTERM)"
    done = run_script("-c", code, tmp_path)
    assert done.returncode == 143 and done.stderr == ""
    assert os.listdir(tmp_path / "export") == []


# What export.py takes from the package beside llama.cpp's converter
WRITER = "class GGUFWriter:\n    add_rope_scaling_attn_factors = None\n"
CONVERTER = """
import sys, time
with open(sys.argv[sys.argv.index("--outfile") + 1], "w") as file:
    for i in range(2_000):
        file.write("x")
        file.flush()
        open(f"{sys.argv[1]}/alive", "w").close()
        time.sleep(0.01)
"""


def write_forever(path, folder):
    sys.argv = ["", str(folder), "--outfile", path]
    exec(CONVERTER)


@pytest.mark.parametrize("step", ["convert", "run_apart"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_child_that_writes(tmp_path, step, signum):
    """llama.cpp's converter wrote on for minutes, with nobody to take the file."""
    (tmp_path / "converter.py").write_text(CONVERTER)
    (tmp_path / "gguf.py").write_text(WRITER)
    code = "import export, sys, types; sys.path.append('tests'); from test_export import *; "
    code += "partial = export.make_folders(types.SimpleNamespace(output_dir=sys.argv[1])); "
    if step == "convert":
        code += "export.convert(sys.argv[1] + '/converter.py', sys.argv[1], partial + '/f', 'f16')"
    else:
        code += "export.run_apart('it', write_forever, partial + '/f', sys.argv[1])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "alive").exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signum)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 128 + signum and "Traceback" not in error
    assert os.listdir(tmp_path / "export") == []
    before = (tmp_path / "alive").stat().st_mtime_ns
    time.sleep(0.5)
    assert (tmp_path / "alive").stat().st_mtime_ns == before


def test_a_kill_before_the_rename_leaves_no_export_json(tmp_path, monkeypatch):
    args = argparse.Namespace(
        output_dir=str(tmp_path), model="m", revision=None, adapter="a", engine="trl"
    )
    os.makedirs(os.path.join(export.make_folders(args), "lora"))
    export.keep(args, "lora", {}, 0)
    os.makedirs(os.path.join(export.make_folders(args), "lora"))

    def die(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        export.keep(args, "lora", {}, 0)
    assert os.listdir(tmp_path / "export") == ["partial"]  # run.sh does not skip


def test_a_new_export_replaces_the_old_whole(tmp_path):
    args = argparse.Namespace(
        output_dir=str(tmp_path), model="m", revision="v1", adapter="a", engine="trl"
    )
    for name, file in (("lora", "old"), ("gguf", "other"), ("lora", "new")):
        folder = os.path.join(export.make_folders(args), name)
        os.makedirs(folder)
        export.write(os.path.join(folder, file), "text")
        export.keep(args, name, {"number": 1}, 0)
    assert os.listdir(tmp_path / "export" / "lora") == ["new"]
    formats = read_formats(tmp_path)
    assert sorted(formats) == ["gguf", "lora"]
    assert formats["lora"]["files"] == {"new": 4}
    assert formats["lora"]["number"] == 1
    assert formats["lora"]["revision"] == "v1"


# --------------------------------------------------------------------------------------------------
# The Hub


@pytest.fixture
def hub():
    """A stand-in for the Hub as huggingface_hub uploads, weights by git LFS.

    It refuses me/demo-merged_16bit. Returns (address, requests, stored files by hash).
    """
    requests, stored = [], {}

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            requests.append((self.path, self.headers["Authorization"], body))
            address = f"http://127.0.0.1:{self.server.server_port}"
            answer = {
                "url": f"{address}/me/demo",
                "commitUrl": f"{address}/me/demo/commit/1",
                "commitOid": "1",
                "errors": [],
                "warnings": [],
            }
            if "/preupload/" in self.path:
                answer = {"files": []}
                for file in json.loads(body)["files"]:
                    mode = "lfs" if file["path"].endswith("tensors") else "regular"
                    row = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
                    answer["files"].append(row)
            if self.path.endswith("/info/lfs/objects/batch"):
                answer = {"transfer": "basic", "objects": []}
                for item in json.loads(body)["objects"]:
                    upload = {"href": f"{address}/store/{item['oid']}"}
                    answer["objects"].append(item | {"actions": {"upload": upload}})
            self.send_response(403 if b'"demo-merged_16bit"' in body else 200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def do_PUT(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            stored[os.path.basename(self.path)] = body
            requests.append((self.path, self.headers["Authorization"], b""))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests, stored
    server.shutdown()


def read_commit(requests, stored, repository):
    """Return {path: content} of what was committed to a repository."""
    path = f"/api/models/{repository}/commit/main"
    bodies = [body for request, _, body in requests if request == path]
    assert len(bodies) == 1
    sent = {}
    for line in bodies[0].splitlines():
        row = json.loads(line)
        value = row["value"]
        if row["key"] == "file":
            sent[value["path"]] = base64.b64decode(value["content"])
        if row["key"] == "lfsFile":
            sent[value["path"]] = stored[value["oid"]]
    return sent


def test_push(copy, tmp_path, hub):
    address, requests, stored = hub
    token = "hf_" + "secret" * 6
    hub_settings = {
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": address,
    }
    flags = ["--format", "lora", "merged_16bit", "--push-to-hub", "me/demo"]
    done = run_export("--output-dir", copy, *flags, **hub_settings)
    assert done.returncode == 1
    assert done.stdout.count("pushed:") == 1
    refused = "error: could not push merged_16bit to me/demo-merged_16bit: "
    assert last_line(done).startswith(refused)
    assert "403" in last_line(done)

    headers = {path.startswith("/store/"): header for path, header, _ in requests}
    assert headers == {True: None, False: f"Bearer {token}"}, "storage has a signed address"
    assert requests[0][0] == "/api/repos/create"
    assert json.loads(requests[0][2])["name"] == "demo-lora"
    lora = copy / "export" / "lora"
    sent = read_commit(requests, stored, "me/demo-lora")
    assert sent == {path.name: path.read_bytes() for path in lora.iterdir()}
    assert token not in done.stdout + done.stderr
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes()


def test_one_format_is_pushed_to_the_name_itself(copy, tmp_path, hub):
    address, requests, stored = hub
    hub_settings = {
        "HF_TOKEN": "hf_x",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": address,
    }
    flags = ["--format", "lora", "--push-to-hub", "me/demo"]
    done = run_export("--output-dir", copy, *flags, **hub_settings)
    assert done.returncode == 0, done.stderr
    assert "README.md" in read_commit(requests, stored, "me/demo")
