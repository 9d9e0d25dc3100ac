"""Transformers' side of `decoding.py`: the same weights, the same prompts, `generate`."""

import time

import torch
from transformers import Emu3ForCausalLM


class Theirs:
    """The side of transformers."""

    def __init__(self, folder):
        """`folder` has the exported model."""
        self.model = Emu3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(self, tokens: list[list[int]]) -> list[list[float]]:
        """Logits of the token after each row."""
        with torch.no_grad():
            return self.model(torch.tensor(tokens)).logits[:, -1].tolist()

    def generate(self, prompts, negatives, new: int, top_k: int, guidance: float) -> float:
        """Seconds for `new` tokens of each row; guidance 1 is none."""
        options = dict(do_sample=True, top_k=top_k, max_new_tokens=new, min_new_tokens=new)
        if guidance != 1:
            options |= dict(guidance_scale=guidance, negative_prompt_ids=torch.tensor(negatives))
        began = time.perf_counter()
        with torch.no_grad():
            found = self.model.generate(torch.tensor(prompts), **options)
        seconds = time.perf_counter() - began
        if found.shape[1] != len(prompts[0]) + new:
            raise SystemExit(f"transformers generated {found.shape[1] - len(prompts[0])} of {new}")
        return seconds
