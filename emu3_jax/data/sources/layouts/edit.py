"""Rows of image editing: source images, an instruction, and the image to make of them.

The document is the sources, the instruction and the target, of which the target alone is trained
on, its EOS with it. Nobody has published Emu3's order; Emu3.5 puts images before the question too.
"""

from pathlib import Path

from emu3_jax.data.sources.layouts.row_source import media_of
from emu3_jax.data.sources.naming import found
from emu3_jax.data.sources.source import SourceError

# Names of the sources, the instruction and the target.
NAMES = (
    ("source", "instruction", "target"),
    ("source_img", "instruction", "target_img"),  # MagicBrush
    ("original_image", "edit_prompt", "edited_image"),  # InstructPix2Pix
)


def read(row: dict, folder: Path) -> dict:
    """The reader of a `RowSource`."""
    names = next((names for names in NAMES if all(name in row for name in names)), None)
    if names is None:
        expected = " or ".join(", ".join(map(repr, names)) for names in NAMES)
        raise SourceError(f"expected the keys {expected}, {found(row)}")
    source, instruction, target = names
    text = row.pop(instruction)
    if not isinstance(text, str) or not text.strip():
        raise SourceError(f'"{instruction}" must be a text, found {text!r}')
    sources, targets = media_of(row, source, folder), media_of(row, target, folder)
    if not sources or len(targets) != 1:
        raise SourceError(
            f'expected at least one "{source}" and one "{target}", found {len(sources)} and '
            f"{len(targets)}"
        )
    condition = [*({"image": image} for image in sources), {"text": text}]
    segments = (*({**part, "loss": False} for part in condition), {"image": targets[0]})
    return {"segments": segments}
