"""The dumps of every supported compiler are read; unknown forms are errors."""

import re

import pytest
from paths import GOLDEN

from emu3_jax.aot import compiler, hlo
from emu3_jax.aot.hlo import UnreadableError

# Bytes of the temporaries and of a gathered matrix; a TPU gathers in bfloat16.
COMPILERS = {
    "jaxlib-0.10.2": (917572 + 4 * 4, 4 * 256 * 256),
    "jaxlib-0.12.0.1": (917572 + 4 * 4, 4 * 256 * 256),
    "libtpu-0.0.42": (49664 + 4 * 512, 2 * 256 * 256),
    "libtpu-0.0.50": (66048 + 4 * 512, 2 * 256 * 256),
}
TPUS = [name for name in COMPILERS if name.startswith("libtpu")]
MATRICES, ROWS = 4 * 3 * 128 * 256, 4 * 16 * 256


def _text(name: str, kind: str) -> str:
    return (GOLDEN / "compilers" / f"{name}-{kind}.txt").read_text()


@pytest.mark.parametrize("name", COMPILERS)
def test_arrays_and_collectives_are_read_as_each_compiler_writes_them(name):
    temporaries, gathered = COMPILERS[name]
    found = compiler.bytes_of_arrays(_text(name, "arrays"))
    assert found == (MATRICES + ROWS, temporaries, ROWS)
    (one,) = hlo.collectives(_text(name, "program"))
    assert (one.kind, one.shape, one.bytes, one.times) == (
        "all-gather",
        (1, 256, 256),
        gathered,
        3,
    )


@pytest.mark.parametrize("name", TPUS)
def test_cycles_are_read_as_each_compiler_writes_them(name):
    found = hlo.cycles(_text(name, "code"))
    (product,) = (count for source, count in found.items() if source.endswith("dot_general"))
    assert product > 0 and product % 3 == 0


def test_of_a_plan_only_arrays_in_main_memory_count():
    """Lines as the TPU's compiler writes them."""
    text = """BufferAssignment:
allocation 0: size 32, thread-local:
 value: <20 tuple.157{} @0> (size=32,offset=0): (pred[]{:T(512)}, s32[]{:T(128)})
allocation 1: size 1000, parameter 9, shape |f32[32,64]| at ShapeIndex {}, maybe-live-out:
allocation 2: size 200, parameter 44, shape |s32[1,5120]| at ShapeIndex {}:
allocation 3: size 7, constant:
allocation 4: size 40, maybe-live-out:
allocation 5: size 2, output shape is |(s32[], f32[184832,64])|, maybe-live-out:
allocation 6: size 77777, color 1, preallocated-temp:
allocation 7: size 88888, color 6, thread-local:
allocation 8: size 500, preallocated-temp:
"""
    assert compiler.bytes_of_arrays(text) == (1200, 507, 42)


@pytest.mark.parametrize(
    "change, words",
    [
        (("size ", "bytes "), "allocation 0: bytes 393216"),
        (("page ", "page number "), "page number 0"),
        ((", parameter ", ", argument "), ", argument 0"),
        (("allocation ", "array "), "has no argument"),
        (("", ""), "has no argument"),
    ],
    ids=["size", "page", "kind", "line", "empty"],
)
def test_a_list_of_arrays_in_another_form_is_refused(change, words):
    text = _text("jaxlib-0.12.0.1", "arrays").replace(*change) if any(change) else ""
    with pytest.raises(UnreadableError, match=words):
        compiler.bytes_of_arrays(text)


@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize(
    "pattern, other, words",
    [
        (r"(?m)^ENTRY ", "START ", "no ENTRY computation"),
        (r"(?s).*", "", "no ENTRY computation"),
        (r"replica_groups=mesh\[.*?\}", "replica_groups=<2>", "'replica_groups=<2>"),
        (r"= \w+\[1,256,256\]\S* all-gather\(", "= array all-gather(", "no array in"),
        (r"condition=%\S+,", "until=%c,", "has no condition"),
    ],
    ids=["entry", "empty", "groups", "array", "loop"],
)
def test_a_program_in_another_form_is_refused(name, pattern, other, words):
    text = re.sub(pattern, other, _text(name, "program").replace("known_trip_count", "trips"))
    with pytest.raises(UnreadableError, match=words):
        hlo.collectives(text)


@pytest.mark.parametrize("name", TPUS)
def test_a_program_without_cycles_has_none(name):
    text = _text(name, "code").replace("estimated_cycles", "cycles")
    with pytest.raises(UnreadableError, match="no estimated_cycles"):
        hlo.cycles(text)
