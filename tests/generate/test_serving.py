"""Requests of several threads in the batches of one model, against each alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from emu3_jax import sharding
from emu3_jax.generate import CancelledError, Sampling, modalities
from emu3_jax.generate.decoding import engine
from emu3_jax.generate.open_ended import Conversation
from emu3_jax.generate.serving import Serving
from emu3_jax.sequence import Image, Turn
from emu3_jax.train import weights


@pytest.fixture
def serving(tiny_bundle):
    with Serving(tiny_bundle, rows=3) as serving:
        yield serving


@pytest.fixture
def opened(monkeypatch):
    """The sessions that are opened."""
    found, original = [], engine.open_session

    def spy(*arguments):
        found.append(original(*arguments))
        return found[-1]

    monkeypatch.setattr(engine, "open_session", spy)
    return found


def draw(bundle, caption, size, sampling, **more):
    options = modalities.Options(sampling, **more)
    return modalities.draw_images(bundle, [caption] * 2, [size] * 2, options)


VISITS = [
    ("a", (2, 3), Sampling(guidance=2.0, top_k=20, seed=4)),
    ("bcd", (3, 2), Sampling(guidance=3.5, top_k=20, seed=5, temperature=0.7)),
    ("a", (2, 2), Sampling(top_k=20, seed=4)),
    ("e", (2, 3), Sampling(guidance=2.0, top_k=20, seed=9, decoder="jacobi", window=3)),
]


def test_each_visitor_gets_what_it_gets_alone(tiny_bundle, serving, opened):
    with ThreadPoolExecutor(len(VISITS)) as pool:
        visits = [pool.submit(draw, tiny_bundle, *v, served_by=serving) for v in VISITS]
        found = [visit.result() for visit in visits]
    for (caption, size, sampling), codes in zip(VISITS, found, strict=True):
        np.testing.assert_array_equal(codes, draw(tiny_bundle, caption, size, sampling))
    assert len([s for s in opened if s.plan.size == 3]) <= 3  # the first two share one


def test_who_comes_while_others_run_takes_a_free_row(tiny_bundle, serving):
    sampling = VISITS[0][2]
    late = []
    with ThreadPoolExecutor() as pool:

        def come(*_):
            if not late:
                late.append(pool.submit(draw, tiny_bundle, "z", (2, 2), sampling, **served))

        served = dict(served_by=serving)
        draw(tiny_bundle, "a", (9, 9), sampling, served_by=serving, on_row=come)
        found = late[0].result()
    np.testing.assert_array_equal(found, draw(tiny_bundle, "z", (2, 2), sampling))


def test_rows_are_told_with_the_codes_so_far(tiny_bundle, serving):
    calls = []
    options = dict(served_by=serving, on_row=lambda *call: calls.append(call))
    codes = draw(tiny_bundle, "a", (3, 2), VISITS[0][2], **options)
    for position, image in enumerate(codes):
        for row, (_, complete, rows, part) in enumerate(c for c in calls if c[0] == position):
            assert (complete, rows) == (row + 1, 3)
            np.testing.assert_array_equal(part[:complete], image[:complete])
            assert (part[complete:] == -1).all()


def test_who_leaves_makes_room(tiny_bundle, serving):
    sampling = VISITS[0][2]
    rows = []
    options = dict(served_by=serving, on_row=lambda *call: rows.append(call))
    with pytest.raises(CancelledError, match="cancelled: 0 of 2"):
        draw(tiny_bundle, "a", (9, 9), sampling, cancel=lambda: bool(rows), **options)
    assert serving.call(lambda: not serving._running)
    # Its rows are taken by others while a third goes on.
    left = threading.Event()

    def leave():
        with pytest.raises(CancelledError):
            draw(tiny_bundle, "b", (9, 9), sampling, served_by=serving, cancel=left.is_set)

    def stay(position, complete, *_):
        if complete == 3:
            left.set()

    thread = threading.Thread(target=leave)
    thread.start()
    codes = draw(tiny_bundle, "c", (9, 9), sampling, served_by=serving, on_row=stay)
    again = draw(tiny_bundle, "d", (2, 3), sampling, served_by=serving)
    thread.join()
    np.testing.assert_array_equal(codes, draw(tiny_bundle, "c", (9, 9), sampling))
    np.testing.assert_array_equal(again, draw(tiny_bundle, "d", (2, 3), sampling))


def test_a_conversation_is_served_alike(tiny_bundle, serving):
    turns = [Turn("Who?", media=(Image([[3, 4], [5, 6]]),)), Turn("why")]
    options = dict(sampling=Sampling(temperature=0), max_new=8)
    alone = Conversation(tiny_bundle, modalities.Options(**options))
    served = Conversation(tiny_bundle, modalities.Options(**options, served_by=serving))
    for turn in turns:
        pieces = []
        assert served.ask(turn, pieces.append) == alone.ask(turn) == "".join(pieces)
    stopped = modalities.Options(**options, served_by=serving, cancel=lambda: True)
    conversation = Conversation(tiny_bundle, stopped, alone.turns)
    with pytest.raises(CancelledError):
        conversation.ask(Turn("more"))
    assert conversation.turns == alone.turns


def test_a_mesh_serves_alike(tiny_directories, tiny_bundle):
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2), jax.devices()[:2])
    bundle, _ = weights.load_language_model(tiny_directories / "language", mesh=mesh)
    with Serving(bundle, rows=3, mesh=mesh) as serving:
        assert serving.rows == 4
        codes = draw(bundle, *VISITS[0], served_by=serving)
    np.testing.assert_array_equal(codes, draw(tiny_bundle, *VISITS[0]))


def test_calls_run_on_the_thread_of_the_model(serving):
    assert serving.call(threading.current_thread).name == "model"
    with pytest.raises(ZeroDivisionError):
        serving.call(lambda: 1 / 0)


def test_errors_reach_those_who_asked(tiny_bundle, serving, monkeypatch):
    with pytest.raises(ValueError, match="more than the context of"):
        draw(tiny_bundle, "a" * 500, (2, 3), VISITS[0][2], served_by=serving)

    def broken(*arguments):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "open_session", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            draw(tiny_bundle, "a", (2, 3), VISITS[0][2], served_by=serving)
    assert len(draw(tiny_bundle, "a", (2, 3), VISITS[0][2], served_by=serving)) == 2
