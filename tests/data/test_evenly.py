"""A few of many, at even distances."""

import pytest

from emu3_jax.data.evenly import evenly_chosen


@pytest.mark.parametrize(
    ("count", "chosen"), [(0, ""), (1, "3"), (3, "135"), (7, "0123456"), (9, "0123456")]
)
def test_the_middle_of_each_part_is_chosen(count, chosen):
    assert "".join(evenly_chosen("0123456", count)) == chosen
    assert evenly_chosen([], count) == []
