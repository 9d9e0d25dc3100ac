"""A trained model as a directory that transformers loads: AutoModel…from_pretrained(directory).

transformers has three classes: the language model with its vision tokenizer
(Emu3ForConditionalGeneration), and each of them alone (Emu3ForCausalLM, Emu3VQVAE). A directory
holds config.json and safetensors files. The text tokenizer has another format in transformers and
is not written.
"""

import itertools
import os
import pathlib

from emu3_jax.files import write_json
from emu3_jax.interop.formats.safetensors_io import CONFIG_FILE, write_tensors
from emu3_jax.interop.language import language_config, language_model
from emu3_jax.interop.vision import tokenizer_files, vision_config
from emu3_jax.models.language.transformer import TransformerConfig
from emu3_jax.models.vision.tokenizer_config import VisionTokenizerConfig
from emu3_jax.vocab import Vocab

# Groups of every norm in transformers' vision tokenizer; not a config field there.
GROUPS = 32


def save_model(
    path: str | os.PathLike,
    language: tuple[TransformerConfig, dict],
    vision: tuple[VisionTokenizerConfig, dict],
    vocab: Vocab,
    max_context: int,
    image_token: int,
    dtype: str = "float32",
) -> None:
    """Writes both models as one.

    Args:
      path: directory, created if need be.
      language, vision: (config, params) and (config, variables).
      vocab: the token space; the vocabulary map lists its visual ids and EOL.
      max_context: `max_position_embeddings`.
      image_token: id of an image's placeholder in a prompt, otherwise unused.
      dtype: a name in DTYPES, or SAME for the arrays' own.

    Raises:
      ValueError: sizes that transformers' classes do not support, or weights of another config.
    """
    further = further_fields(vocab, max_context)
    config = whole_config(
        text_config(language[0], further),
        vq_config(vision[0]),
        vocabulary(vocab, image_token, vision[0].codebook_size),
    )
    text_pairs = language_model.hf_key_map(language[0])
    vision_pairs = tokenizer_files.hf_key_map(vision[0])
    text = language_model.file_tensors(*language, dtype, text_pairs)
    vision_tensors = tokenizer_files.file_tensors(*vision, dtype, vision_pairs)
    write_tensors(path, itertools.chain(text, vision_tensors))
    write_config(path, config, language_model.dtype_name(language[1], dtype))
    language_config.write_generation(path, further)


def save_language_model(
    path: str | os.PathLike,
    language: tuple[TransformerConfig, dict],
    vocab: Vocab,
    max_context: int,
    dtype: str = "float32",
) -> None:
    """Writes the language model alone; arguments as `save_model`."""
    further = further_fields(vocab, max_context)
    config = text_config(language[0], further) | {"architectures": ["Emu3ForCausalLM"]}
    pairs = language_model.key_map(language[0])  # a language model alone has BAAI's names
    write_tensors(path, language_model.file_tensors(*language, dtype, pairs))
    write_config(path, config, language_model.dtype_name(language[1], dtype))
    language_config.write_generation(path, further)


def save_vision_tokenizer(
    path: str | os.PathLike, vision: tuple[VisionTokenizerConfig, dict], dtype: str = "float32"
) -> None:
    """Writes the vision tokenizer alone; arguments as `save_model`."""
    config = vq_config(vision[0]) | {"architectures": ["Emu3VQVAE"]}
    pairs = tokenizer_files.hf_key_map(vision[0], prefix="")
    write_tensors(path, tokenizer_files.file_tensors(*vision, dtype, pairs))
    write_config(path, config, tokenizer_files.dtype_name(vision[1], dtype))


def write_config(path: str | os.PathLike, config: dict, dtype: str) -> None:
    """Writes config.json, including the type of the weights."""
    write_json(pathlib.Path(path) / CONFIG_FILE, config | {"dtype": dtype})


def further_fields(vocab: Vocab, max_context: int) -> dict:
    """The `further` fields of `text_config` for a model of this package."""
    ids = {f"{role}_token_id": getattr(vocab, role) for role in ("pad", "bos", "eos")}
    return {"max_position_embeddings": max_context} | ids


def vocabulary(vocab: Vocab, image_token: int, codebook_size: int) -> dict:
    """The fields of config.json that give transformers the ids of image tokens.

    ValueError if the vision tokenizer has another number of codes than the vocabulary.
    """
    if codebook_size != vocab.codebook_size:
        raise ValueError(
            f"the vision tokenizer has {codebook_size} codes; the language model's vocabulary has "
            f"{vocab.codebook_size}"
        )
    visual = {
        f"<|visual token {code:06d}|>": vocab.visual_start + code
        for code in range(vocab.codebook_size)
    }
    return {
        "vocabulary_map": {"<image>": image_token, "<|extra_200|>": vocab.eol} | visual,
        "image_token_id": image_token,
    }


def whole_config(text: dict, vision: dict, ids: dict) -> dict:
    """config.json of both models as one, from the sections and `vocabulary`."""
    return ids | {
        "architectures": ["Emu3ForConditionalGeneration"],
        "model_type": "emu3",
        "text_config": text,
        "vq_config": vision,
        "tie_word_embeddings": False,
    }


def text_config(config: TransformerConfig, further: dict) -> dict:
    """The section of a language model; ValueError if transformers' class does not support it."""
    if config.head_dim * config.num_heads != config.hidden_size:
        raise ValueError(
            f"model.head_dim={config.head_dim} times model.num_heads={config.num_heads} must be "
            f"model.hidden_size={config.hidden_size} for transformers"
        )
    if further.get("max_position_embeddings") is None:
        raise ValueError("the model states no maximum sequence length, which transformers needs")
    fields = {key: getattr(config, name) for key, name in language_config.CONFIG_KEYS.items()}
    # Versions before 5 read rope_theta by itself.
    rotation = {"rope_theta": config.rope_theta, "rope_type": "default"}
    return fields | {
        "model_type": "emu3_text_model",
        "hidden_act": "silu",
        "initializer_range": language_config.FURTHER["initializer_range"],
        "rope_parameters": rotation,
        "tie_word_embeddings": False,
        **further,
    }


def vq_config(config: VisionTokenizerConfig) -> dict:
    """The section of a vision tokenizer; ValueError as `text_config`."""
    if config.norm_groups != GROUPS:
        raise ValueError(
            f"norm_groups={config.norm_groups} must be {GROUPS} for transformers, which has no "
            "other norms"
        )
    if config.quantizer != "nearest":
        raise ValueError(
            f"quantizer={config.quantizer!r} must be 'nearest' for transformers, which has no "
            "other quantizer"
        )
    for level in config.attn_resolutions:
        if config.widths[level] != config.widths[-1]:
            raise ValueError(
                f"attention at level {level} has width {config.widths[level]}, expected that of "
                f"the last level, {config.widths[-1]}: transformers has no other attention"
            )
    names = {name: name for name in vision_config.HF_SAME} | vision_config.HF_CONFIG_KEYS
    fields = {key: getattr(config, name) for key, name in names.items() if name != "double_z"}
    return fields | {
        "model_type": "emu3_vqgan",
        "channel_multiplier": list(config.ch_mult),
        "attn_resolutions": list(config.attn_resolutions),
        "double_latent": False,
        "hidden_size": config.widths[-1],
        "num_attention_heads": 1,
        "attention_dropout": 0.0,
    }
