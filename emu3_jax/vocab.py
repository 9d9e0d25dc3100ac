"""The token space: which ids are text, which have a structural role, which are visual codes.

No other file of the package contains a token id. There are two layouts: the published Emu3 weights
were trained with `released()`; `small()` has the same roles for small models.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json

import numpy as np

ROLES = ("pad", "bos", "eos", "boi", "img", "eol", "eof", "eoi")


@dataclasses.dataclass(frozen=True)
class Vocab:
    """A layout of ids: text ids are 0..text_size-1, visual ids are one contiguous range.

    The roles have the paper's names (section 2.4) in brackets. ValueError if two of them share an
    id, or the id of a role is a text or visual id.

    Attributes:
      text_size: number of text ids.
      pad: fills rows.
      bos, eos: stand around a document.
      boi: opens a visual block [SOV].
      img: ends its meta text [SOT].
      eol, eof: end a row and a frame of codes [EOL, EOF].
      eoi: closes the block [EOV].
      visual_start: id of the first visual code.
      codebook_size: number of visual codes.
    """

    text_size: int
    pad: int
    bos: int
    eos: int
    boi: int
    img: int
    eol: int
    eof: int
    eoi: int
    visual_start: int
    codebook_size: int

    def __post_init__(self):
        if self.text_size < 1 or self.codebook_size < 1:
            raise ValueError(
                f"A vocabulary needs text_size >= 1 and codebook_size >= 1, "
                f"got {self.text_size} and {self.codebook_size}."
            )
        if self.visual_start < self.text_size:
            raise ValueError(
                f"visual_start is {self.visual_start}, inside the text ids 0..{self.text_size - 1}."
            )
        taken: dict[int, str] = {}
        for role in ROLES:
            token = getattr(self, role)
            if token in taken:
                raise ValueError(f"The roles {taken[token]} and {role} share the id {token}.")
            if token < self.text_size or self.visual_start <= token < self.visual_end:
                raise ValueError(f"The role {role} has the id {token}, a text or a visual id.")
            taken[token] = role

    @functools.cached_property
    def size(self) -> int:
        """Number of ids, without any padding for sharding: the largest id plus one."""
        return max(self.visual_end, *(getattr(self, role) + 1 for role in ROLES))

    @property
    def visual_end(self) -> int:
        """One past the last visual id."""
        return self.visual_start + self.codebook_size

    @functools.cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits, different for different layouts."""
        canonical = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]

    def is_visual(self, ids) -> np.ndarray:
        """Whether each id is a visual code; bool, the shape of `ids`."""
        ids = np.asarray(ids)
        return (ids >= self.visual_start) & (ids < self.visual_end)

    def is_text(self, ids) -> np.ndarray:
        """Whether each id is a text id; bool, the shape of `ids`."""
        ids = np.asarray(ids)
        return (ids >= 0) & (ids < self.text_size)

    def visual_ids(self, codes) -> np.ndarray:
        """Ids (int32) of codebook indices 0..codebook_size-1; ValueError outside that range."""
        codes = np.asarray(codes)
        if codes.size and (codes.min() < 0 or codes.max() >= self.codebook_size):
            wrong = codes[(codes < 0) | (codes >= self.codebook_size)].flat[0]
            raise ValueError(
                f"The visual code {wrong} is outside 0..{self.codebook_size - 1} of this codebook."
            )
        return (codes + self.visual_start).astype(np.int32)

    def codes(self, ids) -> np.ndarray:
        """Codebook indices (int32) of visual ids; ValueError for any other id."""
        ids = np.asarray(ids)
        visual = self.is_visual(ids)
        if not visual.all():
            wrong = int(ids[~visual].flat[0])
            raise ValueError(f"{self.name(wrong)} is not a visual token.")
        return (ids - self.visual_start).astype(np.int32)

    def name(self, token) -> str:
        """An id in words, for error messages; any integer is accepted."""
        token = int(token)
        for role in ROLES:
            if token == getattr(self, role):
                return f"{role.upper()} (id {token})"
        if 0 <= token < self.text_size:
            return f"text token {token}"
        if self.visual_start <= token < self.visual_end:
            return f"visual code {token - self.visual_start} (id {token})"
        if 0 <= token < self.size:
            return f"unused id {token}"
        return f"id {token}, outside the vocabulary of {self.size}"

    def placeholder(self) -> int:
        """The id that transformers puts in place of an image's codes.

        In the released layout `<|extra_0|>`, which it renames `<image>`; in others the least id
        that is not a text id, role or code. ValueError if every id has a use.
        """
        if self == released():
            return 151646
        roles = {getattr(self, role) for role in ROLES}
        for token in range(self.text_size, self.size):
            if token not in roles and not self.visual_start <= token < self.visual_end:
                return token
        raise ValueError(f"All {self.size} ids of this vocabulary are in use.")

    def to_dict(self) -> dict[str, int]:
        """The fields as plain integers, for JSON."""
        return {key: int(value) for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, int]) -> Vocab:
        """The inverse of `to_dict`; ValueError names missing and unknown keys."""
        known = {field.name for field in dataclasses.fields(cls)}
        if set(values) != known:
            missing, unknown = sorted(known - set(values)), sorted(set(values) - known)
            raise ValueError(f"Not a vocabulary: missing keys {missing}, unknown keys {unknown}.")
        return cls(**{key: int(value) for key, value in values.items()})


def released() -> Vocab:
    """The 184,622 ids of the published weights (tokenizer and configuration files of Emu3).

    151,643 byte-pair ranks, 3 chat marks and 205 extra marks of which four are used, 3 image marks,
    32,768 visual codes.
    """
    return Vocab(
        text_size=151643,
        pad=151643,
        bos=151849,
        eos=151850,
        boi=151852,
        img=151851,
        eol=151846,
        eof=151847,
        eoi=151853,
        visual_start=151854,
        codebook_size=32768,
    )


def small(text_size: int, codebook_size: int) -> Vocab:
    """Text ids, then the eight roles in the order of `ROLES`, then the visual codes."""
    roles = {role: text_size + index for index, role in enumerate(ROLES)}
    return Vocab(
        text_size=text_size,
        visual_start=text_size + len(ROLES),
        codebook_size=codebook_size,
        **roles,
    )
