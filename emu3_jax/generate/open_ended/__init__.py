"""Answers whose form the model decides: conversations, and texts and images in turns."""

from emu3_jax.generate.open_ended.conversation import Conversation, chat
from emu3_jax.generate.open_ended.interleaving import InterleavedOptions, interleave

__all__ = ["Conversation", "InterleavedOptions", "chat", "interleave"]
