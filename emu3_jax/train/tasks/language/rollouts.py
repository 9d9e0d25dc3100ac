"""Batches that the policy draws itself: groups of images for one prompt, judged by scorers.

Prompt n is a function of (config, n): all prompts are shuffled anew each epoch. Its images are
numbers n x candidates and on of one stream of draws, so a run that was killed draws what a whole
one does, and neither the number of processes nor the size of a batch changes the images.
"""

import functools
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from emu3_jax.data.batches import Batches
from emu3_jax.data.prompts import Prompt
from emu3_jax.data.tokens.preference_batches import FIELDS, Answer, row_of
from emu3_jax.generate import modalities
from emu3_jax.generate.decoding.sampling import Sampling
from emu3_jax.generate.judging import score_codes
from emu3_jax.interop.bundle import Bundle
from emu3_jax.scorers.scorer import Scorer
from emu3_jax.sequence import Document, Grammar, Image, Text, TokenClass
from emu3_jax.train.run.distributed import say

# Added to standard deviations; and what part of a score may be noise of float32 arithmetic, which
# the same image has in another place of a batch.
EPSILON, NOISE = 1e-6, 1e-5


@dataclass(frozen=True)
class RolloutData:
    """The prompts, and the rows that are learnt.

    Attributes:
      prompts: *.txt with a prompt per line; json, jsonl or parquet rows with "prompt" or a caption;
        or a token dataset, whose captions of images are taken. Equal prompts count once.
      height, width: codes of an image along each side.
      batch_size: images of the global batch, over all hosts: a multiple of `candidates`.
      sequence_length: tokens to predict per row; a row holds one prompt and one image.
      candidates: images drawn for each prompt, which are compared with each other (T2I-R1: 8).
      null_prompt: share of the groups whose prompt is left out where they are learnt. They are
        drawn and judged with it. Without them tuning moves the conditional model alone, and
        guidance at generation loses its other half.
      seed: seed of the order of prompts and of the choice of those that are left out.
    """

    prompts: str
    height: int
    width: int
    batch_size: int
    sequence_length: int
    candidates: int = 8
    null_prompt: float = 0.0
    seed: int = 0

    def __post_init__(self):
        if not self.prompts:
            raise ValueError("prompts is empty; set --config.data.prompts=PATH")
        for name in ("height", "width", "batch_size", "sequence_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.candidates < 2:
            raise ValueError(
                f"candidates must be at least 2, found {self.candidates}: an image is compared "
                "with the others of its group"
            )
        if not 0 <= self.null_prompt <= 1:
            raise ValueError(f"null_prompt must be from 0 to 1, found {self.null_prompt}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative: {self.seed}")

    def check_groups(self) -> None:
        """ValueError if a batch is not made of whole groups."""
        if self.batch_size % self.candidates:
            raise ValueError(
                f"data.batch_size={self.batch_size} images are not whole groups of "
                f"data.candidates={self.candidates}; expected a multiple of it"
            )


@dataclass(frozen=True)
class Rollouts:
    """How images are drawn, and who judges them.

    Attributes:
      scorers: entries, dict(scorer=NAME, …) as in `emu3_jax.scorers.registry`. The advantages of
        several are averaged. "likelihood" reads with the reference's weights: the policy must not
        change its own judge.
      vision_tokenizer: of the model's codes: a run directory, a directory of weights, or the name
        of a shipped one; "" if no scorer reads pixels.
      sampling: how images are drawn. The update is the gradient of the expected reward only with
        the defaults, which draw from the model itself: temperature 1, all codes, no guidance.
      negative_prompt: of the unconditional branch of guidance.
      batch_size: most images that are drawn together.
    """

    scorers: tuple[dict, ...]
    vision_tokenizer: str = ""
    sampling: Sampling = Sampling()
    negative_prompt: str = ""
    batch_size: int = 64

    def __post_init__(self):
        if not self.scorers:
            raise ValueError("scorers is empty, expected at least one entry, dict(scorer=NAME)")
        if self.sampling.greedy:
            raise ValueError(
                "sampling.temperature is 0, so all images of a group would be equal; expected 1"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {self.batch_size}")


class Judged(NamedTuple):
    """What scorers said of the images of P groups of G, by S scorers.

    Attributes:
      scored_PG: bool, whether every scorer gave a number.
      rewards_PGS: float64, 0 where an image is not scored.
      deviations_PS: float64, standard deviation over the scored images of a group.
      advantages_PG: float64, the mean over scorers of (reward - mean of the group) / deviation. 0
        for images that are not scored.
    """

    scored_PG: np.ndarray
    rewards_PGS: np.ndarray
    deviations_PS: np.ndarray
    advantages_PG: np.ndarray


def judge(rewards_PGS: np.ndarray) -> Judged:
    """Compares the images of each group; NaN stands for a score that there is not.

    Scorers have different scales, so each one's rewards are divided by their deviation within the
    group. A scorer that finds all images of a group equal adds nothing there.
    """
    rewards_PGS = rewards_PGS.astype(np.float64)
    scored_PG = np.isfinite(rewards_PGS).all(-1)
    scored = scored_PG[..., None]
    rewards_PGS = np.where(scored, rewards_PGS, 0.0)
    count_P1 = np.maximum(scored.sum(1), 1)
    highest_PS = np.where(scored, rewards_PGS, -np.inf).max(1)
    lowest_PS = np.where(scored, rewards_PGS, np.inf).min(1)
    noise_PS = NOISE * np.abs(rewards_PGS).max(1)
    differ = (highest_PS - lowest_PS > noise_PS)[:, None] & scored
    means_PS = rewards_PGS.sum(1) / count_P1
    centred_PGS = np.where(differ, rewards_PGS - means_PS[:, None], 0.0)
    deviations_PS = np.sqrt(np.square(centred_PGS).sum(1) / count_P1)
    advantages_PG = (centred_PGS / (deviations_PS[:, None] + EPSILON)).mean(-1)
    return Judged(scored_PG, rewards_PGS, deviations_PS, advantages_PG)


class RolloutBatches(Batches):
    """Endless batches of R rows, each an image that the policy drew for its prompt.

    "inputs", "targets", "segment_ids" int32 and "counted" float32, [R, sequence_length]; counted
    are the codes, as the marks between them are forced, and nothing of an image without a score.
    "advantages" float32 [R]; "rewards", "deviations" float32 [R, scorers], for the logs.

    Args:
      data, rollouts: the sections of the config.
      prompts: at least one; each fits a row and the model's context.
      grammar: of the model.
      scorers: in order.
      models: training state → the policy that draws, and the frozen model that reads for scorers.
      rows: the rows of the global batch that this process keeps. All processes draw all images.
    """

    def __init__(
        self,
        data: RolloutData,
        rollouts: Rollouts,
        prompts: Sequence[Prompt],
        grammar: Grammar,
        scorers: Sequence[Scorer],
        models: Callable[[Any], tuple[Bundle, Bundle]],
        rows: range,
    ):
        self._data, self._rollouts, self._rows = data, rollouts, rows
        self._prompts, self._grammar, self._scorers = prompts, grammar, scorers
        self._models_of, self._models = models, None
        names = (*FIELDS, "advantages", "rewards", "deviations")
        self.share = dict.fromkeys(names, (rows[0], data.batch_size))
        self._drawn = 0  # prompts
        self._images = self._unscored = 0
        self._has_drawn = self._has_complained = False

    def observe(self, state: Any) -> None:
        """Takes the weights that the next batch is drawn with."""
        self._models = self._models_of(state)

    def __next__(self) -> dict[str, np.ndarray]:
        (policy, reader), self._models = self._models, None
        data, count = self._data, self._data.batch_size // self._data.candidates
        chosen = [self._draw(number) for number in range(self._drawn, self._drawn + count)]
        captions = [text for text, _ in chosen for _ in range(data.candidates)]
        codes = self._codes(policy, captions)
        judged = self._judged(reader, captions, codes)
        self._drawn += count
        rows = np.array(self._rows)
        group = rows // data.candidates
        scored_R, advantages_R, rewards_RS = (
            a.reshape(data.batch_size, *a.shape[2:])[rows]
            for a in (judged.scored_PG, judged.advantages_PG, judged.rewards_PGS)
        )
        parts = [
            self._row("" if chosen[g][1] else captions[row], codes[row])
            for row, g in zip(rows, group, strict=True)
        ]
        arrays = {name: np.stack([part[name] for part in parts]) for name in FIELDS}
        arrays["counted"] *= scored_R[:, None]
        further = {
            "advantages": advantages_R,
            "rewards": rewards_RS,
            "deviations": judged.deviations_PS[group],
        }
        return arrays | {name: array.astype(np.float32) for name, array in further.items()}

    def _codes(self, policy: Bundle, captions: list[str]) -> list[np.ndarray]:
        """The images int32 [h, w]; the first batch says how it gets on."""
        data, rollouts = self._data, self._rollouts
        options = modalities.Options(
            rollouts.sampling,
            rollouts.negative_prompt,
            first=self._drawn * data.candidates,
            batch_size=rollouts.batch_size,
            progress=None if self._has_drawn else lambda line: say(f"rollouts, {line}"),
        )
        sizes = [(data.height, data.width)] * len(captions)
        codes = modalities.draw_images(policy, captions, sizes, options)
        self._has_drawn = True
        return codes

    def _judged(self, reader: Bundle, captions: list[str], codes: list[np.ndarray]) -> Judged:
        """ValueError if no image of the batch can be scored: nothing would be learnt."""
        found = score_codes(reader, self._scorers, captions, codes)
        rewards_RS = np.stack([one.values_N for one in found], axis=-1)
        judged = judge(rewards_RS.reshape(-1, self._data.candidates, len(found)))
        reasons = [reason for one in found for reason in one.reasons.values()]
        if not judged.scored_PG.any():
            raise ValueError(f"none of {len(codes)} images has a score: {reasons[0]}")
        if reasons and not self._has_complained:
            say(f"images without a score are not learnt from, such as one: {reasons[0]}")
            self._has_complained = True
        self._images += len(codes)
        self._unscored += int((~judged.scored_PG).sum())
        return judged

    def _draw(self, number: int) -> tuple[str, bool]:
        """(text of prompt `number` of the stream, whether it is left out where it is learnt)."""
        epoch, place = divmod(number, len(self._prompts))
        text, share = self._prompts[int(self._order(epoch)[place])].text, self._data.null_prompt
        # Its own stream, so that a change of the share changes no order.
        drawn = _generator(self._data.seed, number, 1).random() if share else 1.0
        return text, bool(drawn < share)

    @functools.lru_cache(maxsize=2)  # noqa: B019 - as long-lived as the run
    def _order(self, epoch: int) -> np.ndarray:
        return _generator(self._data.seed, epoch, 0).permutation(len(self._prompts))

    def _row(self, caption: str, codes: np.ndarray) -> dict[str, np.ndarray]:
        built = self._grammar.build(Document((Text(caption), Image(codes))))
        answer = Answer(built.ids, built.classes == TokenClass.IMAGE)
        return row_of(answer, self._data.sequence_length, self._grammar.vocab.pad)

    def counts(self) -> dict[str, int]:
        """The images drawn since this process began, and those of them without a score."""
        return {"images": self._images, "unscored": self._unscored}

    def get_state(self) -> dict:
        """The position after the last batch, JSON-able: the number of prompts drawn for."""
        stream = repr((self._data.seed, self._data.null_prompt)).encode()
        texts = "\n".join(prompt.text for prompt in self._prompts).encode()
        return {
            "prompts": self._drawn,
            "stream": f"{zlib.crc32(stream):08x}",
            "contents": f"{zlib.crc32(texts):08x}",
        }

    def set_state(self, state: dict) -> None:
        """Continues after the batch at which `state` was taken, with batches of any size.

        ValueError for the state of other prompts (see `adapt_state`).
        """
        whats = {"stream": "another seed or null_prompt", "contents": "prompts that have changed"}
        self.check_position(state, whats)
        self._drawn = state["prompts"]

    def adapt_state(self, state: dict) -> dict:
        """A state for these prompts from one of others: the number of prompts stays."""
        return {**self.get_state(), "prompts": state["prompts"]}


def check_fits(
    data: RolloutData,
    rollouts: Rollouts,
    prompts: Sequence[Prompt],
    grammar: Grammar,
    max_context: int | None,
) -> None:
    """ValueError if a prompt with its image is longer than a row, or a row than the context."""
    if max_context is not None and data.sequence_length > max_context:
        raise ValueError(
            f"data.sequence_length is {data.sequence_length}, more than the {max_context} tokens "
            "that the model reads at once; expected at most that"
        )
    new = len(grammar.visual_layout("image", 1, data.height, data.width))

    def read(text: str, where: str) -> int:
        """Tokens that are read of a prompt with its image: all but the last."""
        try:
            return len(grammar.image_prompt(text, data.height, data.width)) + new - 1
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    longest, where = max((read(p.text, p.where), p.where) for p in prompts)
    if longest > data.sequence_length:
        raise ValueError(
            f"{where}: {longest} tokens to predict with its image, and prompts are never cut, so "
            f"data.sequence_length must be at least {longest}; it is {data.sequence_length}"
        )
    negative = read(rollouts.negative_prompt, "rollouts.negative_prompt")
    if rollouts.sampling.guided and max_context is not None and negative > max_context:
        raise ValueError(
            f"rollouts.negative_prompt: {negative} tokens are read with an image, more than the "
            f"context of {max_context}"
        )


def _generator(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))
