"""The buttons of the page, without the page."""

import dataclasses
import re
import time
from html import unescape

import numpy as np
import pytest
from PIL import Image

from emu3_jax.demo.handlers import Handlers
from emu3_jax.demo.tabs import filming, imaging, talking
from emu3_jax.demo.visitors import Visitors
from emu3_jax.generate import CancelledError, Sampling, modalities

SETTINGS = dict(size="3x4", count=2, guidance=2.0, temperature=1.0, decoder="sequential", seed=4)
FILMING = dict(size="2x2", frames=2, fps=4.0, guidance=2.0, temperature=1.0, seed=4)


def endless(exhibit, prompt, size, count, sampling, show, cancel):
    """A drawing that ends when it is cancelled."""
    show((imaging.Picture((2, 2)),))
    while not cancel():
        time.sleep(0.01)
    raise CancelledError({}, count)


@pytest.fixture
def handlers(exhibit):
    return Handlers(exhibit, Visitors())


@pytest.fixture
def photo(tmp_path):
    """The path of an image of 12 x 9 pixels."""
    path = tmp_path / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """States are shown as often as they come."""
    monkeypatch.setattr("emu3_jax.demo.visitors.LEAST_PAUSE", 0)
    monkeypatch.setattr("emu3_jax.demo.visitors.SHARE", 1e9)


def sentence(html):
    return unescape(re.sub("<[^>]*>", "", html))


def test_images_appear_row_by_row(exhibit):
    shown = []
    sampling = Sampling(guidance=2.0, seed=4, top_k=exhibit.sampling.top_k)
    asked = (exhibit, "a", "3x4", 2, sampling)
    pictures = imaging.draw(*asked, shown.append, lambda: False)
    rows = [[picture.rows for picture in state] for state in shown]
    assert rows[0] == [0, 0] and rows == sorted(rows) and len(rows) > 3
    options = modalities.Options(sampling)
    codes = modalities.text_to_image(exhibit.bundle, ["a"] * 2, 3, 4, options)
    np.testing.assert_array_equal([picture.codes for picture in pictures], codes)
    assert all(picture.pixels.shape == (6, 8, 3) for picture in pictures)
    assert all(picture.nats > 0 for picture in pictures)


def test_drawing_ends_with_all_images(handlers):
    *_, (html, words) = handlers.draw("v", "a <b>", **SETTINGS)
    assert html.count("<img") == 2 and "a &lt;b&gt;" in html and "likeliest" in html
    assert re.fullmatch(r"Drawn in \d+\.\d s\.", sentence(words)) and not len(handlers.visitors)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"prompt": "  "}, "Write what is to be drawn."),
        ({"size": "big"}, "The size is 'big'; expected rows x columns of codes"),
        ({"size": "0x3"}, "A size needs at least one code on each side, not 0x3."),
        ({"size": "0:3"}, "The ratio is '0:3'"),
        ({"size": "90x90"}, "more than the context of 200"),
        ({"count": 99}, "The number of images is 99; expected 1 to 8."),
        ({"count": None}, "The number of images is 0; expected 1 to 8."),
        ({"temperature": -1}, "temperature must be 0 (greedy) or positive, not -1."),
        ({"guidance": float("nan")}, "guidance must be at least 0"),
        ({"decoder": "magic"}, "decoder must be one of"),
        ({"seed": None}, "The seed is None; expected a whole number."),
        ({"seed": -3}, "seed must be from 0 to"),
    ],
)
def test_wrong_settings_are_named(handlers, fields, words):
    found = list(handlers.draw("v", **({"prompt": "a"} | SETTINGS | fields)))
    assert words in sentence(found[-1][1])
    assert 'class="says wrong"' in found[-1][1]


def test_a_failure_of_the_server_is_a_sentence_and_in_the_log(handlers, monkeypatch, caplog):
    def broken(*arguments):
        raise RuntimeError("secret /some/path")

    monkeypatch.setattr(imaging, "draw", broken)
    ((_, words),) = handlers.draw("v", "a", **SETTINGS)
    assert sentence(words) == "The server failed at this; its log says why."
    assert "secret" in caplog.text


def test_stop_ends_what_the_visitor_waits_for(handlers, monkeypatch):
    monkeypatch.setattr(imaging, "draw", endless)
    drawing = handlers.draw("v", "a", **SETTINGS)
    next(drawing)
    handlers.stop("other")
    handlers.stop("v", "film")
    assert len(handlers.visitors) == 1
    handlers.stop("v", "draw")
    ((_, words),) = drawing
    assert sentence(words) == "Stopped." and not len(handlers.visitors)


def test_who_leaves_in_between_waits_no_more(handlers, monkeypatch):
    monkeypatch.setattr(imaging, "draw", endless)
    drawing = handlers.draw("v", "a", **SETTINGS)
    next(drawing)
    drawing.close()
    assert not len(handlers.visitors)


def test_a_clip_is_filmed_and_goes_on(handlers, photo):
    *_, (html, words, clip) = handlers.film("v", "a", None, **FILMING)
    assert "<img" in html and clip.codes.shape == (2, 2, 2) and clip.seconds == 2.0
    for prompt in ("a", ""):
        *_, (html, words, longer) = handlers.extend("v", clip, prompt, 3, 2.0, 1.0, 4)
        assert longer.codes.shape == (5, 2, 2) and longer.seconds == 5.0
        np.testing.assert_array_equal(longer.codes[:2], clip.codes)
    *_, (_, _, begun) = handlers.film("v", "", photo, **FILMING)
    pixels = handlers.exhibit.read(photo)
    np.testing.assert_array_equal(begun.codes[0], handlers.exhibit.encode(pixels))


def test_frames_appear_as_they_are_filmed(exhibit):
    shown = []
    asked = (exhibit, "a", None, "3x2", 3, 4.0, Sampling(seed=1))
    film = filming.film(*asked, shown.append, lambda: False)
    counts = [0 if one.frames is None else len(one.frames) for one in shown]
    assert counts == sorted(counts) and set(counts) == {0, 4, 8, 12} and len(film.frames) == 12


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"prompt": ""}, "Write what is to be filmed, or give a first image."),
        ({"frames": 17}, "The latent frames are 17; expected 1 to 16."),
        ({"fps": None}, "The rate is 0 frames per second; expected above 0 to 120."),
        ({"first": "/nowhere/x.png"}, "x.png: the file is empty or gone; upload it again"),
        ({"seed": 0.5}, "The seed is 0.5; expected a whole number."),
    ],
)
def test_what_cannot_be_filmed_is_named(handlers, fields, words):
    found = list(handlers.film("v", **({"prompt": "a", "first": None} | FILMING | fields)))
    assert sentence(found[-1][1]) == words and found[-1][2] is None


def test_nothing_goes_on_without_a_clip(handlers):
    ((html, words, clip),) = handlers.extend("v", None, "a", 2, 2.0, 1.0, 4)
    assert html is None and clip is None and sentence(words) == "Film a clip first."


def test_a_conversation_has_turns(handlers, photo, monkeypatch):
    monkeypatch.setattr(talking, "MAX_NEW", 8)
    *_, (answer, words, turns) = handlers.say("v", (), "Who?", [photo])
    assert words == "" and turns[0].question == "Who?" and len(turns[0].media) == 1
    *_, (again, _, longer) = handlers.say("v", turns, "why", [])
    assert longer[0] is turns[0] and len(longer) == 2 and longer[1].answer == again
    ((answer, words, same),) = handlers.say("v", longer, " ", [])
    assert sentence(words) == "Write a question, or attach an image." and same == longer
    ((_, words, _),) = handlers.say("v", longer, "who", [photo] * 9)
    assert sentence(words) == "9 images are attached; expected at most 8."


def test_a_model_without_chats_describes(exhibit, photo):
    bundle = dataclasses.replace(exhibit.bundle, learnt=("image_to_text", "text_to_image"))
    only = Handlers(dataclasses.replace(exhibit, bundle=bundle), Visitors())
    assert talking.describes_only(only.exhibit) and not talking.describes_only(exhibit)
    ((_, words, turns),) = only.say("v", (), "Who?", [])
    assert sentence(words) == "This model describes images; attach one." and turns == ()
    *_, (answer, words, turns) = only.say("v", (), "", [photo])
    assert words == "" and turns[0].answer == answer


def test_an_image_is_looked_into(handlers, photo, tmp_path):
    html, words = handlers.inspect("v", photo, "a caption")
    assert words == "" and html.count("<img") == 3 and html.count('class="cells"') == 2
    for part in ("PSNR", "codes, on their mean colours", "surprisal of each code", "11 text"):
        assert part in html
    assert handlers.inspect("v", None, "") == ("", "")
    (tmp_path / "bad.png").write_bytes(b"not an image")
    html, words = handlers.inspect("v", str(tmp_path / "bad.png"), "")
    assert html == "" and "bad.png: not an image" in words and str(tmp_path) not in words


def test_what_is_too_long_for_the_model_is_shown_without_likelihoods(handlers, photo):
    html, words = handlers.inspect("v", photo, "long " * 99)
    assert words == "" and "more than the context of 200" in html and html.count("cells") == 1
