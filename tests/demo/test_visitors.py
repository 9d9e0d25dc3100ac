"""States as they come, and who still waits for them."""

import threading

import pytest

from emu3_jax.demo.visitors import Pace, Visitors, states


def test_states_come_in_order_and_end_with_the_result():
    taken = threading.Event()

    def work(show):
        show(1)
        taken.wait(10)
        show(2)
        show(3)
        return 4

    found = []
    for state in states(work):
        found.append(state)
        taken.set()
    # Those that nobody took in time are left out, the first and the last never.
    assert found[0] == 1 and found[-1] == 4 and found == sorted(set(found))


def test_an_error_of_the_work_is_raised_where_states_are_taken():
    def work(show):
        show(1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        list(states(work))


def test_a_new_request_takes_the_place_of_the_last_one():
    visitors = Visitors()
    first, other = visitors.begin("v", "draw"), visitors.begin("w", "draw")
    film = visitors.begin("v", "film")
    second = visitors.begin("v", "draw")
    assert first.is_set() and not second.is_set() and not film.is_set()
    visitors.end("v", "draw", first)  # it ends late: the second is still waited for
    visitors.stop("v")
    assert second.is_set() and film.is_set() and not other.is_set() and len(visitors) == 1


def test_what_is_slow_to_show_is_shown_less_often(monkeypatch):
    now = [10.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    pace = Pace()
    assert not pace.is_due()  # a few rows come together
    now[0] = 11.0
    assert pace.is_due()
    pace.shown(10.0)  # it took a second
    now[0] = 14.9
    assert not pace.is_due()
    now[0] = 15.0
    assert pace.is_due()
