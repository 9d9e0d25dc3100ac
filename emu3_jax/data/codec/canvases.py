"""Few programs for images and clips of many sizes: batches on canvases of a few sizes.

A program is compiled for one size. Photographs have hundreds of sizes, so each is put into the top
left corner of a canvas with sides of a short list, and the program is told where it ends
(`models.vision.canvas`): results are those of the image alone, to rounding. Portraits are
transposed, and computed by the program of landscapes with transposed kernels. Clips fill up their
canvas with frames after their last, on which no earlier frame depends.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np

Grid = tuple[int, ...]
"""Positions of codes: (h, w) of an image, (t, h, w) of a clip."""
# Sides of canvases, times any power of two: three in each octave. More would need more programs,
# fewer would compute more of what is not there: 1.3 times the positions of images on average.
SIDES = (8, 10, 13)
# From so many images of one size on, a batch of this size alone is worth a program of its own.
COMMON = 4


def side(positions: int) -> int:
    """The side of the smallest canvas for `positions`, at most 1.3 times as many from 8 on."""
    octave = 1
    while 2 * SIDES[0] * octave <= positions:
        octave *= 2
    sides = [octave * side for side in (*SIDES, 2 * SIDES[0])]
    return min(side for side in sides if side >= positions) if positions > SIDES[0] else positions


@dataclasses.dataclass(eq=False)
class _Waiting:
    array: np.ndarray
    grid: Grid
    transposed: bool
    done: Callable[[np.ndarray], None]

    def goes_with(self, other: "_Waiting") -> bool:
        """Whether both can be in one batch."""
        mine, its = (one.array.shape[len(one.grid) :] for one in (self, other))
        return self.transposed == other.transposed and mine == its


class Batcher:
    """Collects arrays of many sizes into batches and passes each one's result to its callback.

    `add` runs a batch once the arrays for one canvas fill its rows, `flush` runs the rest. Only the
    order of `add` decides which arrays share a batch, and on which canvas.
    """

    def __init__(
        self,
        run: Callable[[np.ndarray, np.ndarray, bool], np.ndarray],
        rows: Mapping[str, int],
        taken: Grid,
        made: Grid | None,
        finished: Callable[[int], None] = lambda count: None,
        transposes: bool = True,
        common: int = COMMON,
    ):
        """Takes the program and its units.

        Args:
          run: (batch [B, *canvas, ...], sizes int32 [B, 2], transposed) → results [B, ...]. Sizes
            are (h, w) in codes; `transposed`: height and width are exchanged.
          rows: the number of rows of a batch by the kind of its arrays, "image" or "video".
          taken: elements along (time, height, width) for each code in the arrays added: (1, 1, 1)
            for codes, the tokenizer's factors for pixels.
          made: the same of the results; None: they have no size, and are passed on as they are.
          finished: called after each batch with the number of its arrays.
          transposes: whether portraits are transposed.
          common: of so many arrays of one size, a batch of this size alone is not padded.
        """
        self._run, self._rows, self._finished = run, rows, finished
        self._taken, self._made, self._transposes = taken, made, transposes
        self._common = common
        self._waiting: dict[tuple, list[_Waiting]] = collections.defaultdict(list)
        self._seen: collections.Counter[Grid] = collections.Counter()
        self._exact: set[Grid] = set()  # of common sizes

    def add(self, array: np.ndarray, done: Callable[[np.ndarray], None]) -> None:
        """Adds codes [(t,) h, w] or uint8 pixels [(T,) H, W, C]; `done(result)` now or later.

        The sides must be multiples of `taken`.
        """
        shape = array.shape[:-1] if array.dtype == np.uint8 else array.shape
        units = self._taken[-len(shape) :]
        grid = tuple(length // unit for length, unit in zip(shape, units, strict=True))
        transposed = self._transposes and grid[-2] > grid[-1]
        if transposed:
            array, grid = _swapped(array, len(grid)), _swapped_grid(grid)
        self._seen[grid] += 1
        key = (self._smallest(grid), transposed, array.shape[len(grid) :])
        self._waiting[key].append(_Waiting(array, grid, transposed, done))
        if len(self._waiting[key]) == self._rows_of(grid):
            self._batch(self._waiting.pop(key))

    def flush(self) -> None:
        """Runs what still waits, the largest first; smaller ones take the rows left over."""
        left = sorted(
            (one for waiting in self._waiting.values() for one in waiting),
            key=lambda one: (-math.prod(one.grid), one.grid),
        )
        self._waiting.clear()
        while left:
            largest = left[0]
            canvas = self._smallest(largest.grid)
            fitting = [o for o in left if o.goes_with(largest) and _fits(o.grid, canvas)]
            self._batch(fitting[: self._rows_of(canvas)])
            run = set(fitting[: self._rows_of(canvas)])
            left = [one for one in left if one not in run]

    def _rows_of(self, grid: Grid) -> int:
        return self._rows["image" if len(grid) == 2 else "video"]

    def _smallest(self, grid: Grid) -> Grid:
        """The smallest canvas for this grid: of the list, or of a common size."""
        canvases = [canvas for canvas in self._exact if _fits(grid, canvas)]
        return min([*canvases, tuple(map(side, grid))], key=lambda c: (math.prod(c), c))

    def _batch(self, chosen: list[_Waiting]) -> None:
        grids = {one.grid for one in chosen}
        canvas, rows = tuple(map(max, zip(*grids, strict=True))), self._rows_of(chosen[0].grid)
        if len(grids) == 1 and self._seen[canvas] >= self._common:
            self._exact.add(canvas)
        canvas = self._smallest(canvas)
        first = chosen[0].array
        shape = [n * unit for n, unit in zip(canvas, self._taken[-len(canvas) :], strict=True)]
        batch = np.zeros((rows, *shape, *first.shape[len(shape) :]), first.dtype)
        sizes = np.zeros((rows, 2), np.int32)
        for row, one in enumerate(chosen):
            batch[(row, *map(slice, one.array.shape))] = one.array
            sizes[row] = one.grid[-2:]
        results = self._run(batch, sizes, chosen[0].transposed)
        for one, result in zip(chosen, results, strict=False):
            one.done(result if self._made is None else self._cut(result, one))
        self._finished(len(chosen))

    def _cut(self, result: np.ndarray, of: _Waiting) -> np.ndarray:
        units = self._made[-len(of.grid) :]
        result = result[tuple(slice(n * u) for n, u in zip(of.grid, units, strict=True))]
        return np.ascontiguousarray(_swapped(result, len(units)) if of.transposed else result)


def _fits(grid: Grid, canvas: Grid) -> bool:
    return len(grid) == len(canvas) and all(n <= m for n, m in zip(grid, canvas, strict=True))


def _swapped(array: np.ndarray, dimensions: int) -> np.ndarray:
    """Height and width exchanged, the last of the first `dimensions` axes."""
    return array.swapaxes(dimensions - 2, dimensions - 1)


def _swapped_grid(grid: Grid) -> Grid:
    return (*grid[:-2], grid[-1], grid[-2])
