"""A conversation about images, an answer at a time."""

from collections.abc import Callable, Sequence

from emu3_jax.demo.exhibit import Exhibit
from emu3_jax.generate import modalities, presets
from emu3_jax.generate.open_ended import Conversation
from emu3_jax.sequence import Image, Turn
from emu3_jax.sequence.chat import without_period

MAX_NEW = 256  # tokens of an answer
MOST_IMAGES = 8  # of a question


def describes_only(exhibit: Exhibit) -> bool:
    """Whether the model was never trained on chats, so that it describes images instead."""
    return not exhibit.can("chat")


def answer(
    exhibit: Exhibit,
    turns: Sequence[Turn],
    question: str,
    images: Sequence[str],
    show: Callable[[str], None],
    cancel: Callable[[], bool],
) -> Turn:
    """The next turn of a conversation.

    A model that was never trained on chats describes the last image that was given.

    Args:
      exhibit: the model.
      turns: those before, with their answers.
      question: what the visitor says.
      images: paths of uploaded images.
      show: called with the answer so far.
      cancel: True ends it.

    Raises:
      ValueError: an image that cannot be read, nothing to answer, or a context that is full.
      CancelledError: `cancel` said so.
    """
    if len(images) > MOST_IMAGES:
        raise ValueError(f"{len(images)} images are attached; expected at most {MOST_IMAGES}.")
    media = tuple(Image(exhibit.encode(exhibit.read(path))) for path in images)
    question = without_period(question.strip())
    said = ""

    def stream(piece: str) -> None:
        nonlocal said
        said += piece
        show(said.lstrip())

    if describes_only(exhibit):
        seen = [one for turn in turns for one in turn.media] + list(media)
        if not media and (not seen or not question):
            raise ValueError("This model describes images; attach one.")
        options = exhibit.options(
            presets.UNDERSTANDING,
            cancel,
            max_new=MAX_NEW,
            stream=lambda at, piece: stream(piece),
        )
        (text,) = modalities.caption_images(exhibit.bundle, [seen[-1].codes], options)
        return Turn(question, text.strip(), media)
    if not question and not media:
        raise ValueError("Write a question, or attach an image.")
    options = exhibit.options(presets.UNDERSTANDING, cancel, max_new=MAX_NEW)
    conversation = Conversation(exhibit.bundle, options, turns)
    conversation.ask(Turn(question, media=media), stream)
    return conversation.turns[-1]
