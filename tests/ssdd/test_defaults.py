"""PyTorch's defaults that a user changed, and the comparison of objects that hold tensors."""

import copy
import dataclasses
import pickle

import pytest
import torch

import ssdd
import ssdd_ext


@pytest.fixture
def default(request):
    """Set PyTorch's default dtype or device, as a user's program may."""
    if isinstance(request.param, str):
        torch.set_default_device(request.param)
    else:
        torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


def everything(few, small, file):
    """Return a distilled set, the weights of a network that was pre-trained on it, and its cells."""
    small = dataclasses.replace(
        small,
        teacher=dataclasses.replace(small.teacher, epochs=1),
        distill=dataclasses.replace(small.distill, images=4, steps=2, pool=1, pool_steps=2, batch=16),
        pretrain=dataclasses.replace(small.pretrain, steps=2),
    )
    ssdd.train_teacher(few, small.teacher).save(file)
    teacher = ssdd.Teacher.named(str(file), few.preprocessing)
    known = ssdd.represent(teacher, few)

    def make(outputs=known.dimension):
        return ssdd.student(small.student, few.channels, few.size, outputs)

    pairs = ssdd.distill(ssdd.Job(few, known.train, make, small.distill, teacher=teacher)).result
    pairs.save(file)
    pairs = ssdd.DistilledSet.load(file)
    network = ssdd.seeded(make, 0)
    ssdd.pretrain(network, pairs, small.pretrain)
    with torch.no_grad():
        return [known.train, pairs.images, pairs.targets, network(few.preprocessing(few.x_test))]


@pytest.fixture(scope="module")
def expected(few, small, tmp_path_factory):
    return everything(few, small, tmp_path_factory.mktemp("expected") / "x.safetensors")


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, "meta"], indirect=True)
def test_the_users_defaults_change_nothing(default, few, small, expected, tmp_path):
    found = everything(few, small, tmp_path / "x.safetensors")
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32 and one.device.type == "cpu" and torch.equal(one, other)
    now = str(torch.get_default_device()) if isinstance(default, str) else torch.get_default_dtype()
    assert now == default  # as the user left it


def test_objects_that_hold_tensors_are_equal_to_themselves_only(few):
    pairs = ssdd.DistilledSet(torch.ones(2, 1, 8, 8), torch.ones(2, 3), few.preprocessing)
    known = ssdd.Representations(torch.ones(4, 3), torch.ones(2, 3))
    info = ssdd_ext.krr(torch.randn(2, 6, 4), torch.randn(2, 6, 2), torch.randn(2, 5, 4), return_info=True)[1]
    for thing in (few, pairs, known, info, ssdd_ext.RBF(torch.ones(2)), ssdd_ext.Ridge.trace(torch.ones(2))):
        other = copy.deepcopy(thing)
        assert thing == thing and thing != other and other not in [thing] and len({thing, other}) == 2  # noqa: PLR0124
        assert type(pickle.loads(pickle.dumps(thing))) is type(thing)
