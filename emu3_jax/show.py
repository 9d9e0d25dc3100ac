"""Show: python -m emu3_jax.show --tokens=DIR --output=PAGE.html [--vision_tokenizer=DIR] ...

Writes a page of records of a token dataset (a folder with dataset.json): images and clips decoded
from their codes, texts, and the token sequence that a model reads, by class. The dataset states
which tokenizers its ids and codes are of; others are refused.
"""

import pathlib

from absl import flags

from emu3_jax import command_line, shipped
from emu3_jax.data.codec.fingerprint import vision_fingerprint
from emu3_jax.data.tokens.records import open_dataset
from emu3_jax.files import write_atomically
from emu3_jax.report.dataset_page import build_page
from emu3_jax.sequence import Grammar
from emu3_jax.text import load_text_tokenizer
from emu3_jax.train import weights

TOKENS = flags.DEFINE_string("tokens", None, "The dataset: a folder with dataset.json.")
OUTPUT = flags.DEFINE_string("output", None, "The page to write, *.html.")
VISION = command_line.define_path(
    "vision_tokenizer",
    shipped.vision_tokenizer,
    "Decodes images and clips: weights, a run directory, or a shipped name.",
)
TEXT = flags.DEFINE_string(
    "text_tokenizer", "nano", "The text tokenizer: bytes, *.model, *.tiktoken, nano or styles."
)
RECORDS = flags.DEFINE_integer("records", 12, "Records of each kind, evenly spread.", lower_bound=1)


def main() -> None:
    """Reads the flags, writes the page."""
    for flag in (TOKENS, OUTPUT):
        if not flag.value:
            raise ValueError(f"--{flag.name} is not set; see --help")
    if pathlib.Path(OUTPUT.value).suffix != ".html":
        raise ValueError(f"--output must be a file *.html, not {OUTPUT.value!r}")
    info = open_dataset(TOKENS.value).info
    if info.vision_tokenizer and not VISION.value:
        raise ValueError(f"{TOKENS.value} has images or clips; --vision_tokenizer is not set")
    grammar = Grammar(info.vocabulary, load_text_tokenizer(TEXT.value), info.video_format)
    vision = weights.load_vision_tokenizer(VISION.value) if info.vision_tokenizer else None
    fingerprint = vision_fingerprint(vision[0].config, vision[1]) if vision else None
    dataset = open_dataset(TOKENS.value, grammar, fingerprint)
    write_atomically(OUTPUT.value, build_page(dataset, grammar, vision, RECORDS.value))
    print(OUTPUT.value)


if __name__ == "__main__":
    command_line.run(main, __doc__)
