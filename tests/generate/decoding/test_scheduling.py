"""Which requests run together, in which order, and the sizes of what is compiled."""

import numpy as np

from emu3_jax.generate import Request
from emu3_jax.generate.decoding import scheduling


def test_plans_use_few_shapes_and_lose_nobody():
    asked = [
        Request(np.zeros(3 + i % 40, np.int32), None, np.zeros(20 + i % 9, np.int32))
        for i in range(101)
    ]
    asked += [Request(np.zeros(3 + 9 * i, np.int32), max_new=10) for i in range(3)]
    asked += [Request(np.zeros(3, np.int32), np.zeros(2, np.int32), np.zeros(700, np.int32))] * 2
    plans = scheduling.plans(asked, guided=True, batch_size=16, shards=4)
    assert sorted(i for plan in plans for i in plan.members) == list(range(len(asked)))
    assert [(plan.guided, plan.size) for plan in plans] == [(False, 16), (True, 4), (False, 4)]
    for plan in plans:
        assert max(asked[i].read for i in plan.members) <= plan.slots
        assert max(asked[i].new for i in plan.members) <= plan.columns


def test_those_that_share_a_beginning_are_neighbours_and_long_ones_are_first():
    rng = np.random.default_rng(0)
    media = [rng.integers(0, 9, 40) for _ in range(3)]
    prompts = [np.append(media[i % 3], rng.integers(0, 9, 5)) for i in range(9)]
    asked = [Request(prompt, max_new=4 + 3 * (i == 4)) for i, prompt in enumerate(prompts)]
    order = scheduling.in_order(asked, range(9))
    assert order[0] == 4 and sorted(order) == list(range(9))
    assert [i % 3 for i in order] == [i for i in (1, *(j % 3 for j in order[3::3])) for _ in "abc"]


def test_sizes_are_rounded_up_to_few():
    sizes = [scheduling.bucket_quarter(n, 16) for n in (1, 16, 17, 75, 100, 8193)]
    assert sizes == [16, 16, 20, 80, 112, 10240]
    assert [scheduling.bucket_power(n, 32) for n in (0, 32, 33)] == [32, 32, 64]
    assert [scheduling.live_slots(n, 300) for n in (0, 128, 129, 290)] == [128, 128, 256, 300]
    assert len({scheduling.live_slots(n, 8300) for n in range(8301)}) == 4
    assert [scheduling.piece(n) for n in (1, 31, 33, 200, 9000)] == [32, 32, 32, 128, 512]
