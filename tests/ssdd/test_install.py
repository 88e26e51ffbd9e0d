"""The message of `import ssdd` if its own dependencies are missing."""

import subprocess
import sys

import pytest

WITHOUT = """
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {name!r} else real(name, *rest)
import ssdd
"""


@pytest.mark.parametrize(
    "name, package",
    [("sklearn", "scikit-learn"), ("jsonargparse", "jsonargparse"), ("yaml", "PyYAML"), ("safetensors", "safetensors")],
)
def test_missing_extra_is_named_with_what_to_type(name, package):
    done = subprocess.run([sys.executable, "-c", WITHOUT.format(name=name)], capture_output=True, text=True)
    assert done.returncode and f"ssdd needs {package}" in done.stderr and "pip install 'ssdd[distill]'" in done.stderr
