"""A directory with everything that generation needs: weights, vocabulary, text tokenizer.

Besides `config.json` and the safetensors files of the released layout it holds
  vocab.json            the token space;
  text_tokenizer.*      the text tokenizer: a SentencePiece model or a rank file (none for bytes);
                        the released one keeps its released name;
  bundle.json           schema, name of the text tokenizer, video format, fingerprints, and what the
                        model learnt.
A directory without `bundle.json` is read as released weights: the released vocabulary, with the
ranks of one of the files that the hub has beside the weights (`RANK_FILES`).
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from emu3_jax import vocab as vocab_lib
from emu3_jax.data.codec.fingerprint import check_same, vision_fingerprint
from emu3_jax.files import read_json, write_atomically, write_json
from emu3_jax.interop.formats.safetensors_io import CONFIG_FILE, replacing_model
from emu3_jax.interop.language import language_config, language_model
from emu3_jax.interop.vision import tokenizer_files
from emu3_jax.models.language.transformer import Transformer
from emu3_jax.models.vision.tokenizer import VisionTokenizer
from emu3_jax.sequence import Grammar
from emu3_jax.text import ByteTokenizer, QwenTiktoken, load_text_tokenizer
from emu3_jax.vocab import Vocab

SCHEMA = 1
BUNDLE_FILE = "bundle.json"
VOCAB_FILE = "vocab.json"
# The first comes with the released weights, the others with an -hf conversion.
RELEASED_RANKS = "emu3.tiktoken"
RANK_FILES = (RELEASED_RANKS, "vocab.json", "tokenizer.json")


class BundleError(ValueError):
    """A model directory that cannot be used; the message names the file and what was expected."""


class UnknownVocabularyError(BundleError):
    """A directory of weights without a vocabulary for its ids."""


@dataclasses.dataclass(frozen=True)
class Language:
    """The part of a bundle that is not weights.

    Attributes:
      vocab: the token space.
      grammar: order of tokens in documents, with the text tokenizer.
      vision_fingerprint: of the vision tokenizer whose codes the model was trained on, if known.
      max_context: the most tokens that the model may read at once: the length of its training rows
        (data.tokens.cutting), or of longer ones before it was tuned; None without a limit.
      media: how images and clips became codes ("min_pixels", "max_pixels", "fps", "max_frames"), as
        far as it is known.
      learnt: the tasks that it was trained on (of `data.tokens.mixture.DOCUMENT_TASKS`), sorted;
        None if not known, as of released weights and models made before this was recorded.
    """

    vocab: Vocab
    grammar: Grammar
    vision_fingerprint: str | None = None
    max_context: int | None = None
    media: Mapping[str, float] = dataclasses.field(default_factory=dict)
    learnt: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """A language model with all that generation needs.

    Attributes:
      model: the transformer.
      variables: {"params": …}, its weights.
      vocab: the token space.
      grammar: builds prompts and reads documents.
      vision: the vision tokenizer, or None if only codes are needed.
      vision_variables: its weights.
      vision_fingerprint: of the tokenizer that the model was trained with, if known.
      max_context: see Language.
      media: see Language.
      learnt: see Language.
    """

    model: Transformer
    variables: Any
    vocab: Vocab
    grammar: Grammar
    vision: VisionTokenizer | None = None
    vision_variables: Any = None
    vision_fingerprint: str | None = None
    max_context: int | None = None
    media: Mapping[str, float] = dataclasses.field(default_factory=dict)
    learnt: tuple[str, ...] | None = None


def save_language(path: str | os.PathLike, language: Language) -> None:
    """Writes vocab.json, the text tokenizer and bundle.json into the directory `path` (or gs://…).

    A training run calls this on its own directory, so that generation can use its checkpoints.
    """
    path = epath.Path(path)
    tokenizer = language.grammar.tokenizer
    if isinstance(tokenizer, ByteTokenizer):
        name = "bytes"
    elif isinstance(tokenizer, QwenTiktoken):
        is_released = language.vocab == vocab_lib.released()
        name = RELEASED_RANKS if is_released else "text_tokenizer.tiktoken"
        write_atomically(path / name, tokenizer.rank_file)
    else:
        name = "text_tokenizer.model"
        write_atomically(path / name, epath.Path(tokenizer.path).read_bytes())
    write_json(path / VOCAB_FILE, language.vocab.to_dict())
    write_json(
        path / BUNDLE_FILE,
        {
            "schema": SCHEMA,
            "text_tokenizer": name,
            "text_fingerprint": tokenizer.fingerprint,
            "video_format": language.grammar.video_format,
            "vision_fingerprint": language.vision_fingerprint,
            "max_context": language.max_context,
            "media": dict(language.media),
            "learnt": language.learnt,
        },
    )


def load_language(path: str | os.PathLike) -> Language:
    """The inverse of `save_language`; for released weights, the released language.

    Raises:
      BundleError: a file is missing, unreadable, or belongs to another vocabulary;
        UnknownVocabularyError for weights without one.
    """
    path = epath.Path(path)
    if not path.is_dir():
        raise BundleError(f"{path} is not a directory; expected one that holds a model.")
    if not (path / BUNDLE_FILE).exists():
        return _released_language(path)
    stored = read_json(path / BUNDLE_FILE)
    if stored.get("schema") != SCHEMA:
        raise BundleError(
            f"{path / BUNDLE_FILE} has schema {stored.get('schema')}; expected {SCHEMA}."
        )
    vocab = _stored_vocab(path)
    name = stored["text_tokenizer"]
    tokenizer = load_text_tokenizer(name if name == "bytes" else path / name)
    trained_with = stored["text_fingerprint"]
    check_same(
        "text tokenizer",
        {f"{path / name} is": tokenizer.fingerprint, f"{path} was trained with": trained_with},
    )
    return Language(
        vocab,
        Grammar(vocab, tokenizer, video_format=stored["video_format"]),
        stored["vision_fingerprint"],
        stored["max_context"],
        stored.get("media", {}),
        _learnt(stored),
    )


def read_learnt(path: str | os.PathLike) -> tuple[str, ...] | None:
    """`Language.learnt` of a directory; None for weights without a bundle.json."""
    file = epath.Path(path) / BUNDLE_FILE
    return _learnt(read_json(file)) if file.exists() else None


def read_max_context(path: str | os.PathLike) -> int | None:
    """`Language.max_context` of a directory; None for one that does not state it."""
    path = epath.Path(path)
    if (path / BUNDLE_FILE).exists():
        return read_json(path / BUNDLE_FILE)["max_context"]
    if (path / CONFIG_FILE).exists():
        return language_config.read_further(path).get("max_position_embeddings")
    return None


def _learnt(stored: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = stored.get("learnt")
    return None if names is None else tuple(names)


def _released_language(path: pathlib.Path) -> Language:
    """The language of a directory of released weights."""
    size, vocab = language_config.read_transformer_config(path).vocab_size, vocab_lib.released()
    ranks = next((path / name for name in RANK_FILES if (path / name).exists()), None)
    if ranks is None:
        raise UnknownVocabularyError(
            f"{path} has neither {BUNDLE_FILE} (a model of this package) nor one of "
            f"{', '.join(RANK_FILES)} (released weights); put {RELEASED_RANKS} there, the rank "
            "file that the hub has beside the released weights."
        )
    if size != vocab.size:
        raise UnknownVocabularyError(
            f"{path / 'config.json'} has vocab_size {size}; the released vocabulary has "
            f"{vocab.size}."
        )
    further = language_config.read_further(path)
    grammar = Grammar(vocab, QwenTiktoken(ranks))
    return Language(vocab, grammar, None, further.get("max_position_embeddings"))


def read_vocab(path: str | os.PathLike) -> Vocab:
    """The token space of a directory; does not need its text tokenizer."""
    path = pathlib.Path(path)
    if (path / BUNDLE_FILE).exists():
        return _stored_vocab(path)
    if language_config.read_transformer_config(path).vocab_size == vocab_lib.released().size:
        return vocab_lib.released()
    raise UnknownVocabularyError(
        f"{path} has neither {BUNDLE_FILE} nor the released vocabulary's size."
    )


def _stored_vocab(path: pathlib.Path) -> Vocab:
    try:
        return Vocab.from_dict(read_json(path / VOCAB_FILE))
    except (TypeError, ValueError) as error:
        raise BundleError(f"{path / VOCAB_FILE} is not a vocabulary: {error}") from error


def load_bundle(
    path: str | os.PathLike,
    vision_tokenizer_path: str | os.PathLike | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Bundle:
    """Reads a model directory and, if given, the directory of its vision tokenizer.

    With a mesh, the language model's weights are read onto it, tensor by tensor; without one they
    stay on the host.

    Raises:
      BundleError: something is missing, or the two were not trained together.
    """
    language = load_language(path)
    config, params = language_model.load(path, mesh=mesh)
    model = Transformer(config)
    return assemble(model, {"params": params}, language, vision_tokenizer_path, where=str(path))


def assemble(
    model: Transformer,
    variables: Any,
    language: Language,
    vision_tokenizer_path: str | os.PathLike | None = None,
    where: str = "the model",
) -> Bundle:
    """Makes a bundle of its parts and checks that they belong together."""
    if model.config.vocab_size != language.vocab.size:
        raise BundleError(
            f"{where} has {model.config.vocab_size} token ids, its vocabulary "
            f"{language.vocab.size}."
        )
    bundle = Bundle(
        model,
        variables,
        language.vocab,
        language.grammar,
        vision_fingerprint=language.vision_fingerprint,
        max_context=language.max_context,
        media=language.media,
        learnt=language.learnt,
    )
    if vision_tokenizer_path is None:
        return bundle
    config, vision_variables = tokenizer_files.load(vision_tokenizer_path)
    return with_vision(
        bundle, VisionTokenizer(config), vision_variables, f"{vision_tokenizer_path}", where
    )


def with_vision(
    bundle: Bundle,
    vision: VisionTokenizer,
    variables: Any,
    vision_where: str = "the vision tokenizer given",
    where: str = "the model",
) -> Bundle:
    """The bundle with a vision tokenizer; ValueError if the model was trained with another."""
    codes = vision.config.codebook_size
    if codes != bundle.vocab.codebook_size:
        raise BundleError(
            f"{vision_where} has {codes} codes; {where} was trained with "
            f"{bundle.vocab.codebook_size}."
        )
    check_vision_tokenizer(bundle, vision, variables, vision_where, where)
    return dataclasses.replace(bundle, vision=vision, vision_variables=variables)


def check_same_language(first: Language, second: Language, where: str, other: str) -> None:
    """ValueError naming the first thing in which the ids of two languages mean different things.

    Args:
      first, second: what is compared; what one of them does not state fits everything.
      where, other: what the message calls them.
    """
    pairs = {
        "vocabulary": (first.vocab.fingerprint, second.vocab.fingerprint),
        "text tokenizer": tuple(x.grammar.tokenizer.fingerprint for x in (first, second)),
        "video format": (first.grammar.video_format, second.grammar.video_format),
        "vision tokenizer": (first.vision_fingerprint, second.vision_fingerprint),
    }
    for name in sorted(first.media.keys() & second.media.keys()):
        pairs[name] = (first.media[name], second.media[name])
    for what, (theirs, ours) in pairs.items():
        if theirs is not None and ours is not None:
            check_same(what, {f"{where} has": str(theirs), f"the {other} has": str(ours)})


def check_vision_tokenizer(
    language: Language | Bundle,
    vision: VisionTokenizer,
    variables: Any,
    vision_where: str,
    where: str,
) -> None:
    """ValueError if the model is known to have been trained with another vision tokenizer."""
    expected = language.vision_fingerprint
    if expected:
        found = vision_fingerprint(vision.config, variables)
        stated = {f"{vision_where} is": found, f"{where} was trained with": expected}
        check_same("vision tokenizer", stated)


def save_bundle(path: str | os.PathLike, bundle: Bundle, dtype: str = "float32") -> None:
    """Writes the language model of a bundle as a directory, atomically.

    An earlier model is replaced at the end. `dtype` is the type in the file.
    """
    vocab = bundle.vocab
    extra = {f"{role}_token_id": getattr(vocab, role) for role in vocab_lib.ROLES}
    if bundle.max_context is not None:
        extra["max_position_embeddings"] = bundle.max_context
    with replacing_model(path) as folder:
        params = bundle.variables["params"]
        language_model.save(folder, bundle.model.config, params, dtype, extra)
        names = [field.name for field in dataclasses.fields(Language)]
        save_language(folder, Language(**{name: getattr(bundle, name) for name in names}))
