"""`import ssdd` offers enough to distil, pre-train and measure without the command line."""

import types
from functools import partial

import ssdd


def test_every_public_name_is_there_and_none_is_a_module():
    found = {name: getattr(ssdd, name) for name in ssdd.__all__}
    assert not [name for name, value in found.items() if isinstance(value, types.ModuleType)]


def test_distil_from_python(few, small, tmp_path):
    changes = {"teacher.epochs": "2", "distill.steps": "4", "pretrain.steps": "10"}
    settings = ssdd.with_settings(small, changes)
    teacher = ssdd.train_teacher(few, settings.teacher)
    known = ssdd.represent(teacher, few)
    make = partial(ssdd.student, settings.student, few.channels, few.size)
    job = ssdd.Job(few, known.train, partial(make, known.dimension), settings.distill, teacher=teacher)
    run = ssdd.distill(job)
    run.result.save(tmp_path / "distilled.safetensors")
    pairs = ssdd.DistilledSet.load(tmp_path / "distilled.safetensors")
    assert len(pairs) == settings.distill.images and run.losses[-1][0] == 4
    cell = ssdd.evaluate(pairs, few, known.test, make, settings)
    assert cell.error is not None and cell.error > 0 and cell.probes["features/0"] > 10
