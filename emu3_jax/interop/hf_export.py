"""A trained model as a directory that transformers loads: AutoModel…from_pretrained(directory).

Three classes exist there: the language model with its vision tokenizer
(Emu3ForConditionalGeneration), and each of them alone (Emu3ForCausalLM, Emu3VQVAE). A directory
holds config.json and safetensors files. The text tokenizer has a format of its own there and is
not written.
"""

import itertools
import os
import pathlib

from emu3_jax.interop import language_model, vision_tokenizer
from emu3_jax.interop.safetensors_io import write_json, write_tensors
from emu3_jax.models.transformer import TransformerConfig
from emu3_jax.models.vision_config import VisionTokenizerConfig
from emu3_jax.vocab import Vocab

# Groups of every norm in transformers' vision tokenizer, where they are no config field.
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
      vocab: whose visual ids and EOL the vocabulary map names.
      max_context: `max_position_embeddings`.
      image_token: id of the placeholder of a picture in a prompt, unused otherwise.
      dtype: "float32" or "bfloat16".

    Raises:
      ValueError: sizes that transformers' classes do not have, or weights of another config.
    """
    visual = {
        f"<|visual token {code:06d}|>": vocab.visual_start + code
        for code in range(vocab.codebook_size)
    }
    config = {
        "architectures": ["Emu3ForConditionalGeneration"],
        "model_type": "emu3",
        "text_config": _text_config(language[0], vocab, max_context),
        "vq_config": _vision_config(vision[0]),
        "vocabulary_map": {"<image>": image_token, "<|extra_200|>": vocab.eol} | visual,
        "image_token_id": image_token,
        "tie_word_embeddings": False,
        "dtype": dtype,
    }
    text_pairs = language_model.hf_key_map(language[0])
    vision_pairs = vision_tokenizer.hf_key_map(vision[0])
    text = language_model.file_tensors(*language, dtype, text_pairs)
    pictures = vision_tokenizer.file_tensors(*vision, dtype, vision_pairs)
    write_tensors(path, itertools.chain(text, pictures.items()))
    write_json(pathlib.Path(path) / language_model.CONFIG_FILE, config)


def save_language_model(
    path: str | os.PathLike,
    language: tuple[TransformerConfig, dict],
    vocab: Vocab,
    max_context: int,
    dtype: str = "float32",
) -> None:
    """Writes the language model alone; arguments as `save_model`."""
    config = _text_config(language[0], vocab, max_context)
    config |= {"architectures": ["Emu3ForCausalLM"], "dtype": dtype}
    pairs = language_model.key_map(language[0])  # alone, the names are BAAI's
    write_tensors(path, language_model.file_tensors(*language, dtype, pairs))
    write_json(pathlib.Path(path) / language_model.CONFIG_FILE, config)


def save_vision_tokenizer(
    path: str | os.PathLike, vision: tuple[VisionTokenizerConfig, dict], dtype: str = "float32"
) -> None:
    """Writes the vision tokenizer alone; arguments as `save_model`."""
    config = _vision_config(vision[0]) | {"architectures": ["Emu3VQVAE"], "dtype": dtype}
    pairs = vision_tokenizer.hf_key_map(vision[0], prefix="")
    write_tensors(path, vision_tokenizer.file_tensors(*vision, dtype, pairs).items())
    write_json(pathlib.Path(path) / vision_tokenizer.CONFIG_FILE, config)


def _text_config(config: TransformerConfig, vocab: Vocab, max_context: int) -> dict:
    if config.head_dim * config.num_heads != config.hidden_size:
        raise ValueError(
            f"model.head_dim={config.head_dim} times model.num_heads={config.num_heads} must be "
            f"model.hidden_size={config.hidden_size} for transformers"
        )
    fields = {key: getattr(config, name) for key, name in language_model.CONFIG_KEYS.items()}
    theta = fields.pop("rope_theta")
    return fields | {
        "model_type": "emu3_text_model",
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": max_context,
        "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
        "tie_word_embeddings": False,
        "pad_token_id": vocab.pad,
        "bos_token_id": vocab.bos,
        "eos_token_id": vocab.eos,
    }


def _vision_config(config: VisionTokenizerConfig) -> dict:
    if config.norm_groups != GROUPS:
        raise ValueError(
            f"norm_groups={config.norm_groups} must be {GROUPS} for transformers, which has no "
            "other norms"
        )
    names = ("codebook_size", "embed_dim", "in_channels", "out_channels", "num_res_blocks")
    fields = {name: getattr(config, name) for name in names}
    renamed = {
        key: getattr(config, name)
        for key, name in vision_tokenizer.HF_CONFIG_KEYS.items()
        if name != "double_z"
    }
    return fields | {
        **renamed,
        "model_type": "emu3_vqgan",
        "channel_multiplier": list(config.ch_mult),
        "attn_resolutions": list(config.attn_resolutions),
        "temporal_downsample_factor": config.temporal_downsample_factor,
        "double_latent": False,
        "hidden_size": config.widths[-1],
        "num_attention_heads": 1,
        "attention_dropout": 0.0,
    }
