"""LLaVA's conversation files: a row is {"id", "image" or "video" or neither, "conversations"}.

Two rules are known, both restated from the training code of their projects. Texts stay verbatim,
line breaks included, but for placeholders that the rules move.

  LLaVA-1.5   all placeholders of a message become one, in front of it and before a line break
              (haotian-liu/LLaVA, llava/train/train.py: preprocess_multimodal, preprocess_v1)
  LLaVA-NeXT  the only placeholder of a message, unless it is first, goes to the front likewise;
              several stay where they are; what LLaVA-OneVision was trained with
              (LLaVA-VL/LLaVA-NeXT, llava/train/train.py: preprocess_multimodal, preprocess_qwen)

In both, a first message that is not the human's is dropped, and `<image>` in a row without media is
text like any other. A clip has the placeholder `<image>` too.
"""

from collections.abc import Callable
from pathlib import Path

from emu3_jax.data.sources.layouts import talk
from emu3_jax.data.sources.layouts.row_source import media_of
from emu3_jax.data.sources.source import MEDIA, SourceError

PLACEHOLDER = "<image>"
# Left in answers of VideoInstruct-100k; LLaVA-NeXT removes it.
NOISE = "QA_GT_caption_based_noisy"

Rule = Callable[[object, bool], list[talk.Message]]


def llava_1_5(conversations: object, has_media: bool) -> list[talk.Message]:
    """The messages of a row by LLaVA-1.5's rule; SourceError for roles that do not alternate."""
    messages = talk.checked(conversations)
    if has_media:
        messages = [{**m, "value": _to_the_front(m["value"])} for m in messages]
    found = _numbered(messages, has_media)
    talk.check_alternation(found)
    return found


def llava_next(conversations: object, has_media: bool) -> list[talk.Message]:
    """The messages of a row by LLaVA-NeXT's rule; roles need not alternate."""
    messages = talk.checked(conversations)
    if has_media:
        messages = [{**m, "value": _lone_to_the_front(m["value"])} for m in messages]
    return _numbered(messages, has_media)


def _numbered(messages: list[dict[str, str]], has_media: bool) -> list[talk.Message]:
    if messages[0]["from"] != "human":
        messages = messages[1:]
    said = [(talk.ROLES[m["from"]], m["value"]) for m in messages]
    return talk.numbered(said, PLACEHOLDER if has_media else None)


def _to_the_front(text: str) -> str:
    if PLACEHOLDER not in text:
        return text
    return f"{PLACEHOLDER}\n{text.replace(PLACEHOLDER, '').strip()}".strip()


def _lone_to_the_front(text: str) -> str:
    if text.count(PLACEHOLDER) == 1 and not text.startswith(PLACEHOLDER):
        text = _to_the_front(text)
    return text.replace(NOISE, "")


def reader(rule: Rule) -> Callable[[dict, Path], dict]:
    """The reader of a `RowSource` by a rule."""

    def read(row: dict, folder: Path) -> dict:
        kinds = [kind for kind in MEDIA if kind in row]
        if len(kinds) > 1:
            raise SourceError('expected either "image" or "video", found both')
        messages = rule(row.pop("conversations", None), bool(kinds))
        if any(m.role == "assistant" and talk.placeholders([m]) for m in messages):
            raise SourceError(
                f'an answer has {PLACEHOLDER}; images in answers are read by "lumina:FILE"'
            )
        kind = kinds[0] if kinds else "image"
        media = media_of(row, kind, folder) if kinds else []
        return {"turns": talk.to_turns(messages, kind, media)}

    return read
