"""The examples run at small sizes and print what they promise."""

import re

import pytest

import ssdd_ext
import ssdd_ext.nn
import ssdd_ext.sklearn

EXAMPLES = {
    "drop_in_loop.py": ["--points", "20", "--steps", "2"],
    "few_shot_ridge_head.py": ["--steps", "60"],
    "distil_from_python.py": ["--steps", "3", "--epochs", "1", "--pretrain-steps", "20"],
}


@pytest.fixture
def run(root, tmp_path, fresh):
    """run(name): the output of an example, run in a folder of its own."""

    def start(name: str) -> str:
        file = str(root / "examples" / name)
        done = fresh(f"import runpy; runpy.run_path({file!r}, run_name='__main__')", *EXAMPLES[name], folder=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return start


def test_every_example_is_run(root):
    assert {p.name for p in (root / "examples").glob("*.py")} == set(EXAMPLES)
    # tests/examples runs a miniature of each study in a folder
    tests = {p.name for p in (root / "tests" / "examples").glob("test_*.py")}
    assert {f"test_{p.parent.name}.py" for p in (root / "examples").glob("*/run.py")} <= tests


def test_a_loop_gives_the_same_loss_by_one_call(run):
    losses = [float(value) for value in re.findall(r"loss (\S+)", run("drop_in_loop.py"))]
    assert len(losses) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_few_shot_head_learns(run):
    before, after = (
        float(value) for value in re.findall(r": (\d+\.\d+)$", run("few_shot_ridge_head.py"), re.MULTILINE)
    )
    assert after < 0.8 * before


def test_a_set_is_distilled_from_python(run, tmp_path):
    out = run("distil_from_python.py")
    assert out.count("representation error") == 2
    assert (tmp_path / "distilled.safetensors").exists() and (tmp_path / "distilled.png").exists()


@pytest.mark.parametrize("package", [ssdd_ext, ssdd_ext.nn, ssdd_ext.sklearn], ids=lambda p: p.__name__)
def test_every_public_name_is_in_an_example(root, package):
    """The blocks of the pages run in tests/docs."""
    pages = "\n".join(page.read_text() for page in [root / "README.md", *(root / "docs").glob("*.md")])
    code = "\n".join(re.findall(r"```python[^\n]*\n(.*?)```", pages, re.DOTALL))
    shown = set(re.findall(r"\w+", code))
    missing = [name for name in package.__all__ if name not in shown and not name.startswith("__")]
    assert not missing, f"{package.__name__}: no example in README.md or docs/ of {', '.join(missing)}"
