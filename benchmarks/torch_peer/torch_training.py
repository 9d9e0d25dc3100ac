"""Torch's side of `tokenizer_training.py`: one training step of the same objective."""

import json
import pathlib
import time
import types

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.torch_peer.torch_tokenizer import Discriminator, Tokenizer

ADAPTIVE_EPSILON = 1e-4  # that of emu3_jax.train.tasks.vision.adversarial


VGG_BLOCKS = (2, 2, 3, 3, 3)


class Lpips(nn.Module):
    """The perceptual distance, with the weights of this package's file."""

    def __init__(self, file: pathlib.Path):
        super().__init__()
        stored = load_file(file)
        self.blocks = nn.ModuleList()
        for i, size in enumerate(VGG_BLOCKS, 1):
            layers = [nn.MaxPool2d(2)] if i > 1 else []
            for j in range(1, size + 1):
                kernel = stored[f"vgg.conv{i}_{j}.kernel"].permute(3, 2, 0, 1).contiguous()
                layers += [nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1), nn.ReLU()]
                values = {"weight": kernel, "bias": stored[f"vgg.conv{i}_{j}.bias"]}
                layers[-2].load_state_dict(values)
            self.blocks.append(nn.Sequential(*layers))
        for i in range(len(VGG_BLOCKS)):
            self.register_buffer(f"head_{i}", stored[f"heads.{i}"])
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1))
        self.requires_grad_(False)

    def features(self, x):
        """[B, 3, H, W] -> five arrays of unit vectors."""
        x, found = (x - self.shift) / self.scale, []
        for block in self.blocks:
            x = block(x)
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    def forward(self, a, b):
        """Two [B, 3, H, W], b without gradient -> scalar."""
        with torch.no_grad():
            wanted = self.features(b)
        total = 0.0
        for i, (x, y) in enumerate(zip(self.features(a), wanted, strict=True)):
            total = total + ((x - y).square().mean((0, 2, 3)) * getattr(self, f"head_{i}")).sum()
        return total


class Trainer:
    """Networks, optimizer and batch of one case; `way` names how torch runs it."""

    def __init__(self, folder: pathlib.Path, case: str, kinds: list[str], way: str, decay: float):
        settings = json.loads((folder / "settings.json").read_text())
        self.loss = types.SimpleNamespace(**settings["loss"])
        model = types.SimpleNamespace(**settings["model"])
        judge = types.SimpleNamespace(**self.loss.discriminator)
        self.tokenizer = Tokenizer(model)
        self.tokenizer.load_state_dict(load_file(next(folder.glob("model*.safetensors"))))
        batch = load_file(folder / "batch.safetensors")
        self.frames = batch.get(f"frames_{case}")
        clips = {kind: batch[kind] if kind == "clips" else batch[kind][:, None] for kind in kinds}
        self.batch = {kind: x.movedim(-1, 2) for kind, x in clips.items()}  # channels still last
        self.discriminators = nn.ModuleDict(
            {kind: Discriminator(judge, x.shape[1]) for kind, x in self.batch.items()}
        )
        stored = load_file(folder / "discriminator.safetensors")
        mine = {name: x for name, x in stored.items() if name.split(".")[0] in kinds}
        self.discriminators.load_state_dict(mine)
        self.lpips = Lpips(folder / "perceptual.safetensors")
        self._set_up(settings["optimizer"], way, decay)

    def _set_up(self, adam: dict, way: str, decay: float) -> None:
        everything = nn.ModuleList([self.tokenizer, self.discriminators])
        if way == "eager":
            self.batch = {kind: x.contiguous() for kind, x in self.batch.items()}
        else:
            for module in (*everything.modules(), *self.lpips.modules()):
                if isinstance(module, nn.Conv2d):
                    module.to(memory_format=torch.channels_last)
                elif isinstance(module, nn.Conv3d):
                    module.to(memory_format=torch.channels_last_3d)
        self.parameters = list(everything.parameters())
        self.optimizer = torch.optim.Adam(
            self.parameters, adam["learning_rate"], (adam["b1"], adam["b2"]), fused=True
        )
        self.clip_norm, self.everything, self.steps = adam["clip_norm"], everything, 0
        self.averaged = AveragedModel(everything, multi_avg_fn=get_ema_multi_avg_fn(decay))
        if way == "compiled":
            for module in (self.tokenizer, self.lpips):
                module.compile()

    def step(self) -> dict[str, torch.Tensor]:
        """One update; returns the losses without waiting for them."""
        self.optimizer.zero_grad()
        metrics = {}
        for kind, target in self.batch.items():
            metrics |= {f"{kind}_{name}": x for name, x in self._learn(kind, target).items()}
        parts = (self.tokenizer, self.discriminators)
        norms = [nn.utils.clip_grad_norm_(part.parameters(), self.clip_norm) for part in parts]
        self.optimizer.step()
        self.averaged.update_parameters(self.everything)
        self.steps += 1
        return metrics | {"gradient_norm": torch.stack(norms).square().sum().sqrt()}

    def _learn(self, kind: str, target) -> dict[str, torch.Tensor]:
        """Adds the gradients of one kind; returns its losses."""
        loss, game, discriminator = self.loss, self.loss.adversarial, self.discriminators[kind]
        pixels, (commitment, codebook) = self.tokenizer(target)
        fixed = pixels.detach().requires_grad_()
        l2, l1 = F.mse_loss(fixed, target), F.l1_loss(fixed, target)
        perceptual = self.lpips(*self._judged(kind, fixed, target))
        seen = loss.l2 * l2 + loss.l1 * l1 + loss.perceptual * perceptual
        (gradient,) = torch.autograd.grad(seen, fixed)

        fake = discriminator(fixed)
        fooled = -fake.mean()
        (adversarial,) = torch.autograd.grad(fooled, fixed, retain_graph=True)
        scale = fixed.numel() ** 0.5
        ratio = scale * gradient.norm() / (scale * adversarial.norm() + ADAPTIVE_EPSILON)
        risen = min(1.0, (self.steps + 1) / max(game["warmup"], 1))
        weight = game["weight"] * risen * ratio.clamp(max=game["adaptive_limit"])
        found = F.relu(1 - discriminator(target)).mean() + F.relu(1 + fake).mean()
        found.backward(inputs=list(discriminator.parameters()))

        quantizer = loss.commitment * commitment + loss.codebook * codebook
        torch.autograd.backward([pixels, quantizer], [gradient + weight * adversarial, None])
        terms = dict(l2=l2, l1=l1, perceptual=perceptual, commitment=commitment, codebook=codebook)
        return terms | dict(generator=fooled, discriminator=found, weight=weight)

    def _judged(self, kind: str, pixels, target):
        """Two [B, 3, H, W]: stills, or the next frames of clips."""
        if kind == "stills":
            return pixels[:, 0], target[:, 0]
        frames = self.frames[self.steps % len(self.frames)]
        rows = torch.arange(len(frames))[:, None]
        return pixels[rows, frames].flatten(0, 1), target[rows, frames].flatten(0, 1)


class Theirs:
    """The methods that `tokenizer_training` calls, by case and way."""

    def __init__(self, folder: pathlib.Path, threads: int):
        torch.set_num_threads(threads)
        self.folder, self.trainers = folder, {}

    def prepare(self, case: str, kinds: list[str], way: str, decay: float) -> int:
        """Number of trained parameters."""
        trainer = Trainer(self.folder, case, kinds, way, decay)
        self.trainers[case, way] = trainer
        return sum(x.numel() for x in trainer.parameters)

    def step(self, case: str, way: str) -> tuple[float, dict[str, float]]:
        """(seconds, losses) of one step."""
        began = time.perf_counter()
        metrics = self.trainers[case, way].step()
        seconds = time.perf_counter() - began
        return seconds, {name: float(x.detach()) for name, x in metrics.items()}
