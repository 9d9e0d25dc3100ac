"""The order of tokens: documents to ids with loss weights and classes, and back; prompts."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import numpy as np

from emu3_jax.sequence import chat, formats
from emu3_jax.sequence.documents import (
    Document,
    EndOfTurn,
    GrammarError,
    Image,
    LossWeights,
    Segment,
    Sequence,
    Text,
    TokenClass,
    Video,
    canonical_number,
)
from emu3_jax.text import TextTokenizer, special_names
from emu3_jax.vocab import Vocab, released

_END = "the end of the sequence"
_WEIGHTS = LossWeights()
_MAX_HEADS = 4096


@functools.lru_cache(maxsize=128)
def _block_classes(vocab: Vocab, meta: formats.Meta) -> np.ndarray:
    """Classes of the layout's tokens, uint8 [N]."""
    visual = formats.layout(vocab, meta.format, meta.t, meta.h, meta.w).visual
    code = TokenClass.IMAGE if meta.format == formats.IMAGE else TokenClass.VIDEO
    return np.where(visual, code, TokenClass.STRUCTURE).astype(np.uint8)


class Grammar:
    """Builds and reads token sequences over one vocabulary, tokenizer and video format.

    `video_format`: "paper" or "univla", see `emu3_jax.sequence.formats`. Raises ValueError for
    another one, and if the tokenizer has more ids than the vocabulary has text ids.

    `special_names`: the released names of control tokens inside text become these tokens, as in the
    official code; a user's text can then break the grammar. ValueError for another vocabulary.
    """

    def __init__(
        self,
        vocab: Vocab,
        tokenizer: TextTokenizer,
        video_format: str = formats.PAPER,
        special_names: bool = False,
    ):
        if video_format not in formats.VIDEO_FORMATS:
            raise ValueError(
                f"The video format is {video_format!r}, "
                f"expected one of {', '.join(formats.VIDEO_FORMATS)}."
            )
        if tokenizer.size > vocab.text_size:
            raise ValueError(
                f"The text tokenizer has {tokenizer.size} ids, "
                f"expected at most the {vocab.text_size} text ids of the vocabulary."
            )
        if special_names and vocab != released():
            raise ValueError("Only the released vocabulary has names for its control tokens.")
        self.vocab, self.tokenizer, self.video_format = vocab, tokenizer, video_format
        self.special_names = special_names
        self._heads: dict[formats.Meta, np.ndarray] = {}

    # Building

    def text_ids(self, text: str) -> list[int]:
        """Ids of text; the name of a special token is text like any other, see `special_names`."""
        if self.special_names:
            return special_names.encode(text, self.tokenizer)
        return self.tokenizer.encode(text)

    def build(self, document: Document, weights: LossWeights = _WEIGHTS) -> Sequence:
        """BOS, the segments, EOS, each token with its loss weight and class.

        A segment whose loss flag is off has weight 0; EOS has the flag of the last segment.
        ValueError for codes outside the codebook and for stored text ids outside the text range.
        """
        parts = [self._segment(segment) for segment in document.segments]
        length = 2 + sum(len(ids) for ids, _ in parts)
        ids, classes = np.empty(length, np.int32), np.full(length, TokenClass.TEXT, np.uint8)
        trained = np.ones(length, bool)
        ids[0], ids[-1], trained[0] = self.vocab.bos, self.vocab.eos, False
        at = 1
        for segment, (part, part_classes) in zip(document.segments, parts, strict=True):
            after = at + len(part)
            ids[at:after], classes[at:after] = part, part_classes
            trained[at:after] = segment.loss
            at = after
        if document.segments:
            trained[-1] = document.segments[-1].loss
        return Sequence(ids, weights.table()[classes] * trained, classes)

    def document_length(self, document: Document) -> int:
        """Number of tokens that `build` would return."""
        return 2 + sum(self._length(segment) for segment in document.segments)

    def _segment(self, segment: Segment) -> tuple[np.ndarray, np.ndarray | int]:
        if isinstance(segment, Text):
            return self._text(segment), TokenClass.TEXT
        if isinstance(segment, EndOfTurn):
            return np.array([self.vocab.eos], np.int32), TokenClass.TEXT
        meta = self._meta(segment)
        layout = formats.layout(self.vocab, meta.format, meta.t, meta.h, meta.w)
        head = self._head(meta)
        ids = np.concatenate((head, layout.ids))
        ids[len(head) :][layout.visual] = self.vocab.visual_ids(segment.codes).ravel()
        classes = np.full(len(ids), TokenClass.STRUCTURE, np.uint8)
        classes[len(head) :] = _block_classes(self.vocab, meta)
        return ids, classes

    def _length(self, segment: Segment) -> int:
        if isinstance(segment, Text):
            return len(self._text(segment))
        if isinstance(segment, EndOfTurn):
            return 1
        meta = self._meta(segment)
        return (
            len(self._head(meta)) + meta.t * formats.frame_length(meta.format, meta.h, meta.w) + 1
        )

    def _text(self, segment: Text) -> np.ndarray:
        if segment.ids is None:
            return np.array(self.text_ids(segment.text), np.int32)
        ids = np.asarray(segment.ids, np.int32)
        if not self.vocab.is_text(ids).all():
            wrong = ids[~self.vocab.is_text(ids)][0]
            raise ValueError(f"The stored text ids contain {self.vocab.name(wrong)}.")
        return ids

    def _meta(self, segment: Image | Video) -> formats.Meta:
        if isinstance(segment, Image):
            return formats.Meta(formats.IMAGE, 1, *segment.codes.shape)
        return formats.Meta(self.video_format, *segment.codes.shape, segment.fps, segment.seconds)

    def _head(self, meta: formats.Meta) -> np.ndarray:
        """BOI, meta text, IMG; cached, since a corpus has few sizes and many images."""
        head = self._heads.get(meta)
        if head is None:
            ids = [self.vocab.boi, *self.tokenizer.encode(meta.text()), self.vocab.img]
            head = np.array(ids, np.int32)
            if len(self._heads) >= _MAX_HEADS:  # clips have arbitrarily many durations
                self._heads.clear()
            self._heads[meta] = head
        return head

    # Prompts

    def prompt(self, segments: Iterable[Segment]) -> np.ndarray:
        """BOS and the segments, without EOS: int32 [S]."""
        parts = [self._segment(segment)[0] for segment in segments]
        return np.concatenate(([np.int32(self.vocab.bos)], *parts)).astype(np.int32)

    def image_prompt(self, before: str | Iterable[Segment], h: int, w: int) -> np.ndarray:
        """BOS caption BOI "h*w" IMG, ready for h x w codes; the caption "" is the null prompt.

        `before` may also be segments: images to be edited and the instruction, in any order.
        """
        return self._visual_prompt(before, formats.Meta(formats.IMAGE, 1, h, w))

    def video_prompt(
        self,
        before: str | Iterable[Segment],
        t: int,
        h: int,
        w: int,
        fps: float = 0.0,
        seconds: float = 0.0,
    ) -> np.ndarray:
        """BOS caption BOI meta IMG, ready for a clip of t x h x w codes; `before` as for images."""
        fps, seconds = canonical_number(fps, "fps"), canonical_number(seconds, "seconds")
        meta = formats.Meta(self.video_format, t, h, w, fps, seconds)
        return self._visual_prompt(before, meta)

    def understanding_prompt(self, segments: Segment | Iterable[Segment]) -> np.ndarray:
        """BOS and the visual block(s), ready for text about them (base models; paper, 2.4)."""
        return self.prompt([segments] if isinstance(segments, Segment) else segments)

    def chat_prompt(self, turns: Iterable[chat.Turn], system: str = chat.SYSTEM) -> np.ndarray:
        """The turns so far, up to the answer of the last one, which must have none."""
        return self.prompt(chat.prompt_segments(turns, system))

    def _visual_prompt(self, before: str | Iterable[Segment], meta: formats.Meta) -> np.ndarray:
        segments = [Text(before)] if isinstance(before, str) else before
        return np.concatenate((self.prompt(segments), self._head(meta)))

    # Constraint masks for generation

    def visual_layout(self, kind: str, t: int, h: int, w: int) -> np.ndarray:
        """`allowed_after_img` for "image" (t = 1) or "video" in this grammar's format."""
        if kind not in ("image", "video"):
            raise ValueError(f'The kind of block is {kind!r}, expected "image" or "video".')
        return self.allowed_after_img(
            formats.IMAGE if kind == "image" else self.video_format, t, h, w
        )

    def allowed_after_img(
        self, format: str, t: int, h: int, w: int, length: int | None = None
    ) -> np.ndarray:
        """`emu3_jax.sequence.allowed_after_img` with this grammar's vocabulary."""
        return formats.allowed_after_img(self.vocab, format, t, h, w, length)

    # Reading

    def parse(self, ids, turns: bool = False) -> Document:
        """The document that `build` would turn into these ids (int [S]), every loss flag on.

        Texts keep their ids. EOS before the end is an `EndOfTurn` with `turns`, else an error.
        Raises GrammarError naming the first wrong position, the token found and the one expected.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1:
            raise ValueError(f"A token sequence has shape {ids.shape}, expected one dimension.")
        self._expect(ids, 0, self.vocab.bos)
        segments: list[Segment] = []
        other = np.append(np.flatnonzero(~self.vocab.is_text(ids)), len(ids))
        at = 1
        while True:
            stop = int(other[np.searchsorted(other, at)])
            if stop > at:
                text = ids[at:stop].astype(np.int32)
                segments.append(Text(self.tokenizer.decode(text.tolist()), ids=text))
            if stop == len(ids) or ids[stop] not in (self.vocab.boi, self.vocab.eos):
                raise GrammarError(stop, self._found(ids, stop), "text, BOI or EOS")
            if ids[stop] == self.vocab.boi:
                segment, at = self._parse_block(
                    ids, stop, int(other[np.searchsorted(other, stop + 1)])
                )
                segments.append(segment)
            elif stop + 1 == len(ids):
                return Document(tuple(segments))
            elif turns:
                segments.append(EndOfTurn())
                at = stop + 1
            else:
                raise GrammarError(stop + 1, self._found(ids, stop + 1), f"{_END} after EOS")

    def parse_chat(self, ids, system: str = chat.SYSTEM) -> tuple[chat.Turn, ...]:
        """The turns of a chat document; GrammarError for ids that are not a document, ValueError
        for a document that is not a chat."""
        return chat.parse_chat(self.parse(ids, turns=True), system)

    def _parse_block(self, ids: np.ndarray, boi: int, img: int) -> tuple[Image | Video, int]:
        """The block at `boi`, and the position after its EOI; `img` is the next token not text."""
        self._expect(ids, img, self.vocab.img)
        text_ids = ids[boi + 1 : img].tolist()
        meta = formats.read_meta(self.tokenizer.decode(text_ids), self.video_format)
        if meta is None or self.tokenizer.encode(meta.text()) != text_ids:
            found = repr(self.tokenizer.decode(text_ids)) if text_ids else self._found(ids, img)
            raise GrammarError(boi + 1, found, formats.spelled(self.video_format))
        body = ids[img + 1 :]
        t = meta.t or self._count_frames(body, meta)
        length = t * formats.frame_length(meta.format, meta.h, meta.w) + 1
        body = body[:length]
        allowed = self.allowed_after_img(meta.format, t, meta.h, meta.w, min(length, len(body) + 1))
        visual = allowed == formats.ANY_VISUAL
        short = len(body)
        right = np.where(visual[:short], self.vocab.is_visual(body), body == allowed[:short])
        if not right.all() or short < length:
            wrong = short if right.all() else int(np.argmin(right))
            expected = self._expected(allowed[wrong], wrong, meta, t)
            raise GrammarError(img + 1 + wrong, self._found(ids, img + 1 + wrong), expected)
        codes = self.vocab.codes(body[visual])
        if meta.format == formats.IMAGE:
            return Image(codes.reshape(meta.h, meta.w)), img + 1 + length
        codes = codes.reshape(t, meta.h, meta.w)
        return Video(codes, meta.fps, meta.seconds), img + 1 + length

    def _count_frames(self, body: np.ndarray, meta: formats.Meta) -> int:
        """Frames begun before the first token that no frame contains; at least 1."""
        v = self.vocab
        inside = v.is_visual(body) | (body == v.eol) | (body == v.eof)
        tokens = len(body) if inside.all() else int(np.argmin(inside))
        return max(1, -(-tokens // formats.frame_length(meta.format, meta.h, meta.w)))

    def _expect(self, ids: np.ndarray, position: int, token: int) -> None:
        if position >= len(ids) or ids[position] != token:
            raise GrammarError(position, self._found(ids, position), self.vocab.name(token))

    def _found(self, ids: np.ndarray, position: int) -> str:
        return self.vocab.name(ids[position]) if position < len(ids) else _END

    def _expected(self, allowed: int, offset: int, meta: formats.Meta, t: int) -> str:
        if allowed != formats.ANY_VISUAL:
            return self.vocab.name(allowed)
        frame, inside = divmod(offset, formats.frame_length(meta.format, meta.h, meta.w))
        row, column = divmod(inside, meta.w + (meta.format != formats.UNIVLA))
        return f"a visual code (frame {frame}, row {row}, column {column}, counted from 0)"
