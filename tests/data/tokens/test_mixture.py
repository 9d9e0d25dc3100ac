"""What of a record a task learns."""

import numpy as np
from token_records import GRAMMAR, text, write_dataset

from emu3_jax.data.tokens.mixture import MixtureEntry, open_mixture
from emu3_jax.data.tokens.records import Record
from emu3_jax.sequence import Image, LossWeights, chat_document
from emu3_jax.sequence import Turn as ChatTurn

LENGTH = 128


def test_the_loss_of_an_edit_is_that_of_its_last_image(tmp_path):
    """Its instruction and the images before have none; without a prompt these images stay."""
    images = [Image(np.full((2, 3), code)) for code in (1, 2, 3)]
    edit = (text("between"), images[0], text("make it red"), images[1], images[2])
    records = [Record("edit", "s", "document", edit)] * 4
    folder = str(write_dataset(tmp_path / "tokens", records))
    entry = MixtureEntry(folder, "document", null_prompt=0.5, train_condition=False)
    (dataset,) = open_mixture((entry,), GRAMMAR, LossWeights(), LENGTH, seed=0)
    lengths = set()
    for built in (dataset[n] for n in range(16)):
        *condition, last = GRAMMAR.parse(built.ids).segments
        assert [s for s in condition if isinstance(s, Image)] == images[:2]
        assert last == images[2]
        begin = np.flatnonzero(built.ids == GRAMMAR.vocab.boi)[-1]
        np.testing.assert_array_equal(built.weights > 0, np.arange(len(built.ids)) >= begin)
        lengths.add(len(condition) + 1)
    assert lengths == {3, 5}  # with and without its texts


def test_answers_of_a_chat_are_learnt_whatever_train_condition_says(tmp_path):
    chat = chat_document([ChatTurn("a", "b"), ChatTurn("c", "d")]).segments
    segments = tuple(text(s.text, s.loss) if hasattr(s, "text") else s for s in chat)
    folder = str(write_dataset(tmp_path / "tokens", [Record("c", "s", "chat", segments)]))
    weights = []
    for train_condition in (True, False):
        entry = MixtureEntry(folder, "chat", train_condition=train_condition)
        weights.append(open_mixture((entry,), GRAMMAR, LossWeights(), LENGTH, seed=0)[0][0].weights)
    assert weights[0].any()
    np.testing.assert_array_equal(*weights)


def test_of_a_pair_the_prompt_and_the_chosen_image_are_learnt(tmp_path):
    chosen, rejected = Image(np.arange(6).reshape(2, 3)), Image(np.arange(12).reshape(3, 4))
    write_dataset(tmp_path, [Record("p", "s", "preference", (text("a fox"), chosen, rejected))])
    entry = MixtureEntry(str(tmp_path), "chosen", train_condition=False)
    assert entry.ability == "text_to_image"
    (dataset,) = open_mixture((entry,), GRAMMAR, LossWeights(), LENGTH, seed=0)
    *prompt, image = GRAMMAR.parse(dataset[0].ids).segments
    assert [segment.text for segment in prompt] == ["a fox"]
    assert image == chosen
