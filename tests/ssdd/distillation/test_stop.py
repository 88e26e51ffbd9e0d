"""When a run stops and writes: on its own request, on another process's, and without reading a GPU at every step."""

import dataclasses

import pytest
import torch

from ssdd.checkpoint import Checkpoints, Stopped
from ssdd.config import DistillConfig
from ssdd.distillation import Job
from ssdd.distillation.stop import STOP_CHECK_EVERY, Stop
from ssdd.parallel import Processes


class Other(Processes):
    """A run of two processes, the other of which got a request to stop."""

    def combine(self, loss, gradients, weight, stop, heard=True):
        return loss, heard


@pytest.fixture
def job(few, representations, make):
    return Job(few, representations.train, lambda: make(16), DistillConfig(), processes=Other(0, 2))


def steps_that_read_the_flag(stop):
    heard = []
    for step in range(2 * STOP_CHECK_EVERY):
        stop.combine(step, torch.zeros(()), [], 1.0)
        heard += [step + 1] if stop.requested else []
    return heard


def test_stop_requests_are_read_every_step_on_a_cpu_and_every_few_on_a_gpu(job):
    assert steps_that_read_the_flag(Stop(job)) == list(range(1, 2 * STOP_CHECK_EVERY + 1))
    far = Stop(dataclasses.replace(job, device=torch.device("meta")))
    assert steps_that_read_the_flag(far) == [STOP_CHECK_EVERY, 2 * STOP_CHECK_EVERY]


def test_without_checkpoints_nothing_is_written_and_nothing_stops(job):
    stop = Stop(job)
    stop.ask()
    assert stop.requested and not stop.due(last=True)
    stop.save(1, {})


def test_a_checkpoint_is_due_at_the_last_step_and_before_a_stop(job, tmp_path):
    alone = dataclasses.replace(job, processes=Processes())
    asked = []
    stop = Stop(alone, Checkpoints(tmp_path, every=1000, stop=lambda: bool(asked)))
    stop.ask()
    assert not stop.due(last=False) and stop.due(last=True)
    asked.append(1)
    stop.combine(3, torch.zeros(()), [], 1.0)
    assert stop.due(last=False)
    with pytest.raises(Stopped, match="after step 4"):
        stop.save(4, {})
    assert [file.name for file in tmp_path.iterdir()] == ["distill-000000004.safetensors"]
