"""Flags of the tasks that complete what they read."""

from absl import flags

from emu3_jax.generate.job import FIRST_FRAMES, INSIDE

flags.disclaim_key_flags()

_FLAGS = flags.FLAGS


def define() -> None:
    """Defines the flags, which belong to the command that calls this."""
    flags.DEFINE_enum(
        "first_frame",
        INSIDE,
        FIRST_FRAMES,
        "image_to_video: the image is the first of the clip, or a block before it (tuned models).",
    )
    flags.DEFINE_integer(
        "context", None, "extend_video, predict_video: latent frames that are given; default: all."
    )
    flags.DEFINE_integer(
        "stride", None, "Of these: latent frames drawn at once; default: as many as are given."
    )
    flags.DEFINE_multi_string("mask", [], "inpaint: an image, white where it is to be drawn.")


def fields() -> dict:
    """The fields of a `Job` that the flags state."""
    return {
        "first_frame": _FLAGS.first_frame,
        "context": _FLAGS.context,
        "stride": _FLAGS.stride,
        "masks": tuple(_FLAGS.mask),
    }
