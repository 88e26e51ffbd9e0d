"""A network that trains in bf16 on a processor without bf16 is ten times slower: this is said before it begins."""

import dataclasses
from pathlib import Path

import pytest
import torch

from ssdd.config import StudentConfig
from ssdd.data import CPU
from ssdd.distillation import Job, distill
from ssdd.evaluation import pretrain
from ssdd.models import student, why_slow
from ssdd.studies.run import without_repeats
from ssdd.teachers import train_teacher


def test_the_question_is_what_the_processor_says():
    cpu = Path("/proc/cpuinfo").read_text()
    if "avx2" not in cpu:
        pytest.skip("not an x86-64 processor with AVX2: its flags are others")
    assert bool(why_slow(True, CPU)) == ("avx512bw" not in cpu)
    assert not why_slow(False, CPU) and not why_slow(True, torch.device("cuda"))


@pytest.mark.parametrize("known", [False, True])
def test_teacher_distillation_and_pre_training_say_so(few, small, representations, monkeypatch, known):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: known)
    config = dataclasses.replace(small.teacher, training="bf16", epochs=1)
    half = StudentConfig(model="convnet-4", training="bf16")

    def network():
        return student(half, 1, (8, 8), representations.dimension)

    quick = dataclasses.replace(small.distill, steps=1, pool=1, pool_steps=2)
    said: dict[str, list[str]] = {"teacher": [], "distill": [], "pretrain": []}

    def noted(name):
        return lambda event: said[name].append(event["message"]) if event["event"] == "warning" else None

    train_teacher(few, config, noted("teacher"))
    run = distill(Job(few, representations.train, network, quick), report=noted("distill"))
    pretrain(network(), run.result, dataclasses.replace(small.pretrain, steps=1), report=noted("pretrain"))
    for messages in said.values():
        assert len(messages) == (0 if known else 1)
        assert all("no bf16 arithmetic" in message for message in messages)


def test_a_study_says_it_once():
    events = []
    report = without_repeats(events.append)
    for message in ("slow", "slow", "other"):
        report({"event": "warning", "message": message})
        report({"event": "study"})
    assert [e.get("message") for e in events] == ["slow", None, None, "other", None]
