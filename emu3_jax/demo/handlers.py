"""What each button does: settings of a visitor in, HTML and sentences out. Needs no gradio."""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from emu3_jax.demo import views
from emu3_jax.demo.exhibit import Exhibit
from emu3_jax.demo.tabs import filming, imaging, inspecting, talking
from emu3_jax.demo.tabs.filming import Film
from emu3_jax.demo.tabs.imaging import Picture
from emu3_jax.demo.visitors import Visitors, states
from emu3_jax.files import in_words
from emu3_jax.foreign import MissingPackageError
from emu3_jax.generate import CancelledError, Sampling
from emu3_jax.sequence import Turn, Video

log = logging.getLogger(__name__)

# HTML of the result, HTML of the sentence below the buttons.
Shown = tuple[str, str]
# And the codes. None as HTML: what is shown stays.
Filmed = tuple[str | None, str, Video | None]


def failure(error: BaseException) -> str:
    """The sentence, as HTML, for what went wrong; what a visitor cannot mend goes to the log."""
    if isinstance(error, CancelledError):
        return views.status("Stopped.")
    if isinstance(error, ValueError | MissingPackageError):
        return views.status(in_words(error), is_error=True)
    log.error("a request failed", exc_info=error)
    return views.status("The server failed at this; its log says why.", is_error=True)


class Handlers:
    """The buttons of one page. A visitor is known by a text, such as the session of the browser."""

    def __init__(self, exhibit: Exhibit, visitors: Visitors):
        self.exhibit, self.visitors = exhibit, visitors

    def draw(
        self,
        visitor: str,
        prompt: str,
        size: str,
        count: float,
        guidance: float,
        temperature: float,
        decoder: str,
        seed: float | None,
    ) -> Iterator[Shown]:
        """Images of a caption, again and again until all rows are drawn."""
        began, shown = time.monotonic(), ""
        try:
            sampling = self._sampling(guidance, temperature, decoder, seed)
            asked = (prompt, size, int(count or 0), sampling)
            for pictures in self._states(visitor, "draw", imaging.draw, *asked):
                shown = views.gallery(pictures, prompt)
                yield shown, views.status(_progress(pictures, time.monotonic() - began))
        except Exception as error:
            yield shown, failure(error)

    def film(
        self,
        visitor: str,
        prompt: str,
        first: str | None,
        size: str,
        frames: float,
        fps: float | None,
        guidance: float,
        temperature: float,
        seed: float | None,
    ) -> Iterator[Filmed]:
        """A clip of a caption, or of a first image."""
        try:
            sampling = self._sampling(guidance, temperature, "sequential", seed)
            pixels = self.exhibit.read(first) if first else None
            asked = (prompt, pixels, size, int(frames or 0), float(fps or 0), sampling)
        except Exception as error:
            yield "", failure(error), None
            return
        yield from self._films(visitor, prompt, filming.film, *asked)

    def extend(
        self,
        visitor: str,
        clip: Video | None,
        prompt: str,
        new: float,
        guidance: float,
        temperature: float,
        seed: float | None,
    ) -> Iterator[Filmed]:
        """The clip, and what follows it."""
        if clip is None:
            yield None, views.status("Film a clip first.", is_error=True), None
            return
        try:
            sampling = self._sampling(guidance, temperature, "sequential", seed)
        except Exception as error:
            yield None, failure(error), clip
            return
        asked = (clip, prompt, int(new or 0), sampling)
        yield from self._films(visitor, prompt, filming.extend, *asked)

    def say(
        self, visitor: str, turns: Sequence[Turn], question: str, images: Sequence[str]
    ) -> Iterator[tuple[str, str, tuple[Turn, ...]]]:
        """The answer so far, a sentence, and the turns that are answered."""
        turns = tuple(turns)
        try:
            for state in self._states(visitor, "chat", talking.answer, turns, question, images):
                if isinstance(state, Turn):
                    yield state.answer, "", (*turns, state)
                else:
                    yield state, "", turns
        except Exception as error:
            yield "", failure(error), turns

    def inspect(self, visitor: str, path: str | None, caption: str) -> Shown:
        """An image from inside."""
        del visitor
        if not path:
            return "", ""
        try:
            look = inspecting.look(self.exhibit, self.exhibit.read(path), caption)
            return views.inside(look), ""
        except Exception as error:
            return "", failure(error)

    def stop(self, visitor: str, tab: str | None = None) -> None:
        """Ends what a visitor waits for."""
        self.visitors.stop(visitor, tab)

    def _sampling(
        self, guidance: float, temperature: float, decoder: str, seed: float | None
    ) -> Sampling:
        if seed is None or seed != int(seed):
            raise ValueError(f"The seed is {seed}; expected a whole number.")
        numbers = dict(guidance=guidance, temperature=temperature, seed=int(seed))
        top_k = 0 if temperature == 0 else self.exhibit.sampling.top_k
        return Sampling(**numbers, decoder=decoder, top_k=top_k)

    def _states(self, visitor: str, tab: str, work: Callable[..., Any], *asked) -> Iterator[Any]:
        """The states of a piece of work, which ends when the visitor wants it no more."""
        stopped = self.visitors.begin(visitor, tab)
        call = functools.partial(work, self.exhibit, *asked)
        try:
            yield from states(lambda show: call(show, stopped.is_set))
        finally:
            stopped.set()
            self.visitors.end(visitor, tab, stopped)

    def _films(
        self, visitor: str, prompt: str, work: Callable[..., Film], *asked
    ) -> Iterator[Filmed]:
        before = asked[0] if isinstance(asked[0], Video) else None
        began, shown = time.monotonic(), None if before else ""
        try:
            for film in self._states(visitor, "film", work, *asked):
                is_done = film.clip is not None
                if is_done or before is None:
                    shown = views.screen(film, prompt)
                seconds = f"{time.monotonic() - began:.1f} s"
                part = f"{film.done} of {film.rows} rows, {seconds}"
                words = f"Filmed in {seconds}." if is_done else part
                yield shown, views.status(words), film.clip if is_done else before
        except Exception as error:
            yield shown, failure(error), before


def _progress(pictures: Sequence[Picture], seconds: float) -> str:
    """How far the images are."""
    done, rows = sum(p.rows for p in pictures), sum(p.size[0] for p in pictures)
    if done == rows:
        return f"Drawn in {seconds:.1f} s."
    return f"{done} of {rows} rows, {seconds:.1f} s" if done else "Waiting for the first rows."
