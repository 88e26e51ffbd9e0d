"""The whole way from a public call in Python to the CUDA kernels, on the host twin: tests of tests/ext that know no
device, run anew in a process of its own with a core that has nothing but the kernels (core.cpp).

There the tensors of the CPU are taken for a GPU's: by the core, and by a copy of ssdd_ext in which the words is_cpu and
is_cuda have changed places. So plans, workspaces, strides and 16-bit features go the way they go on a GPU.
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from .conftest import ENVIRONMENT

FILES = ["tests/ext/test_cuda_values.py", "tests/ext/test_ops.py"]


def as_on_a_gpu(text: str) -> str:
    other = {"is_cpu": "is_cuda", "is_cuda": "is_cpu"}
    return re.sub(r"\b(is_cpu|is_cuda)\b", lambda m: other[m.group()], text)
