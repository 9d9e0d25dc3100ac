"""--help lists every key of every config, with default and description, from the dataclasses."""

import dataclasses
import os
import re
import subprocess
import sys
import typing

import pytest
from paths import ROOT

from emu3_jax.config import help as config_help
from emu3_jax.data.pixels.pixel_batches import CROPS, KINDS
from emu3_jax.data.tokens.mixture import DOCUMENT_TASKS, MixtureEntry
from emu3_jax.evaluate.registry import EVALUATORS
from emu3_jax.models.language.attention_kernels.choice import IMPLEMENTATIONS
from emu3_jax.models.language.transformer_config import REMAT, TransformerConfig
from emu3_jax.models.vision.quantizers import QUANTIZERS
from emu3_jax.preferences.preferences_config import PreferencesConfig
from emu3_jax.tokenize.rate import RateConfig
from emu3_jax.tokenize.tokenize_config import TokenizeConfig
from emu3_jax.train.tasks import registry

CONFIGS = {
    "tokenize": TokenizeConfig,
    "preferences": PreferencesConfig,
    "rate": RateConfig,
    **{name: registry.find(name).Config for name in registry.TASKS},
    **EVALUATORS,
}


def _sections(config):
    """The dataclass and those of all sections within it."""
    yield config
    for hint in typing.get_type_hints(config).values():
        for part in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(part):
                yield from _sections(part)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_field_of_every_config_has_a_description(name):
    lacking = [
        f"{section.__qualname__}.{field.name}"
        for section in _sections(CONFIGS[name])
        for field in dataclasses.fields(section)
        if not config_help.descriptions(section).get(field.name, ("", ""))[1]
    ]
    assert not lacking


@pytest.mark.parametrize("name", CONFIGS)
def test_descriptions_name_no_field_that_is_gone(name):
    unknown = {
        f"{section.__qualname__}.{key}"
        for section in _sections(CONFIGS[name])
        for key in config_help.descriptions(section)
        if key not in typing.get_type_hints(section)  # fields and class variables
    }
    assert not unknown


@pytest.mark.parametrize(
    ("config", "field", "values"),
    [
        (TransformerConfig, "remat", REMAT),
        (TransformerConfig, "attention", [*IMPLEMENTATIONS, "auto"]),
        (MixtureEntry, "task", DOCUMENT_TASKS),
        (CONFIGS["vision_tokenizer"], "model.quantizer", QUANTIZERS),
        (CONFIGS["vision_tokenizer"], "data.crop", CROPS),
        (CONFIGS["vision_tokenizer"], "data.groups.N.kind", KINDS),
    ],
)  # fmt: skip
def test_descriptions_name_every_choice(config, field, values):
    text = _text(config_help.listing({"": config}), field)
    assert not [value for value in values if not re.search(rf"\b{value}\b", text)]


def _text(listing, key):
    """The entry of a key, its title included."""
    first = rf"^  (?! )(?:[^:]*, )?{re.escape(key)}[ :]"
    entry = re.search(first + r"(?:.*\n      )*.*$", listing, re.MULTILINE)
    assert entry, key
    return " ".join(entry[0].split())


@dataclasses.dataclass(frozen=True)
class Part:
    """A section.

    Attributes:
      side: height and width
        in pixels.
    """

    side: int = 8


@dataclasses.dataclass(frozen=True)
class Whole:
    """A config.

    Attributes:
      name: what it is
        called.
      low, high: limits: in seconds.
      part: a section.
      parts: a list of them.

    Raises:
      ValueError: this is no key.
    """

    name: str
    low: float = 0.5
    high: float | None = None
    part: Part = Part(side=16)
    parts: tuple[Part, ...] = ()
    made: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Other:
    """A config that shares a section with the first.

    Attributes:
      name: another text.
      part: a section.
    """

    name: str
    part: Part = Part(side=16)


def test_a_listing_has_names_defaults_and_texts():
    assert config_help.listing({"whole": Whole}).splitlines() == [
        "  name (required): what it is called.",
        "  low (0.5), high (None): limits: in seconds.",
        "  part: a section.",
        "  part.side (16): height and width in pixels.",
        "  parts.N: a list of them.",
        "  parts.N.side (8): height and width in pixels.",
        "  made ({}):",
    ]


def test_what_all_configs_have_alike_comes_once():
    text = config_help.listing({"whole": Whole, "other": Other}, "task")
    first, whole, last = text.split("\n\n")
    assert first.splitlines()[:2] == ["Keys of every task:", "  part: a section."]
    assert whole.startswith("Keys of task whole:\n  name (required): what")
    assert last == "Keys of task other:\n  name (required): another text."


def _help(command, *arguments):
    result = subprocess.run(
        [sys.executable, "-m", f"emu3_jax.{command}", "--help", *arguments],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "nothing"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_train_lists_the_keys_of_every_task():
    """The platform does not exist: no device may be looked for."""
    text = _help("train")
    assert "steps between saves" in _text(text, "run.checkpoint.every (500)")
    assert "tokens" in _text(text, "data.sequence_length (required)")
    assert "pixels" in _text(text, "data.groups.N.size (required)")
    assert "steps between evaluations" in _text(text, "evaluation.N.every (1000)")
    assert text.count("run.steps (required)") == 1
    assert "--workdir: Run directory" in text


def test_train_restricts_the_keys_to_the_config_s_task():
    text = _help("train", "--config=vision_tokenizer_nano", "--config.run.steps=3")
    assert "loss.perceptual (0.0)" in text and "reconstruction" in text
    assert "data.mixture" not in text and "Keys of evaluator likelihood" not in text


def test_tokenize_lists_its_keys_with_defaults():
    text = _help("tokenize")
    assert "pixels" in _text(text, "min_pixels (262144), max_pixels (1048576)")
    assert "frames per second" in _text(text, "fps (0.0)")
