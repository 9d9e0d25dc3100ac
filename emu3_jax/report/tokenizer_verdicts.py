"""Is the training of a vision tokenizer healthy? Verdicts from its log.

Each verdict contains the number that it is based on. Only the first threshold has been published;
the others are ours, each with its reason.
"""

import dataclasses
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from emu3_jax.train.run.divergence import DivergenceConfig

GOOD, BAD, UNKNOWN = "good", "bad", "unknown"

# Least share of codes in use, in percent: a code that is never chosen is a row of the transformer's
# vocabulary that costs memory and is never trained.
USED_PERCENT = 95.0
# The part of a run that trends are measured on: long enough for several log lines and a
# validation, short enough to leave out the beginning of the run.
LAST_SHARE = 0.25
# A gain in PSNR that is worth more steps: 0.1 dB is 2.3 % of the squared error, several times the
# random difference between two validations of averaged weights.
RISING_DB = 0.1
# Share of patches that the discriminator judges rightly, mean of real and fake ones. Above the
# first limit hardly a patch deceives it, so hinge losses are flat and give no gradient. Within the
# second distance of one half it guesses.
WON_ACCURACY, GUESSING = 0.95, 0.02
# Share of codes that are dead for stills, or for clips. Without a quarter of the codes, a kind
# loses at most log2(4/3) = 0.4 bit per token; with more, the vocabulary splits in two.
DEAD_OF_KIND = 0.25
# Gradient norm of a spike, in medians, as for the loop's guard.
SPIKE_FACTOR = DivergenceConfig.norm_factor
# The largest sag of PSNR, in dB, where training clips ended; below it a boundary is not visible.
BOUNDARY_DB = 0.5

Rows = Sequence[Mapping[str, Any]]
KINDS = {"stills": "images", "clips": "clips"}
_DISCRIMINATOR = re.compile(r"adversarial/(\w+)_accuracy_real")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One verdict.

    Attributes:
      mark: GOOD, BAD, or UNKNOWN if the log does not suffice.
      subject: what it is about, in a word or two.
      text: a sentence with the number.
    """

    mark: str
    subject: str
    text: str


def verdicts(
    rows: Rows,
    steps: int,
    used_percent: float | None = None,
    discriminator_start: int | None = None,
    boundary_db: float | None = None,
) -> list[Verdict]:
    """Returns all verdicts on a run, the most general first.

    Args:
      rows: lines of metrics.jsonl in step order, see `train.run.metrics.read_metrics`.
      steps: number of steps in the config.
      used_percent: codes in use on held-out data; None uses the counts kept during training.
      discriminator_start: step at which the discriminator starts; None without one.
      boundary_db: sag of PSNR where training clips ended, in dB; None if not measured.
    """
    found = [
        _finished(rows, steps),
        _stable(rows),
        _gradient(rows),
        _used(rows, used_percent),
    ]
    found += [_kinds(rows), *(_quality(rows, kind) for kind in KINDS)]
    if discriminator_start is not None:
        groups = sorted({m[1] for row in rows for m in map(_DISCRIMINATOR.fullmatch, row) if m})
        found += [_discriminator(rows, group, discriminator_start, steps) for group in groups]
    found.append(_boundaries(boundary_db))
    return [verdict for verdict in found if verdict is not None]


def _finished(rows: Rows, steps: int) -> Verdict:
    done = rows[-1]["step"] if rows else 0
    if done >= steps:
        return Verdict(GOOD, "Length", f"all {steps:,} steps are done")
    return Verdict(
        UNKNOWN, "Length", f"at step {done:,} of {steps:,}: all other verdicts are preliminary"
    )


def _stable(rows: Rows) -> Verdict:
    if not any("nonfinite" in row for row in rows):
        return Verdict(UNKNOWN, "Bad steps", "not logged")
    # Each log line has means over the steps since the line before.
    counts, before = {"nonfinite": 0.0, "spike": 0.0}, 0
    for row in rows:
        if "nonfinite" in row:
            for name in counts:
                counts[name] += (row.get(name) or 0.0) * (row["step"] - before)
            before = row["step"]
    nonfinite, spikes = (round(count) for count in counts.values())
    text = f"{nonfinite:,} not finite and {spikes:,} loss spikes in {before:,} steps"
    if not any("spike" in row for row in rows):
        text = f"{nonfinite:,} not finite in {before:,} steps; spikes were not looked for"
    if nonfinite or spikes:
        return Verdict(BAD, "Bad steps", f"{text}: lower the learning rate")
    return Verdict(GOOD, "Bad steps", text)


def _gradient(rows: Rows) -> Verdict | None:
    found = _points(rows, "gradient_norm/tokenizer")
    if not found:
        return None
    median = statistics.median(value for _, value in found)
    step, highest = max(found, key=lambda pair: pair[1])
    text = f"highest {highest:.3g} (step {step:,}), median {median:.3g}"
    if highest > SPIKE_FACTOR * median:
        text += f": above {SPIKE_FACTOR:g} medians, look at what came before"
        return Verdict(BAD, "Gradient norm", text)
    return Verdict(GOOD, "Gradient norm", text)


def _used(rows: Rows, used_percent: float | None) -> Verdict:
    where = "on held-out and training data"
    if used_percent is None:
        dead, where = _late_mean(rows, "codebook/dead"), "by the counts of the last quarter"
        if dead is None:
            return Verdict(UNKNOWN, "Codes in use", "not measured")
        used_percent = 100.0 * (1.0 - dead)
    text = f"{used_percent:.1f} % {where}, wanted {USED_PERCENT:g} %"
    if used_percent >= USED_PERCENT:
        return Verdict(GOOD, "Codes in use", text)
    return Verdict(BAD, "Codes in use", f"{text}: revive dead codes more often, or use fewer")


def _kinds(rows: Rows) -> Verdict | None:
    dead = {kind: _late_mean(rows, f"codebook/dead_{kind}") for kind in KINDS}
    if None in dead.values():
        return None
    text = ", ".join(f"{100 * share:.1f} % dead for {kind}" for kind, share in dead.items())
    shared = _late_mean(rows, "codebook/shared")
    if shared is not None:
        text += f"; {100 * shared:.1f} % serve both"
    worst = max(dead, key=dead.get)
    if dead[worst] > DEAD_OF_KIND:
        return Verdict(BAD, "Stills and clips", f"{text}: more {worst} in a batch would help")
    return Verdict(GOOD, "Stills and clips", text)


def _quality(rows: Rows, kind: str) -> Verdict | None:
    subject = f"PSNR of {kind}"
    key = f"validation/reconstruction/psnr_{KINDS[kind]}"
    found = _points(rows, key)
    if not found:
        return None
    change = change_at_end(found)
    if change is None:
        return Verdict(UNKNOWN, subject, f"{found[-1][1]:.2f} dB; one validation shows no trend")
    text = f"{change:+.2f} dB over the last quarter, to {found[-1][1]:.2f} dB"
    if change > RISING_DB:
        return Verdict(BAD, subject, f"{text}: still rising, train longer")
    if change >= -RISING_DB:
        return Verdict(GOOD, subject, f"{text}: levelled out")
    distances = _points(rows, f"validation/reconstruction/perceptual_{KINDS[kind]}")
    nearer = change_at_end(distances)
    if nearer is not None and nearer < 0:
        text += f": traded for perceptual quality (distance {nearer:+.4f})"
        return Verdict(GOOD, subject, text)
    return Verdict(BAD, subject, f"{text}: falling, take an earlier checkpoint")


def change_at_end(found: Sequence[tuple[int, float]]) -> float | None:
    """Returns the last value minus the value LAST_SHARE of the steps earlier.

    Values are interpolated linearly between steps; None if they begin later.
    """
    if not found:
        return None
    at = (1.0 - LAST_SHARE) * found[-1][0]
    for (x0, y0), (x1, y1) in zip(found, found[1:], strict=False):
        if x0 <= at <= x1:
            return found[-1][1] - (y0 + (y1 - y0) * (at - x0) / (x1 - x0))
    return None


def _discriminator(rows: Rows, group: str, start: int, steps: int) -> Verdict:
    subject = f"Discriminator, {group}"
    now = rows[-1]["step"]
    if now <= start:
        return Verdict(UNKNOWN, subject, f"not started yet: it starts after step {start:,}")
    # Every discriminator starts by guessing, so it is judged after as many steps as trends take.
    if now < steps and now - start < LAST_SHARE * steps:
        return Verdict(UNKNOWN, subject, f"too early to tell, it began {now - start:,} steps ago")
    real, fake = (
        _late_mean(rows, f"adversarial/{group}_accuracy_{of}", start) for of in ("real", "fake")
    )
    if real is None or fake is None:
        return Verdict(UNKNOWN, subject, "nothing was logged since it began")
    right = (real + fake) / 2
    text = (
        f"right about {100 * real:.1f} % of real and {100 * fake:.1f} % of fake patches in the last"
        f" quarter, {100 * right:.1f} % on average"
    )
    if right > WON_ACCURACY:
        text += ": it has won, lower its rate (loss.discriminator_rate) or weight"
        return Verdict(BAD, subject, text)
    if abs(right - 0.5) <= GUESSING:
        return Verdict(BAD, subject, f"{text}: it guesses, so it has learnt nothing")
    return Verdict(GOOD, subject, text)


def _boundaries(boundary_db: float | None) -> Verdict | None:
    if boundary_db is None:
        return None
    text = f"PSNR sags by {boundary_db:.2f} dB where training clips ended"
    if boundary_db <= BOUNDARY_DB:
        return Verdict(GOOD, "Clip boundaries", text)
    text += f", wanted {BOUNDARY_DB:g} dB: train on longer clips"
    return Verdict(BAD, "Clip boundaries", text)


def _points(rows: Rows, key: str) -> list[tuple[int, float]]:
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]


def _late_mean(rows: Rows, key: str, after: int = 0) -> float | None:
    """Returns the mean over the lines of the last quarter, of those after step `after`."""
    if not rows:
        return None
    since = max(after, (1.0 - LAST_SHARE) * rows[-1]["step"])
    values = [value for step, value in _points(rows, key) if step > since]
    return statistics.fmean(values) if values else None
