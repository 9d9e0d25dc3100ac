"""Best-of-n: of several images or clips, keep the one whose caption the model finds likeliest.

One model draws and reads, so it can judge what it drew by the likelihood of the caption after the
image. A low one shows what drawing ignored or confused. Gains: docs/reference/measurements.md.
"""

from collections.abc import Callable, Sequence

import numpy as np

from emu3_jax.generate import scoring
from emu3_jax.interop.bundle import Bundle
from emu3_jax.progress import Progress
from emu3_jax.sequence import Document, Image, Text, TokenClass, Video


def caption_nats(
    bundle: Bundle,
    blocks: Sequence[Image | Video],
    captions: Sequence[str],
    batch_size: int = 16,
    progress: Callable[[str], None] | None = None,
) -> np.ndarray:
    """-log p(caption and its end | block), float64 [N], for each block and its caption.

    On a mesh the weights stay where they are. `progress` is called with a line now and then.
    ValueError if a pair is longer than the model's context.
    """
    pairs = zip(blocks, captions, strict=True)
    built = [bundle.grammar.build(Document((block, Text(caption)))) for block, caption in pairs]
    # Each is a task of its own, so that its sum stays separate however they are packed.
    fitted = scoring.fit({i: [b] for i, b in enumerate(built)}, bundle.max_context)
    if fitted.dropped:
        raise ValueError(
            f"{fitted.dropped} of {len(built)} candidates and their captions are longer than the "
            f"context of {bundle.max_context} tokens, so they cannot be compared"
        )
    done = Progress(progress).counter("tokens compared", fitted.targets)
    tally = scoring.score(bundle, fitted, batch_size, done)
    return tally.nll[:, TokenClass.TEXT]


def best(
    bundle: Bundle,
    blocks: Sequence[Image | Video],
    captions: Sequence[str],
    candidates: int,
    batch_size: int = 16,
    progress: Callable[[str], None] | None = None,
) -> list[int]:
    """The index of the best of every `candidates` neighbouring blocks, which share a caption."""
    nats_N = caption_nats(bundle, blocks, captions, batch_size, progress)
    nats_NC = nats_N.reshape(-1, candidates)
    chosen_N = np.argmin(nats_NC, axis=1)
    if progress:
        progress(
            f"{candidates} candidates each, by likelihood of the caption: on average "
            f"{nats_NC.mean():.1f} nats, for those kept {nats_NC.min(axis=1).mean():.1f}"
        )
    return (np.arange(len(chosen_N)) * candidates + chosen_N).tolist()
