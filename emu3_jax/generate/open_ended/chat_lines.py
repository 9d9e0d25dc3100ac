"""A conversation line by line, at the keyboard or from a pipe."""

import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator

from emu3_jax.data import media
from emu3_jax.generate.modalities import Options
from emu3_jax.generate.open_ended.attached_images import encoded, read_pixels
from emu3_jax.generate.open_ended.conversation import Conversation, warning
from emu3_jax.interop.bundle import Bundle
from emu3_jax.sequence import Image, Turn
from emu3_jax.sequence.chat import without_period

HELP = """A line is a message. Lines that begin with / are commands:
/image PATH  attaches an image to the next message alone; several are read in order
/new         begins a new conversation
/quit        ends, as the end of the input does
/help        shows this
"""
PROMPT = "> "


def keyboard() -> Iterator[str]:
    """The lines of the standard input; asks for each if somebody types them."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    while True:
        try:
            yield input(PROMPT)
        except (EOFError, KeyboardInterrupt):
            print()
            return


def show(piece: str) -> None:
    """Prints a piece of text at once."""
    print(piece, end="", flush=True)


class Talk:
    """What the lines of one user do to a conversation."""

    def __init__(
        self,
        conversation: Conversation,
        read_image: Callable[[str], Image],
        say: Callable[[str], None] = show,
    ):
        """A conversation and its surroundings.

        Args:
          conversation: which goes on.
          read_image: the codes of an image file; ValueError names one that cannot be used.
          say: called with the pieces of all that is to be shown, line ends among them.
        """
        self._conversation, self._read_image, self._say = conversation, read_image, say
        self._images: list[Image] = []

    def run(self, lines: Iterable[str]) -> None:
        """Answers line by line until /quit or the end; errors are said, and the next line read."""
        for line in lines:
            line = line.strip()
            if line == "/quit":
                return
            try:
                self._line(line)
            except ValueError as error:
                self._say(f"{error}\n")
            except KeyboardInterrupt:
                self._say("\nStopped; the conversation is as it was before this message.\n")

    def _line(self, line: str) -> None:
        command, _, argument = line.partition(" ")
        if not line:
            return
        if not line.startswith("/"):
            self._ask(line)
        elif command == "/image":
            self._attach(argument.strip())
        elif line == "/new":
            self._conversation.clear()
            self._images.clear()
            self._say("A new conversation begins.\n")
        elif line == "/help":
            self._say(HELP)
        else:
            raise ValueError(f"There is no command {line!r}; /help shows them.")

    def _attach(self, path: str) -> None:
        if not path:
            raise ValueError("/image needs the path of an image, as in /image photo.png.")
        image = self._read_image(str(pathlib.Path(path).expanduser()))
        self._images.append(image)
        h, w = image.codes.shape
        self._say(f"{path} is attached to the next message, as {h}x{w} codes.\n")

    def _ask(self, text: str) -> None:
        # The template puts a period behind the question, as it did in training.
        images, self._images = tuple(self._images), []
        turn = Turn(without_period(text), media=images)
        is_begun = False

        def piece(text: str) -> None:
            nonlocal is_begun
            text = text if is_begun else text.lstrip()
            is_begun = is_begun or bool(text)
            self._say(text)

        self._conversation.ask(turn, piece)
        self._say("\n")


def converse(bundle: Bundle, options: Options, limits: media.PixelLimits) -> None:
    """A conversation with the standard input; images are resized to the limits."""
    if text := warning(bundle.learnt):
        show(f"Warning: {text}.\n")

    def read_image(file: str) -> Image:
        return encoded(bundle, read_pixels(file, limits, bundle.vision.config))

    if sys.stdin.isatty():
        show(HELP)
    Talk(Conversation(bundle, options), read_image).run(keyboard())
