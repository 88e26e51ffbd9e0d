"""Calls of the bindings that the campaign found to read outside of a tensor or to overflow: each is refused."""

import ctypes

import pytest
import torch

from ssdd_ext import _C as core
from ssdd_ext.ops.native import to_capsule


def dense(*shape):
    return to_capsule(torch.zeros(shape, dtype=torch.float64))


def forged(sizes, dimensions):
    """Return a capsule whose header has these sizes, of one number in memory."""
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    one, sizes = torch.zeros(1, dtype=torch.float64), (ctypes.c_int64 * len(sizes))(*sizes)
    header = ctypes.create_string_buffer(64)
    ctypes.c_void_p.from_buffer(header, 0).value = one.data_ptr()
    # The CPU, the number of dimensions, and the type: code 2 (float), 64 bits, one lane.
    (ctypes.c_int32 * 3).from_buffer(header, 8)[:] = (1, 0, dimensions)
    (ctypes.c_uint8 * 4).from_buffer(header, 20)[:] = (2, 64, 1, 0)
    ctypes.c_void_p.from_buffer(header, 24).value = ctypes.addressof(sizes)
    return new(ctypes.addressof(header), b"dltensor", None), (one, sizes, header)


def gram(z, q, k):
    core.gram(dense(3, 4), z, None, [1.0, 0.0], 0, 0, k, dense(1 << 19), 1, 3, q, 4, 1, (0, False), False, False)


def test_a_gram_matrix_without_z_is_square():
    gram(None, 3, dense(3, 3))
    with pytest.raises(ValueError, match="z: expected a tensor, got None; without it the matrix is square"):
        gram(None, 5, dense(3, 5))


def test_a_negative_number_of_columns_is_refused():
    given = dense(4, 4), dense(4), dense(4, 4), False, dense(1 << 19)
    for columns in (-1, -(2**63)):
        with pytest.raises(ValueError, match="tridiagonal: sizes out of range"):
            core.tridiagonal_rotate(*given, 1, 4, columns, 1)


def test_a_chunk_is_at_most_all_queries():
    """A workspace for 2^40 rows of 2^31 numbers would overflow."""
    codes = {"kernel": 1, "ridge": 0, "detach": True, "bordered": False, "plan": 0, "threads": 1}
    of_chunk = [
        core.krr_workspace(core.KrrShape(batch=1, s=70, q=9, d=5, c=2, n=70, chunk=chunk, **codes), False, False)
        for chunk in (9, 2**40)
    ]
    assert of_chunk[0] == of_chunk[1]


def test_the_weights_of_all_features_and_targets_can_be_addressed():
    codes = {"kernel": 0, "ridge": 0, "detach": True, "bordered": False, "plan": 1, "threads": 1, "chunk": 1}
    with pytest.raises(ValueError, match="shape: more elements than can be addressed"):
        core.KrrShape(batch=1, s=7, q=9, d=2**40, c=2**40, n=7, **codes)


def test_a_forward_in_an_order_of_the_backward_is_refused():
    codes = {"kernel": 0, "ridge": 0, "detach": True, "bordered": False, "plan": 2, "threads": 1, "chunk": 1}
    shape = core.KrrShape(batch=1, s=3, q=2, d=4, c=2, n=3, **codes)
    given = dense(3, 4), dense(3, 2), dense(2, 4), None, [1.0, 0.0, 1.0], 0, dense(2, 2), dense(1 << 19)
    with pytest.raises(ValueError, match="plan: mixed is an order of the backward"):
        core.krr_evaluate(shape, *given)


@pytest.mark.parametrize(
    "sizes, dimensions, message",
    [
        ([2**40, 2**40], 2, "k: expected sizes of a tensor, got 1099511627776 in dimension 1"),
        ([-3, -3], 2, "k: expected sizes of a tensor, got -3 in dimension 0"),
        ([1], -(2**31), "k: expected a tensor, got -2147483648 dimensions"),
    ],
    ids=["overflow", "negative", "dimensions"],
)
def test_a_header_of_no_tensor_is_refused(sizes, dimensions, message):
    k, _kept = forged(sizes, dimensions)
    with pytest.raises(ValueError, match=message):
        gram(dense(3, 4), 3, k)
