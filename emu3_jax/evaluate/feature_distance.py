"""rFID, rFVD and their offline stand-in: do reconstructions look like pictures of the same kind?

Fréchet distances between the features of originals and of their reconstructions. Which there are
depends on the networks at hand:

  rfid      Inception v3 of FID, over stills; rfid_frames over the frames of clips
  rfvd      I3D, over clips; FVD's clips have 16 frames, and shorter ones play to and fro
  rfd_vgg   relu5_3 of the perceptual VGG16, mean over space, over stills; also rfd_vgg_frames.
            No other project reports it: it compares runs of this one only
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from emu3_jax import sharding
from emu3_jax.data import media, vision_codec
from emu3_jax.evaluate import frechet, items
from emu3_jax.evaluate.evaluator import Result, Subject
from emu3_jax.evaluate.frechet import Statistics
from emu3_jax.evaluate.reconstruction import reconstruct
from emu3_jax.evaluate.seams import of_length
from emu3_jax.models import i3d, inception
from emu3_jax.models.perceptual import vgg16_features
from emu3_jax.train import distributed

# Unterthiner et al. 2018 take clips of 16 frames.
FVD_FRAMES = 16


def _vgg_means(vgg, pixels_BHWC):
    """float32 [B, 512]: relu5_3, mean over space."""
    return vgg16_features(vgg, pixels_BHWC)[-1].mean((1, 2))


@dataclasses.dataclass(frozen=True)
class Network:
    """One network at hand.

    Attributes:
      metric: name of the distance.
      weights: the first argument of `features`.
      features: (weights, float [B, ...] in [-1, 1]) → float [B, D]; compiled once a shape.
      resized: what is done first, so that one program serves every size.
      clips: whether it reads clips; otherwise pictures.
    """

    metric: str
    weights: Any
    features: Callable
    resized: Callable = lambda pixels: pixels
    clips: bool = False

    def fingerprint(self) -> str:
        """Hash of the metric's name and of the weights."""
        digest = hashlib.sha256(self.metric.encode())
        for leaf in jax.tree.leaves(self.weights):
            digest.update(np.ascontiguousarray(leaf))
        return digest.hexdigest()


def networks(subject: Subject) -> list[Network]:
    """The networks that the subject has weights for."""
    found = []
    if subject.inception is not None:
        found.append(Network("rfid", subject.inception, inception.features, inception.resized))
    if subject.i3d is not None:
        found.append(Network("rfvd", subject.i3d, i3d.features, i3d.resized, clips=True))
    if subject.perceptual is not None:
        found.append(Network("rfd_vgg", subject.perceptual[0]["vgg"], _vgg_means))
    return found


@dataclasses.dataclass(frozen=True)
class FrechetDistance:
    """Fréchet distances of the reconstructions of one split, under every network at hand.

    Attributes:
      split: the split whose pictures are reconstructed.
    """

    split: str = "validation"
    name: str = "frechet"

    @property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """See Evaluator."""
        return {"vision_tokenizer": (), "data": (self.split,), "feature_networks": ()}

    def run(self, subject: Subject) -> Result:
        """See Evaluator."""
        subject.need(self.name, *self.needs)
        everything = items.read_split(subject.data, self.split, subject.limit)
        if not everything:
            raise ValueError(f"{subject.data}: split {self.split!r} holds no image and no video")
        stills, clips = (
            reconstruct(subject, items.of_kind(everything, kind))[:2] for kind in ("image", "video")
        )
        frames = [[frame for clip in side for frame in clip] for side in clips]
        metrics, notes = {}, []
        for network in networks(subject):
            if network.clips:
                parts = {network.metric: [_long_enough(side) for side in clips]}
            else:
                parts = {network.metric: stills, f"{network.metric}_frames": frames}
            for metric, (originals, rebuilt) in parts.items():
                if originals:
                    sides = both_statistics(subject, network, originals, rebuilt)
                    metrics[metric] = frechet.distance(*sides)
                    metrics[f"{metric}_count"] = sides[0].count
                    notes += _doubts(metric, sides[0])
        if clips[0] and subject.i3d is not None and min(map(len, clips[0])) < FVD_FRAMES:
            notes.append(f"rfvd: clips below {FVD_FRAMES} frames were played to and fro")
        if subject.perceptual is not None:
            notes.append(f"rfd_vgg: {subject.perceptual[1]}")
        return Result(metrics, notes=notes)


def both_statistics(
    subject: Subject, network: Network, originals: Sequence, rebuilt: Sequence
) -> tuple[Statistics, Statistics]:
    """Statistics of both sides; those of the originals are kept in `subject.cache`, if it is set.

    The file is named by a hash of the network, its weights and the originals' pixels.
    """
    weights = sharding.on_devices(network.weights)
    extract = jax.jit(lambda *arguments: sharding.gathered(network.features(*arguments)))

    def statistics(pictures):
        done = subject.progress.counter(f"features for {network.metric}", len(pictures))
        batches = _features(network, extract, weights, pictures, subject.batch_size, done)
        return Statistics.streamed(batches)

    if subject.cache is None:
        return statistics(originals), statistics(rebuilt)
    key = _key(network, originals)
    path = pathlib.Path(subject.cache) / f"{network.metric}_{key[:16]}.npz"
    known = frechet.load(path, key)
    # All processes take the same way: a folder that one of them cannot see would keep it waiting.
    if not all(distributed.gather(known is not None)):
        known = statistics(originals)
        if distributed.is_first():
            frechet.save(path, known, key)
    return known, statistics(rebuilt)


def _features(network, extract, weights, pictures, batch_size: int, done) -> Iterator[np.ndarray]:
    for indices, batch in vision_codec.batches_of_one_shape(pictures, batch_size):
        pixels = network.resized(sharding.spread(media.to_model(batch), "batch"))
        features = extract(weights, pixels)
        yield np.asarray(features)[: len(indices)]
        done(len(indices))


def _key(network: Network, originals: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256(network.fingerprint().encode())
    for picture in originals:
        digest.update(str(picture.shape).encode())
        digest.update(np.ascontiguousarray(picture))
    return digest.hexdigest()


def _long_enough(clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [clip if len(clip) >= FVD_FRAMES else of_length(clip, FVD_FRAMES) for clip in clips]


def _doubts(metric: str, side: Statistics) -> list[str]:
    if side.enough:
        return []
    return [
        f"{metric} rests on {side.count} samples of {side.mean_D.size} dimensions and is too large;"
        " compare it at the same count only"
    ]
