"""Which requests run together, in which order, and the sizes of what is compiled for them.

Every shape is compiled once, so sizes are rounded up to few.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from emu3_jax.generate.decoding.requests import Request

# Slots that a pass reads are a multiple of this, and of a quarter of all slots.
LIVE = 128

# Tokens of a prompt that one program reads; the last piece is filled up to the least of them. The
# largest array is the float32 scores of one layer, heads x piece x (slots + piece) x 4 bytes for
# each row: with the sizes of Emu3-Chat 0.6 GB for 8,192 slots. 512 are enough to fill the matrix
# units of an accelerator.
PIECES = (512, 128, 32)

# A prompt is copied from another row if it shares at least as many tokens. To read fewer again is
# as fast.
WORTH_COPYING = 32


@dataclasses.dataclass(frozen=True)
class Plan:
    """Requests that take turns in the rows of one batch, and its shapes.

    Attributes:
      members: positions of the requests in the list, in the order in which they begin.
      guided: whether each takes two rows of the cache.
      size: requests that run at once, a multiple of the shards of the rows.
      columns: the most new tokens.
      slots: tokens of the longest request.
      longest_prompt: tokens of the longest prompt.
      choices: the most ids that an entry CHOICE of a mask allows.
    """

    members: tuple[int, ...]
    guided: bool
    size: int
    columns: int
    slots: int
    longest_prompt: int
    choices: int = 0


def plans(
    requests: Sequence[Request], guided: bool, batch_size: int, shards: int = 1
) -> list[Plan]:
    """Splits the requests by what a batch has in common: guidance, texts or codes, rough length.

    A text would pay for the scores of codes and for a second row, and a short request for the
    slots of a long one.

    Args:
      requests: all of them.
      guided: whether those with a negative prompt are guided.
      batch_size: the most requests that run at once.
      shards: of the rows.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size}.")

    def kind(i: int) -> tuple:
        request = requests[i]
        slots = bucket_power(request.read, 4 * LIVE)
        return request.is_text, guided and request.negative is not None, slots

    found = []
    for key in sorted({kind(i) for i in range(len(requests))}):
        members = in_order(requests, [i for i in range(len(requests)) if kind(i) == key])
        size = min(bucket_power(-(-len(members) // shards)) * shards, max(batch_size, shards))
        chosen = [requests[i] for i in members]
        found.append(
            Plan(
                members=tuple(members),
                guided=key[1],
                size=-(-size // shards) * shards,
                columns=bucket_quarter(max(r.new for r in chosen), 16),
                slots=bucket_quarter(max(r.read for r in chosen), 64),
                longest_prompt=max(r.longest_prompt for r in chosen),
                choices=max(len(r.choices) for r in chosen),
            )
        )
    return found


def in_order(requests: Sequence[Request], members: Sequence[int]) -> list[int]:
    """The members so that neighbours share what their prompts begin with; the longest group first.

    A group are neighbours in lexicographic order of which each shares half of its prompt with the
    one before. Long answers begin first, so that none is left to run alone.
    """
    prompts = {i: np.asarray(requests[i].prompt, np.int32) for i in members}
    lexicographic = sorted(members, key=lambda i: prompts[i].astype(">i4").tobytes())
    groups: list[list[int]] = []
    for i in lexicographic:
        if groups and 2 * shared(prompts[groups[-1][-1]], prompts[i]) >= len(prompts[i]):
            groups[-1].append(i)
        else:
            groups.append([i])
    groups = [sorted(group, key=lambda i: (-requests[i].new, i)) for group in groups]
    groups.sort(key=lambda group: (-requests[group[0]].read, group[0]))
    return [i for group in groups for i in group]


def shared(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens both begin with."""
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length


def grouped(
    per_shard: int, shards: int, rows: Sequence[int], *values: Sequence[int]
) -> list[np.ndarray]:
    """Rows, counted within their shard, and values of each, as arrays int32 [G, N].

    N is a power of four or all rows of a shard. The last array tells with 1 which places are
    needed; the others repeat the first of their shard, or are zeros if it has none.
    """
    members: list[list[int]] = [[] for _ in range(shards)]
    for i, r in enumerate(rows):
        members[r // per_shard].append(i)
    most, width = max(map(len, members)), 1
    while width < most:
        width *= 4
    arrays = np.zeros((2 + len(values), shards, min(width, per_shard)), np.int32)
    for g, group in enumerate(members):
        for n, i in enumerate(group):
            arrays[:, g, n] = [rows[i] % per_shard, *(value[i] for value in values), 1]
        if group:
            arrays[:-1, g, len(group) :] = arrays[:-1, g, :1]
    return list(arrays)


def piece(left: int) -> int:
    """Tokens of a prompt to read at once, if the longest has `left` more."""
    return next((size for size in PIECES if size <= left), PIECES[-1])


def allocated(slots: int, longest_prompt: int, width: int) -> int:
    """Slots of the cache: those of the longest request, and the longest run written at once.

    Args:
      slots: tokens of the longest request (`Plan.slots`).
      longest_prompt: its tokens.
      width: tokens that the decoder reads at once.
    """
    return slots + max(piece(longest_prompt - 1), width)


def live_slots(needed: int, slots: int) -> int:
    """Slots that a pass reads if it needs `needed` of `slots`: one of four sizes."""
    step = -(-max(LIVE, -(-slots // 4)) // LIVE) * LIVE
    return min(-(-max(needed, 1) // step) * step, slots)


def bucket_power(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least `n` and `least`."""
    return max(least, 1 << max(n - 1, 0).bit_length())


def bucket_quarter(n: int, least: int = 1) -> int:
    """`n` rounded up to a multiple of a quarter of the power of two below it."""
    n = max(n, least)
    step = max(1, (1 << (n.bit_length() - 1)) // 4)
    return -(-n // step) * step
