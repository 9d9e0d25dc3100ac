"""Conversations with a model, in the released chat template (`emu3_jax.sequence.chat`)."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from emu3_jax.generate.decoding import constraints
from emu3_jax.generate.decoding.requests import Request
from emu3_jax.generate.modalities import Options
from emu3_jax.generate.open_ended.continuing import Continuing
from emu3_jax.interop.bundle import Bundle
from emu3_jax.sequence import Turn
from emu3_jax.text import StreamDecoder

_OPTIONS = Options()


class Conversation:
    """Turns with a model; each reads only what is new in it.

    Attributes:
      turns: those that were answered.
    """

    def __init__(self, bundle: Bundle, options: Options = _OPTIONS, turns: Sequence[Turn] = ()):
        """A conversation that begins with answered turns.

        Args:
          bundle: the model; images and clips come as codes.
          options: `sampling`, `max_new` of an answer, and `first`, the number of the first answer;
            `served_by` and its `cancel`.
          turns: earlier questions and answers.

        Raises:
          ValueError: options that are not for texts.
        """
        if options.sampling.guided:
            raise ValueError("Guidance is for images; a conversation runs at guidance 1.")
        if options.candidates > 1:
            raise ValueError("Candidates are for images; a conversation has one answer a turn.")
        if options.max_new < 1:
            raise ValueError(f"max_new must be at least 1 token, not {options.max_new}.")
        self.turns = list(turns)
        self._bundle, self._options = bundle, options
        # A text takes one step a token, whatever the decoder.
        self._sampling = dataclasses.replace(options.sampling, decoder="sequential", window=None)
        mask = constraints.free_text(options.max_new)
        self._continuing = Continuing(
            bundle, self._sampling, [mask], quantized_cache=options.quantized_cache
        )

    def ask(self, turn: Turn, stream: Callable[[str], None] | None = None) -> str:
        """The answer to the next turn, which is then one of `turns`.

        Args:
          turn: a question without an answer.
          stream: called with the next piece of the answer while it is generated, in whole
            characters; the pieces together are the answer.

        Raises:
          ValueError: the turn has an answer, or the context of the model is full; the conversation
            is as it was.
          CancelledError: `options.cancel` said so; as it was too.
        """
        prompt = self._bundle.grammar.chat_prompt([*self.turns, turn])
        request = Request(
            prompt,
            max_new=self._room(len(prompt)),
            number=self._options.first + len(self.turns),
            label="The conversation",
        )
        vocab, tokenizer = self._bundle.vocab, self._bundle.grammar.tokenizer
        decoder = StreamDecoder(tokenizer)

        def show(ids: np.ndarray) -> None:
            if piece := decoder.feed(ids[vocab.is_text(ids)].tolist()):
                stream(piece)

        ids = self._answered(request, show if stream else None)
        if stream and (rest := decoder.finish()):
            stream(rest)
        answer = tokenizer.decode(ids[vocab.is_text(ids)].tolist())
        self.turns.append(dataclasses.replace(turn, answer=answer))
        return answer

    def _answered(
        self, request: Request, stream: Callable[[np.ndarray], None] | None
    ) -> np.ndarray:
        served_by, cancel = self._options.served_by, self._options.cancel
        if served_by is None:
            return self._continuing.answer(request, stream)
        show = stream and (lambda at, ids: stream(ids))
        return served_by.generate([request], self._sampling, show, cancel)[0]

    def clear(self) -> None:
        """Forgets all turns."""
        self.turns.clear()

    def _room(self, prompt: int) -> int:
        """The longest answer after a prompt of so many tokens."""
        context = self._bundle.max_context
        if context is None:
            return self._options.max_new
        if prompt > context:
            raise ValueError(
                f"The context of the model is full: the conversation with this question has "
                f"{prompt} tokens, more than {context}; begin a new one, or ask with less text and "
                "fewer images."
            )
        return min(self._options.max_new, context + 1 - prompt)


def chat(bundle: Bundle, turns: Sequence[Turn], options: Options = _OPTIONS) -> str:
    """The answer to the last of the turns, which has none; those before have theirs.

    `options.stream` is called as stream(0, next piece of the answer). Errors as in `Conversation`.
    """
    if not turns:
        raise ValueError("A conversation has no turn, expected at least one question.")
    stream = options.stream
    conversation = Conversation(bundle, options, turns[:-1])
    return conversation.ask(turns[-1], stream and (lambda piece: stream(0, piece)))


def warning(learnt: Sequence[str] | None) -> str:
    """A sentence if the model (`Bundle.learnt`) was never trained on chats, or ""."""
    if learnt is None or {"chat", "document"} & set(learnt):
        return ""
    return f"the model was never trained on chats; it was trained on {', '.join(learnt)}"
