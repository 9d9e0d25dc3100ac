"""Records of preferences: one prompt, two images that differ; tasks without a use name them."""

import numpy as np
import pytest
from token_records import GRAMMAR, text, write_dataset

from emu3_jax.data.tokens.mixture import MixtureEntry, open_mixture
from emu3_jax.data.tokens.preference_pairs import documents_of
from emu3_jax.data.tokens.records import Counts, Record, RecordError, open_dataset
from emu3_jax.evaluate.language.token_documents import documents_by_task
from emu3_jax.sequence import Document, Image, LossWeights

GOOD, BAD = Image(np.arange(6).reshape(2, 3)), Image(np.arange(12).reshape(3, 4))
SCORES = {"chosen": {"clip": 0.3}, "rejected": {"clip": 0.1}}


def pair(key="p", chosen=GOOD, rejected=BAD, **attributes):
    return Record(key, "s", "preference", (text("a fox"), chosen, rejected), attributes)


def test_a_pair_is_stored_with_its_scores_and_sizes_may_differ():
    record = pair(scores=SCORES, source={"model": "m"})
    again = Record.from_bytes(record.to_bytes())
    assert again == record and again.attributes["scores"] == SCORES
    chosen, rejected = documents_of(again.kind, again.segments)
    assert chosen == Document((text("a fox"), GOOD)) and rejected.segments[1] == BAD
    assert documents_of("image", record.segments[:2]) == (chosen,)


@pytest.mark.parametrize(
    "segments, message",
    [
        ((text("a"), GOOD, Image(GOOD.codes.copy())), "chosen image and the rejected one have the"),
        ((text("a"), GOOD), "must be a Text and two Images, found Text, Image"),
        ((text("a"), text("b"), GOOD, BAD), "found Text, Text, Image, Image"),
        ((), "found nothing"),
    ],
)
def test_what_is_no_pair(segments, message):
    with pytest.raises(ValueError, match=message):
        Record("p", "s", "preference", segments)
    stored = Record("p", "s", "document", segments).to_bytes()
    with pytest.raises(RecordError, match=message):
        Record.from_bytes(stored.replace(b"\xa8document", b"\xaapreference"))


def test_the_length_of_a_pair_is_that_of_its_longer_document():
    lengths = [GRAMMAR.document_length(d) for d in documents_of("preference", pair().segments)]
    counts = Counts.of(lengths)
    assert lengths[0] < lengths[1]
    assert counts == Counts(1, sum(lengths), lengths[1], lengths[1])
    assert Counts.of([5], without_caption=True) == Counts(1, 5, 5, 5, 1)


def test_tasks_without_a_use_for_pairs_say_so(tmp_path):
    write_dataset(tmp_path, [pair()])
    assert open_dataset(tmp_path, GRAMMAR).records("preference")[0] == pair()
    with pytest.raises(RecordError, match="no records of kind 'image', only preference"):
        open_mixture([MixtureEntry(str(tmp_path), "text_to_image")], GRAMMAR, LossWeights(), 64, 0)
    with pytest.raises(ValueError, match="no records of which a document is made, only preference"):
        documents_by_task(tmp_path, GRAMMAR)


def test_likelihoods_pass_over_pairs_beside_other_records(tmp_path):
    image = Record("i", "s", "image", (text("a"), GOOD))
    write_dataset(tmp_path, [pair(), image])
    assert sorted(documents_by_task(tmp_path, GRAMMAR)) == ["image_to_text", "text_to_image"]
