"""Inception v3 as in Fréchet Inception Distance: images to 2,048 features each.

Szegedy et al. 2015 (arXiv 1512.00567) in the variant of FID's TensorFlow graph of 2015-12-05, as
its torch port has it. It differs from torchvision's in two points: mean pools do not count the
padding, and the last block pools by maximum.
"""

import jax

from emu3_jax.models.features.inception_blocks import (
    Units,
    block,
    convolution,
    max_pool,
    unit_names,
)
from emu3_jax.models.features.resizing import resized

# Side of the images that FID's network reads.
SIDE = 299
# (unit, stride, padding); None: a 3x3 max pool with stride 2.
STEM = (
    ("Conv2d_1a_3x3", 2, "VALID"),
    ("Conv2d_2a_3x3", 1, "VALID"),
    ("Conv2d_2b_3x3", 1, "SAME"),
    None,
    ("Conv2d_3b_1x1", 1, "VALID"),
    ("Conv2d_4a_3x3", 1, "VALID"),
    None,
)
_DOUBLE = "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"
_SEVEN = "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5"
_A = ("branch1x1", "branch5x5_1 branch5x5_2", _DOUBLE, "avg branch_pool")
_B = ("branch3x3/2", _DOUBLE + "/2", "max/2")
_C = ("branch1x1", "branch7x7_1 branch7x7_2 branch7x7_3", _SEVEN, "avg branch_pool")
_D = (
    "branch3x3_1 branch3x3_2/2",
    "branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4/2",
    "max/2",
)
_E = (
    "branch1x1",
    "branch3x3_1 branch3x3_2a|branch3x3_2b",
    "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a|branch3x3dbl_3b",
    "avg branch_pool",
)
BLOCKS = {
    "Mixed_5b": _A,
    "Mixed_5c": _A,
    "Mixed_5d": _A,
    "Mixed_6a": _B,
    "Mixed_6b": _C,
    "Mixed_6c": _C,
    "Mixed_6d": _C,
    "Mixed_6e": _C,
    "Mixed_7a": _D,
    "Mixed_7b": _E,
    "Mixed_7c": (*_E[:3], "max branch_pool"),
}
UNITS = tuple(step[0] for step in STEM if step) + tuple(
    name for prefix, branches in BLOCKS.items() for name in unit_names(f"{prefix}.", branches)
)


def features(units: Units, pixels_BHWC: jax.Array) -> jax.Array:
    """Means over space of the last block: pool3 of FID.

    Args:
      units: from `interop.vision.feature_networks.load_inception`: every name in UNITS.
      pixels_BHWC: float in [-1, 1], images of any size; they are resized to SIDE, as the torch
        port does.

    Returns:
      float32 [B, 2048], or the width of the units.
    """
    x = resized(pixels_BHWC, SIDE)
    for step in STEM:
        if step is None:
            x = max_pool(x, (3, 3), (2, 2), "VALID")
        else:
            name, stride, padding = step
            x = jax.nn.relu(convolution(x, units[name], stride, padding))
    for prefix, branches in BLOCKS.items():
        x = block(units, f"{prefix}.", branches, x)
    return x.mean((1, 2))
