"""What the tabs show."""

import numpy as np
import pytest

from emu3_jax.demo import views
from emu3_jax.demo.tabs.imaging import Picture


def picture(rows, nats=None):
    pixels = np.zeros((2 * rows, 6, 3), np.uint8) if rows else None
    return Picture((4, 3), rows, pixels, None, nats)


def test_rows_that_are_drawn_fill_their_part_of_the_frame():
    html = views.gallery([picture(0), picture(1), picture(4)], "a <caption>")
    assert html.count("<img") == 2 and "aspect-ratio:3/4" in html
    for part in ("height:0.00%", "height:25.00%", "row 1 of 4", "4 × 3 codes", "a &lt;caption"):
        assert part in html


def test_the_likeliest_caption_is_marked():
    html = views.gallery([picture(4, 9.0), picture(4, 2.0), picture(4, 5.0)], "a")
    assert html.count("★") == 1 and html.index("★") > html.index("codes")
    assert "★" not in views.gallery([picture(4, 9.0)], "a")
    assert "★" not in views.gallery([picture(4), picture(4)], "a")


def test_heat_rises_in_lightness():
    colors = views.heat(np.linspace(0, 1, 50)).astype(int)
    light = colors @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(light) > 0).all() and light[0] < 40 and light[-1] > 220
    np.testing.assert_array_equal(views.heat(np.array([-1, 2])), views.heat(np.array([0, 1])))


def test_cells_have_their_numbers_where_there_is_room():
    texts = np.array([["1", "<2"], ["3", "4"]])
    colors = np.zeros((2, 2, 3), np.uint8)
    colors[0, 0] = 255
    html = views.cells(texts, colors)
    assert "&lt;2" in html and html.count("color:#111") == 1 and html.count("color:#fff") == 3
    wide = views.cells(np.full((2, 17), "1"), np.zeros((2, 17, 3), np.uint8))
    assert wide.count("<img") == 1 and "<span" not in wide


@pytest.mark.parametrize("is_error", [False, True])
def test_a_status_is_text(is_error):
    assert views.status("") == ""
    assert "&lt;b&gt;" in views.status("<b>", is_error)
    assert ("wrong" in views.status("x", is_error)) == is_error
