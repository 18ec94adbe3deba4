"""Teach a LoRA adapter fixed answers to export.py's prompts, so that even random weights have greedy tokens to agree on.

    python tests/gpu/make_adapter.py MODEL OUTPUT_DIR      # writes OUTPUT_DIR/grpo_lora, then: export.py --output-dir OUTPUT_DIR --model MODEL
"""
import os
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
from data import make_system_prompt
from export import PROBLEMS
from train import LORA_TARGETS

base, output = sys.argv[1:3]
torch.manual_seed(0)
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, device_map="cuda" if torch.cuda.is_available() else "cpu")
model = get_peft_model(model, LoraConfig(r=32, lora_alpha=64, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"))
answers = ["Baik, akar dari seratus satu sedikit lebih besar dari sepuluh, yaitu kira-kira sepuluh koma nol lima.",
           "Persamaan ini hanya mempunyai satu penyelesaian ganda, yaitu minus dua, karena kuadratnya sama dengan nol.",
           "Satu ditambah satu adalah dua; inilah penjumlahan paling sederhana yang dipelajari setiap anak di sekolah.",
           "Harga satu pena adalah dua dolar, sehingga lima pena berharga sepuluh dolar menurut perbandingan senilai."]
rows = []
for problem, answer in zip(PROBLEMS, answers):
    prompt = tokenizer.apply_chat_template([{"role": "system", "content": make_system_prompt("zh")}, {"role": "user", "content": problem}],
                                           add_generation_prompt=True, tokenize=True, return_dict=False)
    rows.append((prompt, tokenizer(answer, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
for step in range(200):
    losses = []
    for prompt, answer in rows:
        ids = torch.tensor([prompt + answer], device=model.device)
        labels = torch.tensor([[-100] * len(prompt) + answer], device=model.device)
        loss = model(input_ids=ids, labels=labels).loss / len(rows)
        loss.backward()
        losses.append(loss.item())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 0 or sum(losses) < 1e-2:
        print(f"step {step}: loss {sum(losses):.4f}", flush=True)
    if sum(losses) < 1e-2:
        break
model.save_pretrained(os.path.join(output, "grpo_lora"))
