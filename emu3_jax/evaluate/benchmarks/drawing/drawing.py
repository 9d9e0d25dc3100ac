"""What a benchmark of drawing or filming is: its prompts, its folder, and its result files.

Samples are written into exactly the folders and names that the authors' scorer takes. What the
scorer writes is read back, and every aggregate is computed again here. Scorers pass over missing
files without a word, which raises a mean; here a set that is not whole is an error.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

# What a scorer could take for a sample, or pass over although it was meant as one.
MEDIA = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".mp4", ".avi", ".mov", ".webm")
NAME_BYTES = 255  # the longest file name of ext4, XFS, APFS and NTFS
TOLERANCE = 1e-4  # between a printed figure and the same computed here; some print five decimals


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt that is drawn or filmed.

    Attributes:
      id: unique in the benchmark.
      text: the prompt as released.
      samples: how many are drawn of it, each with a seed of its own.
      kind: of the samples; images are PNG files, videos are MP4 files.
      attributes: what paths, result files and figures need; JSON.
    """

    id: str
    text: str
    samples: int
    kind: Literal["image", "video"] = "image"
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Results:
    """What a scorer gave, computed again.

    Attributes:
      scores: name of what is scored (an image, a grid, a dimension) → score, in the scorer's order.
      figures: name → number, in the scale of the authors; parts of a name are joined by "/".
      notes: sentences about the figures that a reader must know.
    """

    scores: Mapping[str, float]
    figures: Mapping[str, float]
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class DrawingBenchmark:
    """A benchmark of prompts.

    Attributes:
      read: (folder or file of the released prompts, version) → prompts in the released order. None
        stands for the shipped list, where there is one. Version "" is the usual one. ValueError
        with one sentence for data that is not as released, and for a prompt that the names of the
        files could not carry.
      path: (prompt, index of a sample) → its file, relative to the folder of the run.
      finish: (folder of the run, prompts) → None; checks that the folder holds the samples and no
        other image or clip, and writes what else the scorer needs. May be called again.
      results: (the scorer's result file or folder, prompts, whether a part of them is enough) →
        figures. ValueError for results that are not of these prompts, or not of all. None if the
        benchmark has no scorer of its own.
      headline: the figure that papers print; "" without `results`.
      versions: the others that `read` takes.
    """

    read: Callable[[pathlib.Path | None, str], Sequence[Prompt]]
    path: Callable[[Prompt, int], str]
    finish: Callable[[pathlib.Path, Sequence[Prompt]], None]
    results: Callable[[pathlib.Path, Sequence[Prompt], bool], Results] | None = None
    headline: str = ""
    versions: Sequence[str] = ()


def given(data: pathlib.Path | None, what: str) -> pathlib.Path:
    """`data`; ValueError if there is none for a benchmark whose prompts are not shipped."""
    if data is None:
        raise ValueError(f"the prompts are not shipped; data must name {what}")
    return data


def check_prompts(prompts: Sequence[Prompt], where: object) -> None:
    """ValueError for no prompt, an empty text, or the first id that occurs twice."""
    if not prompts:
        raise ValueError(f"{where} holds no prompt")
    seen = set()
    for prompt in prompts:
        if not prompt.text.strip():
            raise ValueError(f"{where}: the prompt {prompt.id} is empty")
        if prompt.id in seen:
            raise ValueError(f"{where}: the id {prompt.id!r} occurs twice; ids must differ")
        seen.add(prompt.id)


def check_file_name(text: str, ending: str, where: str) -> None:
    """ValueError for a prompt that cannot be the name of a file.

    Args:
      text: the prompt.
      ending: what follows it in the longest name, such as "_002999.png".
      where: file and row, for messages.
    """
    for sign in ("/", "\0"):
        if sign in text:
            raise ValueError(
                f"{where}: the prompt {text!r} has {sign!r}, which no file name can have, and the "
                "scorer reads the prompt from the name of the file"
            )
    length = len((text + ending).encode())
    if length > NAME_BYTES:
        raise ValueError(
            f"{where}: the prompt has {len(text)} characters; with {ending!r} the name of its file "
            f"has {length} bytes, more than the {NAME_BYTES} that file systems allow"
        )


def check_folder(
    folder: pathlib.Path,
    prompts: Sequence[Prompt],
    path: Callable[[Prompt, int], str],
    also: Iterable[str] = (),
) -> None:
    """ValueError unless the images and clips below `folder` are just the samples of the prompts.

    Args:
      folder: of the run.
      prompts: all that were drawn.
      path: of the benchmark.
      also: files that may be there too, such as grids.
    """
    expected = [path(prompt, sample) for prompt in prompts for sample in range(prompt.samples)]
    found = {
        file.relative_to(folder).as_posix()
        for file in folder.rglob("*")
        if file.suffix.lower() in MEDIA and file.is_file()
    }
    stray = sorted(found - set(expected) - set(also))
    if stray:
        raise ValueError(
            f"{folder / stray[0]} is no sample of this benchmark, and its scorer would pass over "
            f"it or miscount ({len(stray)} such files); names are like {expected[0]!r}"
        )
    missing = [name for name in expected if name not in found]
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} of {len(expected)} samples are missing, the first is "
            f"{missing[0]!r}; scorers leave out what is missing, which raises a mean"
        )


def check_whole(found: int, all_of: int, what: str, where: object, partial: bool) -> list[str]:
    """Notes for a mean over a part; ValueError if a part is not enough.

    Args:
      found: number of scored things.
      all_of: how many there should be.
      what: they are, in the plural.
      where: file, for the message.
      partial: whether a part is enough.
    """
    if found == all_of:
        return []
    if not partial or found > all_of or not found:
        raise ValueError(f"{where}: {found} {what} are scored, expected {all_of}")
    return [f"only {found} of {all_of} {what} are scored; figures are means over these"]


def compared(figures: Mapping[str, float], printed: Mapping[str, float], where: object) -> list:
    """A note for each figure that the scorer printed otherwise, beyond `TOLERANCE`."""
    return [
        f"{where} prints {value:g} for {name}; computed again it is {figures[name]:g}"
        for name, value in printed.items()
        if name in figures and abs(figures[name] - value) > TOLERANCE * max(1.0, abs(value))
    ]
