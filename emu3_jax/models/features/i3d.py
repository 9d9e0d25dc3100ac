"""I3D on RGB, trained on Kinetics-400, as in Fréchet Video Distance: clips to 400 logits each.

Carreira and Zisserman 2017 (arXiv 1705.07750), figure 3, with the paddings of the original graph
("same", more at the end where the padding is odd); FVD: Unterthiner et al. 2018 (1812.01717).
"""

import jax

from emu3_jax.models.features.inception_blocks import (
    Units,
    block,
    convolution,
    max_pool,
    mean_pool,
    unit_names,
)
from emu3_jax.models.features.resizing import resized

SIDE = 224
# Time is halved three times, then averaged over two frames: shorter clips leave too few.
MIN_FRAMES = 9
LOGITS = "logits"
# (unit, stride), or the window and the strides of a max pool over time, height and width.
STEM = (
    ("Conv3d_1a_7x7", 2),
    ((1, 3, 3), (1, 2, 2)),
    ("Conv3d_2b_1x1", 1),
    ("Conv3d_2c_3x3", 1),
    ((1, 3, 3), (1, 2, 2)),
)
BRANCHES = ("b0", "b1a b1b", "b2a b2b", "max b3b")
# Blocks, and between them the windows of max pools that halve all sides.
BODY = (
    "Mixed_3b", "Mixed_3c", 3,
    "Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f", 2,
    "Mixed_5b", "Mixed_5c",
)  # fmt: skip
UNITS = tuple(step[0] for step in STEM if isinstance(step[0], str)) + tuple(
    name for step in BODY if isinstance(step, str) for name in unit_names(f"{step}.", BRANCHES)
)


def features(units: Units, pixels_BTHWC: jax.Array) -> jax.Array:
    """Logits, averaged over time.

    Args:
      units: from `interop.vision.feature_networks.load_i3d`: every name in UNITS, and LOGITS.
      pixels_BTHWC: float in [-1, 1], clips of any size (they are resized to SIDE) and of at least
        9 frames (FVD takes 16).

    Returns:
      float32 [B, 400], or the width of the units.

    Raises:
      ValueError: fewer frames.
    """
    if pixels_BTHWC.shape[1] < MIN_FRAMES:
        raise ValueError(
            f"I3D needs clips of at least {MIN_FRAMES} frames, got {pixels_BTHWC.shape[1]}"
        )
    x = resized(pixels_BTHWC, SIDE)
    for name, stride in STEM:
        if isinstance(name, str):
            x = jax.nn.relu(convolution(x, units[name], stride))
        else:
            x = max_pool(x, name, stride)
    for step in BODY:
        if isinstance(step, int):
            x = max_pool(x, (step,) * 3, (2,) * 3)
        else:
            x = block(units, f"{step}.", BRANCHES, x)
    x = mean_pool(x, (2, SIDE // 32, SIDE // 32), "VALID")
    return convolution(x, units[LOGITS]).mean((1, 2, 3))
