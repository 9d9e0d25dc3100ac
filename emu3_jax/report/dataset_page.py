"""A page of records of a token dataset: images and clips decoded from their codes, texts, and the
token sequence that a model reads, by class."""

import collections
import html

import numpy as np

from emu3_jax.data.codec import vision_codec
from emu3_jax.data.tokens.preference_pairs import PREFERENCE, documents_of
from emu3_jax.data.tokens.records import Record, TokenDataset
from emu3_jax.figures import page
from emu3_jax.sequence import Document, Grammar, Image, Text, TokenClass, Video
from emu3_jax.vocab import ROLES

CLASSES = {
    TokenClass.TEXT: ("text", 0),
    TokenClass.IMAGE: ("image", 1),
    TokenClass.VIDEO: ("video", 2),
    TokenClass.STRUCTURE: ("structure", 4),
}
MOST_CODES = 12  # of an uninterrupted run of codes, before it is shortened
MOST_TOKENS = 160  # of a document
BATCH_SIZE = 8


def build_page(dataset: TokenDataset, grammar: Grammar, vision: tuple | None, count: int) -> str:
    """The page as HTML, with `count` records of each kind.

    Args:
      dataset: what to show.
      grammar: makes token sequences of its records.
      vision: (module, variables) of the vision tokenizer; None for a dataset of text alone.
      count: records of each kind; the first, the last, and evenly spaced ones between.
    """
    info, sections = dataset.info, []
    for kind, counts in info.counts.items():
        records = dataset.records(kind)
        chosen = np.unique(np.linspace(0, len(records) - 1, min(count, len(records))).astype(int))
        cards = [_card(record, grammar, vision) for record in (records[int(i)] for i in chosen)]
        lead = (
            f"{counts.records:,} records, {counts.tokens:,} tokens; the shortest has "
            f"{counts.shortest:,} tokens, the longest {counts.longest:,}."
        )
        sections.append(page.section(kind, kind, lead, *cards))
    names = page.legend(list(CLASSES.values()))
    total = sum(counts.records for counts in info.counts.values())
    summary = f"{total:,} records; {info.skipped:,} items of the corpus were skipped."
    top = page.head(dataset.path.name, summary, [(kind, kind) for kind in info.counts], names)
    return page.page(str(dataset.path), f"{top}<main>{''.join(sections)}</main>")


def _card(record: Record, grammar: Grammar, vision: tuple | None) -> str:
    names = _sides(record) if record.kind == PREFERENCE else [""] * len(record.segments)
    parts = [_segment(*pair, vision) for pair in zip(record.segments, names, strict=True)]
    shown = "".join(part for part in parts if part)
    streams, counts = [], collections.Counter()
    for document in documents_of(record.kind, record.segments):
        boxes, counted = token_boxes(document, grammar)
        streams.append(page.token_stream(boxes))
        counts.update(counted)
    words = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    about = f"{record.key} · {record.source} · {sum(counts.values()):,} tokens: {words}"
    return f'<h3>{html.escape(about)}</h3><div class="grid">{shown}</div>{"".join(streams)}'


def _sides(record: Record) -> list[str]:
    """What to call the segments of a preference pair: "chosen" and its scores, and so on."""
    stored = record.attributes.get("scores", {})
    named = {side: stored.get(side, {}).items() for side in ("chosen", "rejected")}
    sides = [
        ", ".join([side, *(f"{name} {value:.4g}" for name, value in scores)])
        for side, scores in named.items()
    ]
    return ["", *sides]


def _segment(segment: Text | Image | Video, name: str, vision: tuple | None) -> str:
    if isinstance(segment, Text):
        untrained = "" if segment.loss else ' <span class="mark unknown">not trained</span>'
        return f'<div class="card">{html.escape(segment.text)}{untrained}</div>'
    if not isinstance(segment, Image | Video):
        return ""
    (pixels,) = vision_codec.decode(vision, [segment.codes], BATCH_SIZE)
    size = " x ".join(map(str, segment.codes.shape))
    seconds = getattr(segment, "seconds", 0.0) or 1.0
    tag = f"{name}: {size} codes" if name else f"{size} codes"
    return f'<div class="card">{page.tagged(pixels, tag, size, False, seconds)}</div>'


def token_boxes(
    document: Document, grammar: Grammar
) -> tuple[list[tuple[str, int]], dict[str, int]]:
    """Tokens of a document as (text, index of a colour), shortened, and their number by class."""
    sequence, vocab = grammar.build(document), grammar.vocab
    roles = {getattr(vocab, role): role.upper() for role in ROLES}
    boxes, counts, run = [], collections.Counter(), 0
    for token, kind in zip(sequence.ids.tolist(), sequence.classes.tolist(), strict=True):
        name, color = CLASSES[TokenClass(kind)]
        counts[name] += 1
        run = run + 1 if name in ("image", "video") else 0
        if run > MOST_CODES or len(boxes) > MOST_TOKENS:
            if boxes[-1][0] != "…":
                boxes.append(("…", color))
        elif token in roles:
            boxes.append((roles[token], color))
        elif vocab.is_text(np.array([token]))[0]:
            boxes.append((grammar.tokenizer.decode([token]), color))
        else:
            boxes.append((str(token - vocab.visual_start), color))
    return boxes, dict(counts)
