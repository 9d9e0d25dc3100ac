"""config.json of a language model, in BAAI's and the -hf layout.

The fields of the model become a TransformerConfig. The others (maximum sequence length, ids, the
area of the images it was trained on) are `further` fields, which an export copies.
"""

import dataclasses
import os
import pathlib

from emu3_jax import vocab
from emu3_jax.files import read_json, write_json
from emu3_jax.interop.formats.safetensors_io import CONFIG_FILE, model_type
from emu3_jax.models.language.transformer import TransformerConfig

GENERATION_FILE = "generation_config.json"
HF_MODEL_TYPES = ("emu3", "emu3_text_model")

# Field of config.json -> field of TransformerConfig.
CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "norm_eps",
    "attention_dropout": "dropout",
}
# Defaults of missing fields: the same in the official code (configuration_emu3.py) and in
# transformers (4.48 to 5.23), which writes only the differences from them for a part of a model.
DEFAULTS = {
    "vocab_size": vocab.released().size,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-5,
    "attention_dropout": 0.1,
}
# Choices of the Llama family that this model does not have; another value in a config.json is an
# error.
CONSTANTS = {
    "hidden_act": "silu",
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
}
# Values of the released config.json.
RELEASED = {
    "model_type": "Emu3",
    "hidden_act": "silu",
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
# Further field -> its value if an -hf file lacks it. None: unknown.
FURTHER = {
    "max_position_embeddings": 9216,
    "initializer_range": 0.02,
    **{f"{role}_token_id": getattr(vocab.released(), role) for role in ("pad", "bos", "eos")},
    **{f"{role}_token_id": None for role in ("boi", "img", "eol", "eof", "eoi")},
    "image_area": None,
}
# Also in the released config.json; they point transformers to the code on the hub.
RELEASED_CODE = {
    "architectures": ["Emu3ForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_emu3.Emu3Config",
        "AutoModelForCausalLM": "modeling_emu3.Emu3ForCausalLM",
    },
}


def is_hf(path: str | os.PathLike) -> bool:
    """Whether a directory is in the -hf layout."""
    return model_type(path) in HF_MODEL_TYPES


def read_transformer_config(path: str | os.PathLike) -> TransformerConfig:
    """The config of a directory in BAAI's or the -hf layout.

    Raises:
        ValueError: names the file, the key and what was expected.
    """
    file = pathlib.Path(path) / CONFIG_FILE
    stored = DEFAULTS | plain_fields(read_json(file))
    if stored["num_key_value_heads"] is None:
        stored["num_key_value_heads"] = stored["num_attention_heads"]
    problems = unsupported(stored, CONSTANTS | RELEASED)
    if problems:
        raise ValueError(f"{file}: {'; '.join(problems)}")
    types = {field.name: field.type for field in dataclasses.fields(TransformerConfig)}
    fields = {}
    for key, name in CONFIG_KEYS.items():
        try:
            fields[name] = types[name](stored[key])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: {key} is {stored[key]!r}, expected a number") from error
    # The released file has no head_dim.
    head_dim = stored.get("head_dim") or fields["hidden_size"] // fields["num_heads"]
    try:
        return TransformerConfig(head_dim=head_dim, **fields)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def unsupported(fields: dict, constants: dict = CONSTANTS) -> list[str]:
    """Every field whose value differs from `constants`, as part of a sentence."""
    return [
        f"{key} is {fields[key]!r}, expected {expected!r}"
        for key, expected in constants.items()
        if fields.get(key, expected) != expected
    ]


def read_further(path: str | os.PathLike) -> dict:
    """The known fields of FURTHER of a directory."""
    whole = read_json(pathlib.Path(path) / CONFIG_FILE)
    stored = plain_fields(whole)
    known = {}
    if whole.get("model_type") in HF_MODEL_TYPES:
        known = {key: value for key, value in FURTHER.items() if value is not None}
        # The released conversion states it for the whole model, not for its text half.
        if "max_position_embeddings" in whole:
            known["max_position_embeddings"] = whole["max_position_embeddings"]
    return known | {key: stored[key] for key in FURTHER if stored.get(key) is not None}


def plain_fields(stored: dict) -> dict:
    """The fields of a config.json of either layout that it has, under BAAI's names."""
    fields = dict(stored)
    if stored.get("model_type") in HF_MODEL_TYPES:
        default = {} if stored["model_type"] == "emu3" else stored
        fields = (stored.get("text_config") or default) | {"model_type": RELEASED["model_type"]}
    scaling, rotation = fields.get("rope_scaling"), fields.get("rope_parameters")
    rotation = (scaling or {}) | (rotation or {})
    if "rope_theta" in rotation:
        fields["rope_theta"] = rotation["rope_theta"]
    plain = rotation.get("rope_type", rotation.get("type", "default")) == "default"
    return fields | {"rope_scaling": None if plain else rotation}


def write_released(
    path: str | os.PathLike, config: TransformerConfig, further: dict, dtype: str
) -> None:
    """Writes config.json and generation_config.json like those of the released directories."""
    stored = RELEASED_CODE | RELEASED
    stored |= {key: getattr(config, name) for key, name in CONFIG_KEYS.items()}
    stored |= {"initializer_range": FURTHER["initializer_range"], "torch_dtype": dtype}
    if config.head_dim * config.num_heads != config.hidden_size:
        stored["head_dim"] = config.head_dim
    write_json(pathlib.Path(path) / CONFIG_FILE, stored | further)
    write_generation(path, further)


def write_generation(path: str | os.PathLike, further: dict) -> None:
    """Writes generation_config.json: the ids of begin, end and padding."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {key: further[key] for key in keys if key in further}
    if ids:
        write_json(pathlib.Path(path) / GENERATION_FILE, ids)
