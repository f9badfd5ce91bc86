"""The restricted unpickler: reads every dialect of an honest batch, runs nothing of any other."""

import collections
import contextlib
import gc
import pickle
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from kerasnorm.data.unpickle import load_batch
from kerasnorm.errors import DataError


class Call:
    """Pickles to a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def python2_batch(data: np.ndarray, labels: list[int], *, core: bytes = b"numpy.core") -> bytes:
    """The opcodes that Python 2 wrote the official batches with (protocol 2, byte strings)."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def whole(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    raw = data.tobytes()
    return b"".join(
        [
            b"\x80\x02}q\x01(" + text(b"data"),
            b"c" + core + b".multiarray\n_reconstruct\nq\x02",
            b"cnumpy\nndarray\nq\x03" + whole(0) + b"\x85" + text(b"b") + b"\x87R",
            b"(" + whole(1) + whole(data.shape[0]) + whole(data.shape[1]) + b"\x86",
            b"cnumpy\ndtype\n" + text(b"u1") + whole(0) + whole(1) + b"\x87R",
            b"(" + whole(3) + text(b"|") + b"NNN" + whole(-1) + whole(-1) + whole(0) + b"tb",
            b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tb",
            text(b"labels") + b"](" + b"".join(map(whole, labels)) + b"eu.",
        ]
    )


def test_no_cycle_keeps_the_content_in_memory() -> None:
    content = python2_batch(np.zeros((2, 6), np.uint8), [3, 7])
    references = sys.getrefcount(content)
    gc.disable()
    try:
        load_batch(content, "data_batch_1")
        assert sys.getrefcount(content) == references
    finally:
        gc.enable()


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_reads_a_python_2_batch(core: bytes) -> None:
    data = np.arange(12, dtype=np.uint8).reshape(2, 6)
    batch = load_batch(python2_batch(data, [3, 7], core=core), "data_batch_1")
    assert np.array_equal(batch["data"], data)
    assert batch["data"].dtype == np.uint8
    assert batch["labels"] == [3, 7]


@given(
    data=hnp.arrays(
        st.sampled_from([np.uint8, np.dtype(">i4"), np.float32, np.bool_]),
        hnp.array_shapes(max_dims=3, max_side=4),
    ),
    names=st.lists(st.binary(max_size=5), max_size=3),
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
    fortran=st.booleans(),
)
def test_reads_what_python_3_writes(
    data: np.ndarray, names: list[bytes], protocol: int, fortran: bool
) -> None:
    data = np.asfortranarray(data) if fortran else data
    document = {b"data": data, "label": np.int64(5), b"names": names}
    batch = load_batch(pickle.dumps(document, protocol), "batch")
    assert np.array_equal(batch["data"], data, equal_nan=data.dtype.kind == "f")
    assert batch["data"].dtype == data.dtype
    assert (batch["label"], batch["names"]) == (5, names)


HOSTILE = {
    "os.system": lambda trace: Call(__import__("os").system, f"touch {trace}"),
    "builtins.eval": lambda trace: Call(eval, f"open({str(trace)!r}, 'w')"),
    "builtins.exec": lambda trace: Call(exec, f"open({str(trace)!r}, 'w')"),
    "builtins.open": lambda trace: Call(open, str(trace), "w"),
    "subprocess.Popen": lambda trace: Call(__import__("subprocess").Popen, ["touch", str(trace)]),
    "pathlib.Path.touch": lambda trace: Call(Path.touch, trace),
    "numpy.save": lambda trace: Call(np.save, str(trace), [1]),
    "collections.OrderedDict": lambda trace: collections.OrderedDict(a=1),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", HOSTILE)
def test_runs_nothing(name: str, protocol: int, tmp_path: Path) -> None:
    trace = tmp_path / "trace.npy"
    content = pickle.dumps({"data": HOSTILE[name](trace)}, protocol)
    with pytest.raises(DataError, match=r"data_batch_1: expected .* Received: a pickle that wants"):
        load_batch(content, "data_batch_1")
    assert not trace.exists()


def test_says_what_it_wanted_to_run() -> None:
    with pytest.raises(DataError, match=r"wants to run os\.system\. It was refused and nothing"):
        load_batch(b"cos\nsystem\n(S'true'\ntR.", "data_batch_1")


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"cos\nsystem\n.", r"run os\.system"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", r"run posix\.system"),
        (b"(ios\nsystem\n.", r"run os\.system"),
        (b"cnumpy\nndarray\n(I9\ntR.", r"call numpy\.ndarray"),
        (b"cnumpy\ndtype\n(S'O8'\nI0\nI1\ntR.", "array of type 'O8'"),
        (b"cnumpy\ndtype\n(S'V8'\nI0\nI1\ntR.", "array of type 'V8'"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "_codecs.encode with 'rot13'"),
        (b"cnumpy.core.multiarray\nscalar\n(NS'x'\ntR.", "not made of plain numbers"),
        (b"Pevil\n.", "object that is kept outside"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "memory for 2147483647 objects"),
        (b"Np4294967295\n.", "memory for 4294967295 objects"),
    ],
)
def test_refuses(content: bytes, wanted: str) -> None:
    with pytest.raises(DataError, match=f"wants .*{wanted}.* refused"):
        load_batch(content, "batch")


def test_refuses_an_array_larger_than_its_bytes() -> None:
    content = python2_batch(np.zeros((2, 6), np.uint8), [0, 1])
    larger = content.replace(struct.pack("<i", 6), struct.pack("<i", 2**31 - 1))
    assert larger != content
    with pytest.raises(DataError, match="from 12 bytes"):
        load_batch(larger, "batch")


def test_refuses_to_grow_beyond_its_size() -> None:
    text = b"X" + struct.pack("<I", 1000) + b"a" * 1000
    again = b"h\x00h\x01h\x02\x86R"  # encode(text, codec), from the memo
    content = b"\x80\x02](c_codecs\nencode\nq\x00" + text + b"q\x01X\x06\x00\x00\x00latin1q\x02"
    with pytest.raises(DataError, match="more memory than its own size"):
        load_batch(content + again * 10 + b"e.", "batch")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80",
        b"not a pickle",
        b"\xff" * 50,
        b"\x80\x02]q\x00.",
        b"\x80\x02K\x05.",
        b"}(S'a'\nu.",
        b"c_codecs\nencode\n}(S'x'\nI1\nudb.",
        python2_batch(np.zeros((2, 6), np.uint8), [0, 1])[:-30],
        pickle.dumps({"data": np.zeros((2, 6), np.uint8)}, 4)[:-20],
    ],
)
def test_a_damaged_pickle_is_a_data_error(content: bytes) -> None:
    with pytest.raises(DataError, match="batch: expected a pickled dict of NumPy arrays"):
        load_batch(content, "batch")


def laughs() -> list:
    """Lists of lists, small in a pickle, 10 ** 30 elements when unfolded."""
    nested: list = []
    for _ in range(30):
        nested = [nested] * 10
    return nested


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"cnumpy\ndtype\n(", b"tR."),
        (b"c_codecs\nencode\n(Vx\n", b"tR."),
        (b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(Vu1\ntR", b"tR."),
        (b"cnumpy._core.numeric\n_frombuffer\n(C\1xcnumpy\ndtype\n(Vu1\ntR(", b"ttR."),
        (b"}(", b"K\1u."),
        (b"", b"."),
    ],
)
def test_lists_that_share_lists_are_not_unfolded(before: bytes, after: bytes) -> None:
    nested = pickle.dumps(laughs(), 2)[2:-1]
    with pytest.raises(DataError, match=r"batch: expected "):
        load_batch(before + nested + after, "batch")


def test_what_follows_the_pickle_is_not_read() -> None:
    assert load_batch(pickle.dumps({"a": 1}) + b"\xff\xffcos\nsystem\n", "batch") == {"a": 1}


@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(content: bytes) -> None:
    with contextlib.suppress(DataError):
        load_batch(content, "batch")


@given(data=st.data())
def test_a_flipped_byte_never_raises_anything_else(data: st.DataObject) -> None:
    content = bytearray(python2_batch(np.arange(12, dtype=np.uint8).reshape(2, 6), [3, 7]))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        load_batch(bytes(content), "batch")


def test_a_pickle_cannot_change_the_stand_ins() -> None:
    # BUILD on the function itself: gives it an attribute, which must not outlive the pickle.
    content = b"\x80\x02}(U\x01ac_codecs\nencode\n}X\x04\0\0\0evilK\x01sbu."
    first = load_batch(content, "batch")["a"]
    assert first.evil == 1
    second = load_batch(b"\x80\x02}(U\x01ac_codecs\nencode\nu.", "batch")["a"]
    assert not hasattr(second, "evil")
