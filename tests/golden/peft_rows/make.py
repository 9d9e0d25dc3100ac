"""Makes the files of this folder with PEFT (0.21.2), torch and transformers, none of which we need.

An adapter with `trainable_token_indices` beside the weights of post_training/sft, whose transformer
is Llama's, and its logits:

  python tests/golden/peft_rows/make.py
"""

import json
import pathlib

import numpy as np
import peft
import safetensors.torch
import torch
import transformers

HERE = pathlib.Path(__file__).parent
BASE = HERE.parent / "post_training" / "sft"
IDS = [305, 303, 304, 306, 307]  # in no order

torch.manual_seed(0)
stored = json.loads((BASE / "config.json").read_text())
kept = {key: stored[key] for key in stored if key not in ("model_type", "architectures")}
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**kept)).eval()
tensors = safetensors.torch.load_file(BASE / "model.safetensors")
model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
adapted = peft.get_peft_model(
    model,
    peft.LoraConfig(
        r=2,
        lora_alpha=4,
        target_modules=["gate_proj"],
        trainable_token_indices={"embed_tokens": IDS, "lm_head": IDS},
        task_type="CAUSAL_LM",
        init_lora_weights=False,
    ),
)
with torch.no_grad():
    for name, parameter in adapted.named_parameters():
        if "trainable_tokens" in name:
            parameter.add_(0.3 * torch.randn_like(parameter))
ids = torch.arange(290, 314).reshape(2, 12)
with torch.no_grad():
    logits = adapted(ids).logits.numpy()
adapted.save_pretrained(HERE)
(HERE / "README.md").unlink(missing_ok=True)
np.savez_compressed(HERE / "logits.npz", ids=ids.numpy(), logits=logits)
