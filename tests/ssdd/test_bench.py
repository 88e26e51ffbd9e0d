"""benchmarks/bench_distill.py: its shapes are the presets', its step is the loop's, its ceiling follows from its
counts."""

import importlib.util
import sys

import pytest

from ssdd.config import preset


@pytest.fixture(scope="module")
def bench(root):
    """The script, with its folder on the path as when it is run."""
    names = ("timing", "report", "levers", "bench_distill")
    for name in names:
        spec = importlib.util.spec_from_file_location(name, root / "benchmarks" / f"{name}.py")
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    yield module
    for name in names:
        sys.modules.pop(name, None)


def test_shapes_are_those_of_the_presets(bench):
    for name in bench.PRESETS:
        shape, settings = bench.Shape.of(preset(name)), preset(name)
        assert (shape.images, shape.batch, shape.pool) == (
            settings.distill.images,
            settings.distill.batch,
            settings.distill.pool,
        )
        assert (shape.student, shape.channels_last) == (settings.student.model, settings.student.channels_last)
    cifar100 = bench.Shape.of(preset("cifar100"))
    assert (cifar100.images, cifar100.batch, cifar100.student) == (1000, 1024, "convnet-128-256-512")
    assert cifar100.make_teacher().dimension == 512 and cifar100.make_student(512).dimension == 8192


def test_the_ceiling_follows_from_the_multiplications_that_are_counted(bench, tmp_path, capsys):
    rows = bench.main(["--quick", "--threads", "1", "--results", str(tmp_path)])
    assert [row["part"] for row in rows] == [*bench.PARTS, "step"] and not list(tmp_path.iterdir())
    counts = {row["part"]: row["published_flops"] for row in rows}
    tiny = bench.TINY
    convolutions = 2 * 9 * (3 * 4 * 64 + 4 * 8 * 16)  # of one image of 8x8: 3 -> 4, at half the side 4 -> 8
    assert counts["teacher"] == counts["query"] == tiny.batch * convolutions
    assert counts["support"] == tiny.images * 2 * convolutions  # and once more, to the images alone
    head = 2 * 32 * 8
    first = 2 * 9 * 3 * 4 * 64  # no gradient to the images in this case
    assert counts["pool update"] == tiny.images * (3 * convolutions - first + 3 * head)
    assert counts["step"] == sum(counts[part] for part in bench.PARTS)
    step = rows[-1]
    assert step["ceiling"] == counts["step"] / (counts["step"] - counts["teacher"])
    assert step["of_ceiling"] == pytest.approx(step["ratio"] / step["ceiling"]) and step["gradient_difference"] < 1e-2
    assert step["threads"] == 1 and step["seconds"]["ssdd"]["median"] > 0
    assert "ceiling" in capsys.readouterr().out


def test_levers_stand_beside_the_error_they_leave(bench, tmp_path):
    rows = bench.main(["--quick", "--levers", "--threads", "1", "--results", str(tmp_path)])
    errors = {row["lever"]: row["gradient_error"] for row in rows if row["part"] == "support"}
    assert errors["as it stands"] < 1e-3 < errors["bf16"] < 1 and errors["support in chunks"] < 1e-3
    assert {row["part"] for row in rows} == {"support", "query", "pool update"}
    assert all(row["ratio"] > 0 for row in rows)


def test_the_readme_says_where_a_step_was_timed(bench, tmp_path):
    rows = bench.main(["--quick", "--threads", "1", "--clock", "processor", "--results", str(tmp_path)])
    text = sys.modules["report"].distill_table(rows)
    step = rows[-1]
    assert "1 thread, processor time" in text and rows[0]["cpu"] in text
    numbers = f"**{step['ratio']:.2f}x** | {step['ceiling']:.2f}x | {step['of_ceiling']:.0%} |"
    assert "| tiny | " in text and numbers in text
