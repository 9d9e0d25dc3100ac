"""From a question to a prompt, and the likelihood of options."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_models

from emu3_jax.evaluate.benchmarks import asking
from emu3_jax.evaluate.benchmarks.benchmark import Question
from emu3_jax.progress import Progress
from emu3_jax.sequence import Image, Turn

ONE, TWO = (np.full((2, size), size, np.int32) for size in (2, 3))


@pytest.fixture(scope="module")
def bundle():
    return tiny_models.initial_bundle(codebook_size=16)


@pytest.mark.parametrize(
    "text, turn",
    [
        ("Is it?", Turn("Is it?", media=(Image(ONE), Image(TWO)))),
        ("It is so.", Turn("It is so", media=(Image(ONE), Image(TWO)))),
        ("In <image 2> is", Turn(("In ", Image(TWO), " is"), media=(Image(ONE),))),
        ("<image 2> <image 1>", Turn((Image(TWO), " ", Image(ONE)))),
        ("<image 1><image 1>", Turn((Image(ONE), Image(ONE)), media=(Image(TWO),))),
    ],
)
def test_prompts_are_those_of_the_released_chat_form(bundle, text, turn):
    asked = asking.ask(bundle, text, (ONE, TWO))
    np.testing.assert_array_equal(asked.ids, bundle.grammar.chat_prompt([turn]))


def test_what_is_shown_is_the_prompt_with_the_sizes_of_images(bundle):
    asked = asking.ask(bundle, "Is it red?", (TWO,))
    assert asked.shown == "You are a helpful assistant. USER: <image 2x3>Is it red?. ASSISTANT:"


def test_a_mark_without_an_image_is_an_error(bundle):
    with pytest.raises(ValueError, match="names <image 3>, and there are 2 images"):
        asking.ask(bundle, "<image 3>", (ONE, TWO))


def test_likelihoods_of_options_are_means_over_the_tokens_of_the_answer(bundle):
    question = Question("q", "Which?", (), "B", "choice", {"A": "cat", "B": "a dog", "C": "b"})
    asked = asking.ask(bundle, question.text, ())
    (found,) = asking.option_likelihoods(bundle, [asked], [question], 2, Progress())
    for letter, text in question.options.items():
        answer = [*bundle.grammar.text_ids(text), bundle.vocab.eos]
        ids = np.array([*asked.ids, *answer])
        logits = bundle.model.apply(bundle.variables, ids[None, :-1])[0, -len(answer) :]
        log_probabilities = jax.nn.log_softmax(logits.astype(np.float32))
        wanted = np.mean([log_probabilities[i, t] for i, t in enumerate(answer)])
        assert found[letter] == pytest.approx(wanted, abs=1e-5)
    assert asking.likeliest(found) == max(found, key=found.get)


def test_what_does_not_fit_is_an_error(bundle):
    short = dataclasses.replace(bundle, max_context=70)
    asked = asking.ask(short, "Which?", ())
    asking.check_length(short, asked)
    asking.check_length(short, asked, ["a"])
    with pytest.raises(
        ValueError, match="the prompt has 9[0-9] tokens, more than the context of 70"
    ):
        asking.check_length(
            short, asking.ask(short, "Which of these is it, do you think, or not?", ())
        )
    with pytest.raises(ValueError, match="the prompt and an option have [78][0-9] tokens"):
        asking.check_length(short, asked, ["a", "an option that is too long"])
