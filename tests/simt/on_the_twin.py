"""A pytest plugin for a process whose ssdd_ext is test_core.py's copy. It counts the kernel launches of every test.

It writes report.json beside the copy: each test's outcome and launches, and the places in the module of the launched
kernels.
"""

from __future__ import annotations

import ctypes
import json
import re
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

# The functions of torch that the copy calls for tensors that it treats as a GPU's.
torch.cuda.get_device_properties = lambda device: SimpleNamespace(name="host twin")
torch.cuda.current_stream = lambda device=None: SimpleNamespace(cuda_stream=0)
torch.cuda.is_current_stream_capturing = lambda: False

import ssdd_ext._C  # noqa: E402
from ssdd_ext import plan  # noqa: E402

FOLDER = Path(__file__).resolve().parent
assert Path(ssdd_ext._C.__file__).is_relative_to(FOLDER), f"the core of another build: {ssdd_ext._C.__file__}"
core = ctypes.CDLL(ssdd_ext._C.__file__)
core.simt_launches.restype = core.simt_launched.restype = core.simt_dependent_launches.restype = ctypes.c_int64
core.simt_launched.argtypes = ctypes.c_int64, ctypes.c_void_p

# All rows of the first are about the kernels, and the second has few. Other rows run on the CPU's core already, and all
# kernels on the twin in test_kernels.py: what Python hands over is the same in many rows, so one in three runs here,
# and all with empty inputs. Rows of the last kind are about digits, and take as long as all others together.
WHOLE = re.compile(r"test_cuda_values\.py|test_drop_in\.py|one_pass\.py::test_half|no_query|no_queries|batch_0")
EVERY = 3
LONG, EVERY_LONG = re.compile(r"of_clusters_.*tiles|test_half_features.*rbf-torch.bf"), 9

tests: dict[str, dict[str, object]] = {}


def pytest_collection_modifyitems(config, items):
    """Deselect the reference backend and tests that need a real GPU, which would only take time, and most rows."""

    def is_away(item):
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if parameters.get("backend") == "torch" or parameters.get("device") == "cuda":
            return True
        is_long = LONG.search(item.nodeid)
        sampled = zlib.crc32(item.nodeid.encode()) % (EVERY_LONG if is_long else EVERY) == 0
        return bool(parameters) and not sampled and (is_long or not WHOLE.search(item.nodeid))

    config.hook.pytest_deselected(items=[item for item in items if is_away(item)])
    items[:] = [item for item in items if not is_away(item)]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    before, dependent = core.simt_launches(), core.simt_dependent_launches()
    # In half of the tests launches are dependent ones, which changes nothing else here.
    plan.gpu.DEPENDENT_LAUNCH = zlib.crc32(item.nodeid.encode()) % 2 == 0
    try:
        return (yield)
    finally:
        tests[item.nodeid] = {
            "launches": core.simt_launches() - before,
            "dependent": core.simt_dependent_launches() - dependent,
            "asked": plan.gpu.DEPENDENT_LAUNCH,
        }


def pytest_runtest_logreport(report):
    # The worst phase counts: a test that fails in its teardown has failed.
    if report.failed or report.when == "call":
        tests.setdefault(report.nodeid, {"launches": 0})["outcome"] = report.outcome


def pytest_sessionfinish():
    places = (ctypes.c_size_t * 1000)()
    count = core.simt_launched(len(places), places)
    launched = [f"{place:x}" for place in places[:count]]
    (FOLDER / "report.json").write_text(json.dumps({"tests": tests, "launched": launched}))
