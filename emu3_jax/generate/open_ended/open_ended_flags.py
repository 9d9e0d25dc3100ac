"""Flags of the command for the tasks chat and interleaved, and what they ask for."""

from collections.abc import Callable

from absl import flags

from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.generate.job import JobError
from emu3_jax.generate.modalities import Options
from emu3_jax.generate.open_ended.interleaving import InterleavedOptions
from emu3_jax.generate.open_ended.open_ended_job import Asked, InterleavedJob

flags.disclaim_key_flags()

TASKS = ("chat", "interleaved")
_OWN = ("max_images", "text_temperature", "text_top_k", "text_top_p")
_NEITHER = (
    "video", "fps", "start", "end", "max_frames", "clips", "video_format", "candidates",
    "official_prompts", "chat", "stream", "batch_size",
)  # fmt: skip
# Flags that a task does not heed.
_FOREIGN = {
    "interleaved": (*_NEITHER, "whole_vocabulary"),
    "chat": (
        *_NEITHER, *_OWN, "output", "prompt", "prompts_file", "image", "size", "ratio", "area",
        "samples", "guidance", "negative_prompt", "attend_negative_padding",
    ),
}  # fmt: skip


def define() -> None:
    """Defines the flags that only these tasks have."""
    flags.DEFINE_integer("max_images", 4, "Most images of an interleaved document.")
    flags.DEFINE_float(
        "text_temperature", 1.0, "As --temperature, for the texts of interleaved documents."
    )
    flags.DEFINE_integer("text_top_k", 0, "As --top_k, for these texts.")
    flags.DEFINE_float("text_top_p", 1.0, "As --top_p, for these texts.")


def check(task: str) -> None:
    """JobError for a flag that is given and that the task does not heed."""
    for name in _FOREIGN.get(task, _OWN):
        if flags.FLAGS[name].present:
            raise JobError(f"--{name} is not for {task}; leave it out.")


def asked(
    task: str,
    sampling: Callable[[bool], Sampling],
    prompts: tuple[str, ...],
    sizes: Callable[[str], tuple[tuple[int, ...], ...]],
) -> Asked:
    """What the flags ask for.

    Args:
      task: one of `TASKS`.
      sampling: the settings of the flags, for drawing or not.
      prompts: of the flags.
      sizes: the sizes of the flags, for a task that draws.
    """
    given = flags.FLAGS
    if task == "chat":
        options = dict(max_new=given.max_new, first=given.first)
        return Options(sampling(False), quantized_cache="cache" in given.quantize, **options)
    texts = Sampling(given.text_temperature, given.text_top_k, given.text_top_p, seed=given.seed)
    options = InterleavedOptions(
        texts,
        sampling(True),
        given.negative_prompt,
        given.max_images,
        given.max_new,
        given.first,
        "cache" in given.quantize,
    )
    images = tuple(given.image)
    return InterleavedJob(prompts, images, sizes("text_to_image"), given.samples, options)
