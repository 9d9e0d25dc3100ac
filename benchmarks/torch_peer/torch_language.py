"""Torch's side of `training.py`: the same language model, loss and AdamW, one training step.

The names of its weights are those of transformers' Emu3 and Llama, as `interop` exports them.
"""

import json
import pathlib
import time
import types

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from safetensors.torch import load_file
from torch import nn


class Norm(nn.Module):
    """Root-mean-square norm."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        """[..., D] -> the same."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention by torch's fused kernel; one document per row."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.q_proj = nn.Linear(c.hidden_size, c.num_heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, c.num_kv_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, c.num_kv_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.num_heads * c.head_dim, c.hidden_size, bias=False)

    def forward(self, x, cos, sin):
        """[B, S, D] -> the same."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (p(x).unflatten(-1, (-1, self.c.head_dim)).transpose(1, 2) for p in projections)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        groups = self.c.num_heads // self.c.num_kv_heads
        k, v = (a.repeat_interleave(groups, dim=1) for a in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Gated MLP."""

    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x):
        """[..., D] -> the same."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and MLP, each after a norm and added to its input."""

    def __init__(self, c):
        super().__init__()
        self.input_layernorm = Norm(c.hidden_size, c.norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = Norm(c.hidden_size, c.norm_eps)
        self.mlp = Mlp(c)

    def forward(self, x, cos, sin):
        """[B, S, D] -> the same."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Language(nn.Module):
    """Tokens to logits."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_layers))
        self.norm = Norm(c.hidden_size, c.norm_eps)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)

    def forward(self, tokens):
        """int [B, S] -> [B, S, V]."""
        half = torch.arange(0, self.c.head_dim, 2, dtype=torch.float32) / self.c.head_dim
        angle = torch.arange(tokens.shape[1])[:, None] * self.c.rope_theta**-half
        cos, sin = angle.cos(), angle.sin()
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.lm_head(self.norm(x))


def rotate(x, cos, sin):
    """Rotates [B, N, S, H]; dimensions i and i + H/2 belong together."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Theirs:
    """The methods that `training` calls."""

    def __init__(self, folder: pathlib.Path, threads: int):
        torch.set_num_threads(threads)
        settings = json.loads((folder / "settings.json").read_text())
        self.optimizer_settings = types.SimpleNamespace(**settings["optimizer"])
        self.model = Language(types.SimpleNamespace(**settings["model"]))
        weights = load_file(next(folder.glob("model*.safetensors")))
        self.model.load_state_dict({n.removeprefix("model."): w for n, w in weights.items()})
        batch = load_file(folder / "batch.safetensors")
        self.inputs, self.targets = (batch[name].long() for name in ("inputs", "targets"))
        o = self.optimizer_settings
        decays = lambda name: "proj" in name or "lm_head" in name  # noqa: E731
        parts = [
            {"params": [p for n, p in self.model.named_parameters() if decays(n) == decayed]}
            | {"weight_decay": o.weight_decay * decayed}
            for decayed in (True, False)
        ]
        betas = (o.b1, o.b2)
        self.optimizer = torch.optim.AdamW(parts, o.learning_rate, betas, o.eps, fused=True)

    def prepare(self, way: str) -> int:
        """Number of trained parameters; `way` is how torch runs the model from here on."""
        if way == "compiled":
            self.model.compile()
        return sum(p.numel() for p in self.model.parameters())

    def step(self) -> tuple[float, float]:
        """(seconds, loss) of one step."""
        began = time.perf_counter()
        self.optimizer.zero_grad()
        logits = self.model(self.inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), self.targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.optimizer_settings.clip_norm)
        self.optimizer.step()
        return time.perf_counter() - began, float(loss.detach())
