"""The named presets, and the switch to the published code's side."""

from __future__ import annotations

from operator import attrgetter

from .errors import InputError
from .settings import (
    AugmentConfig,
    DistillConfig,
    FinetuneConfig,
    PretrainConfig,
    Settings,
    StudentConfig,
    TeacherConfig,
)
from .tasks import ClassifierConfig, KdConfig
from .values import replace_fields

FINETUNE: dict[str, FinetuneConfig] = {
    "scaled": FinetuneConfig(share=1.0),
    "published": FinetuneConfig(share=1.0, steps=10_000, small_set_steps=5_000, batch=256),
}
"""The recipes of fine-tuning: for two cores, and as published."""


def _published(name: str, model: str, images: int, lr: float) -> Settings:
    """Return the published settings (Lee et al., 2024); the arguments are what differs between its image sets."""
    batches = -(-images // 256)
    return Settings(
        name=name,
        student=StudentConfig(model=model, channels_last=True),
        teacher=TeacherConfig(backbone="resnet18", epochs=200, projector=2048),  # the length is not published
        distill=DistillConfig(images=images, steps=160_000, batch=1024, lr=lr, log_every=500),
        pretrain=PretrainConfig(steps=1000 * batches, batch=256, lr=0.1, schedule="constant"),
        finetune=FINETUNE["published"],
        kd=KdConfig(epochs=1000, lr=1e-4),
    )


PRESETS: dict[str, Settings] = {
    # 1,297 training images of 8x8: 26 distilled images are 2%.
    "digits": Settings(
        name="digits",
        student=StudentConfig(model="convnet-16-32"),
        teacher=TeacherConfig(
            widths=(16, 64),
            epochs=200,
            projector=256,
            augment=AugmentConfig(
                shift=0.125,
                rotate=15.0,
                scale=0.15,
                flip=0.0,
                brightness=0.0,
                contrast=0.4,
                saturation=0.0,
                grayscale=0.0,
                noise=0.05,
            ),
        ),
        distill=DistillConfig(images=26, steps=2000, batch=512, lr=0.01, crop_pad=1),
        pretrain=PretrainConfig(steps=600, lr=0.4),
        classifier=ClassifierConfig(model="convnet-16-32", crop_pad=1, flip=False),
    ),
    # CIFAR-10's first 10,000 images on two cores, 200 distilled (2%); docs/results/cifar10 says why these sizes.
    "cifar10-cpu": Settings(
        name="cifar10-cpu",
        student=StudentConfig(model="convnet-32-64-128", channels_last=True),
        teacher=TeacherConfig(widths=(32, 64, 128, 256), epochs=20),
        distill=DistillConfig(images=200, steps=1200, batch=256, lr=0.01, pool=2, pool_steps=50, pool_lr=0.4),
        pretrain=PretrainConfig(steps=300, lr=0.5),
        finetune=FinetuneConfig(share=0.1),
    ),
    # The published runs: hours on a GPU. Their teacher is a ResNet-18 trained on the same images.
    "cifar100": _published("cifar100", "convnet-128-256-512", 1000, 1e-4),
    "tinyimagenet": _published("tinyimagenet", "convnet-64-128-256-512", 2000, 1e-5),
    "imagenet64": _published("imagenet64", "convnet-64-128-256-512", 1000, 1e-5),
    # Published with a Barlow Twins ResNet-50 of ImageNet: give its file with --teacher (docs/teachers.md).
    "imagenette": _published("imagenette", "convnet-32-64-128-256-512", 10, 1e-3),
    # Small colour images on a CPU: a folder or an .npz of the user's. The ridge is the one that docs/results/few and
    # docs/results/options found better than the published 1e-6.
    "small": Settings(name="small", distill=DistillConfig(pool=5, pool_steps=400, ridge=1e-3)),
}


PUBLISHED = ("cifar100", "tinyimagenet", "imagenet64", "imagenette")
"""The presets of the published runs. Values that were not published (the teacher's epochs) are this project's
choice."""


def preset(name: str) -> Settings:
    """Return a named preset.

    Args:
        name: a key of ``PRESETS``.

    Raises:
        InputError: for another name; it lists the existing ones.
    """
    if name not in PRESETS:
        raise InputError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]


OFFICIAL = {
    "distill.pool_counter": "stuck",
    "distill.support_input": "raw",
    "distill.real_view": "augmented",
    "distill.teacher_in_loop": "recomputed",
    "evaluate.random_targets": "labels",
    "kd.mode": "train",
    "kd.input": "raw",
}
"""STAGE.FIELD -> the published code's side of every difference between it and the paper."""


def official(settings: Settings) -> Settings:
    """Return ``settings`` with the published code's side of every difference between it and the paper.

    Args:
        settings: the settings to start from; they stay as they are.
    """
    return replace_fields(settings, OFFICIAL)


def departures(settings: Settings) -> dict[str, tuple[str, str]]:
    """Return where ``settings`` differ from the published code's side: STAGE.FIELD -> (value here, value there)."""
    here = {key: str(attrgetter(key)(settings)) for key in OFFICIAL}
    return {key: (here[key], word) for key, word in OFFICIAL.items() if here[key] != word}
