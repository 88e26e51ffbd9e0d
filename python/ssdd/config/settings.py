"""One frozen dataclass per stage, one docstring per field: help, documentation and error messages come from here.

If the paper (Lee et al., ICLR 2024, arXiv 2310.06511) and its published code differ, the setting is a named option
whose default is the paper's side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from .checks import at_least_one as _at_least_one
from .checks import check as _check
from .errors import InputError
from .tasks import ClassifierConfig, KdConfig


@dataclass(frozen=True)
class AugmentConfig:
    """Random views for the teacher's self-supervised training. Every amount is 0 for "leave it out"."""

    shift: float = 0.125
    """Largest shift, as a fraction of the image side."""
    rotate: float = 0.0
    """Largest rotation, in degrees."""
    scale: float = 0.2
    """Largest relative change of size (0.2: from 0.8 to 1.2)."""
    flip: float = 0.5
    """Probability of a left-right flip."""
    brightness: float = 0.3
    """Largest brightness added, in pixel units of [0, 1]."""
    contrast: float = 0.4
    """Largest relative change of contrast."""
    saturation: float = 0.4
    """Largest relative change of saturation; colour images only."""
    grayscale: float = 0.2
    """Probability of dropping the colour; colour images only."""
    noise: float = 0.0
    """Standard deviation of pixel noise, in pixel units of [0, 1]."""

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class StudentConfig:
    """The network that is distilled for: published as blocks of convolution, BatchNorm, ReLU, 2x2 average pool."""

    model: str = "convnet-32-64-128"
    """A name that `ssdd.build` knows: convnet-W-W-... (the channels of its blocks), resnet10, resnet18, vgg11,
    alexnet, mobilenetv2, timm:NAME, torchvision:NAME or package.module:factory."""
    width: float = 1.0
    """All channels of a network of this package are multiplied by it: 0.25 for runs on few cores."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """First layers of a ResNet. "cifar" (published): 3x3, stride 1, padding 2, no max-pool. "imagenet": torchvision's
    7x7 with stride 2 and max-pool."""
    channels_last: bool = False
    """Keep the channels of a pixel side by side in memory: the same network, up to twice as fast on colour images."""
    compiled: bool = False
    """Compile the network (torch.compile; needs a C++ compiler where it runs): 1.1 to 1.3 times as fast on one core at
    the shapes of cifar10-cpu, the same numbers up to rounding."""
    training: Literal["float32", "bf16"] = "float32"
    """Arithmetic of the network's own training steps, in the pool and in pre-training; "bf16": 1.6 times as fast there.
    The features that the outer loss sees stay float32: in bf16 the gradient to X_s was off by 7%."""

    def __post_init__(self) -> None:
        _check(self)
        if self.width == 0:
            raise InputError("StudentConfig.width: expected more than 0, got 0.0")


@dataclass(frozen=True)
class TeacherConfig:
    """How a teacher is trained without labels: Barlow Twins is the paper's (section 4)."""

    method: Literal["barlow-twins", "simclr", "byol"] = "barlow-twins"
    """Self-supervised method."""
    backbone: Literal["convnet", "resnet10", "resnet18"] = "convnet"
    """A ConvNet of ``widths`` that ends in a mean over positions, or a ResNet (published stem; 512 numbers)."""
    widths: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of each block; the last one is the length of a representation."""
    epochs: int = 20
    """Passes over the training images."""
    batch: int = 256
    """Images per step."""
    lr: float = 2e-3
    """AdamW's largest lr: warm-up over one tenth of the steps, then cosine to 0."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    projector: int = 512
    """Width of the two layers between the representation and the loss (and of BYOL's predictor); dropped after."""
    redundancy: float = 0.005
    """Barlow Twins: weight of the off-diagonal terms of the cross-correlation matrix."""
    temperature: float = 0.5
    """SimCLR: temperature of the cosines."""
    training: Literal["float32", "bf16"] = "float32"
    """Arithmetic of the backbone while it trains; weights, projector and loss stay float32. "bf16" is for GPUs."""
    ema: float = 0.99
    """BYOL: share of itself that the moving average of the weights keeps at each step."""
    seed: int = 0
    """Fixes the random start and every draw of the training."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        _check(self)
        _at_least_one(self, "epochs", "batch", "projector")
        if self.batch < 2:
            raise InputError(f"TeacherConfig.batch: expected at least 2, to correlate over, got {self.batch}")
        if self.temperature == 0 or self.ema > 1:
            raise InputError(
                f"TeacherConfig: expected temperature above 0 and ema from 0 to 1, "
                f"got {self.temperature} and {self.ema}"
            )


@dataclass(frozen=True)
class DistillConfig:
    """KRR-ST, algorithm 1 of the paper. Learns ``images`` images X_s and as many target representations Y_s.

    Paper and published code differ in ``pool_counter``, ``support_input``, ``real_view``, ``teacher_in_loop`` and
    ``evaluate.random_targets``; the default is the paper's side. (The code also empties the accelerator's memory cache
    at each step, which changes no number: left out.)
    """

    images: int = 200
    """m, the number of distilled images."""
    steps: int = 1800
    """Outer steps."""
    batch: int = 1024
    """Real images per outer step (all of them if the set is smaller)."""
    lr: float = 0.01
    """AdamW's lr for X_s (in pixels of [0, 1]) and Y_s."""
    lr_floor: float = 1e-3
    """The lr falls linearly to this fraction of itself."""
    weight_decay: float = 0.0
    """AdamW's weight decay for X_s and Y_s."""
    ridge: float = 1e-6
    """λ as a fraction of the trace of K_ss; not differentiated (section 3.3)."""
    bias: float = 1.0
    """Added to every kernel value: the paper's column of ones, without the column."""
    pool: int = 10
    """L, networks in the pool."""
    pool_steps: int = 1000
    """T, training steps after which a pool network is replaced by a new one."""
    pool_lr: float = 0.1
    """SGD's lr of the pool's networks, constant."""
    pool_momentum: float = 0.9
    """SGD's momentum of the pool's networks."""
    pool_weight_decay: float = 1e-3
    """SGD's weight decay of the pool's networks."""
    targets: Literal["learned", "fixed", "tied"] = "learned"
    """Y_s: "learned" (paper), "fixed" at the teacher's representations of the initial images, or "tied": the
    teacher's representations of the learned images at every step, with the gradient flowing through the teacher."""
    networks: int = 1
    """Pool networks that an outer step draws; the loss is their mean, solved as one batch. Paper: one."""
    initial: Literal["random", "k-means"] = "random"
    """Real images X_s starts from: a random draw (paper), or the medoids of k-means on the representations."""
    loss: Literal["mse", "cosine", "cross-entropy"] = "mse"
    """Outer loss between the prediction of kernel ridge regression and the representation. Paper: mse."""
    temperature: float = 1.0
    """Softmax temperature of ``loss="cross-entropy"``."""
    support_view: Literal["plain", "augmented"] = "plain"
    """View of X_s. "augmented": each outer step sees a crop (padding ``crop_pad``) and flip of X_s, and the gradient
    passes through it; the pool's networks still train on the plain images."""
    tv_weight: float = 0.0
    """Weight of the total variation of X_s beside the outer loss: smoother, more image-like images."""
    init_weight: float = 0.0
    """Weight of the squared distance between X_s and the real images it started from."""
    held_out: int = 0
    """Training images, drawn at random, that no real batch holds: what ``readout_every`` reads out on."""
    readout_every: int = 0
    """Outer steps between two read-outs; the pairs with the best one are the result. 0 (paper): the last pairs are."""
    readout_steps: int = 100
    """Training steps, on the pairs, of the new network that a read-out measures the representation error of."""
    pool_counter: Literal["reset", "stuck"] = "reset"
    """Counter of a pool network's steps when it is replaced. "reset" (paper): it starts from 0, so the pool keeps a mix
    of ages. "stuck" (code): it stays at ``pool_steps``, so the network is replaced again at each later draw; at the
    published length nearly all outer steps (96.7% in simulation) meet an untrained network."""
    support_input: Literal["normalised", "raw"] = "normalised"
    """What the networks get of X_s. "normalised" (what one expects; the paper does not say): normalised as a real image
    is. "raw" (code): pixels in [0, 1], while real images are normalised."""
    real_view: Literal["plain", "augmented"] = "plain"
    """View of the real batch. "plain" (paper): not augmented; equation 5 needs no augmentation to stay unbiased.
    "augmented" (code): crop after padding by ``crop_pad``, and flip; teacher and student see the same view."""
    views: int = 0
    """Of ``real_view="augmented"``: each real image is seen in one of this many views, drawn before the first step,
    whose representations are computed once. 0 (code): each view is drawn anew, and the teacher runs at every step."""
    crop_pad: int = 4
    """Pixels of padding for ``real_view="augmented"``; published with 32x32 and 64x64 images."""
    teacher_in_loop: Literal["cached", "recomputed"] = "cached"
    """Where representations of real images come from. "cached" (same numbers, cheaper): those of the plain images are
    computed once. "recomputed" (code): the teacher runs at every outer step. "augmented" views need it in any case."""
    log_every: int = 50
    """Outer steps between two log lines; a loss that is not finite is noticed at the next one."""

    def __post_init__(self) -> None:
        _check(self)
        _at_least_one(self, "images", "batch", "pool", "log_every", "networks")
        if self.networks > self.pool:
            raise InputError(f"DistillConfig.networks: expected at most pool ({self.pool}), got {self.networks}")
        if self.readout_every and not self.held_out:
            raise InputError("DistillConfig.held_out: readout_every needs images to read out on, got 0")
        if self.views and (self.real_view != "augmented" or self.teacher_in_loop != "cached"):
            raise InputError(
                "DistillConfig.views: expected 0 without real_view='augmented' and teacher_in_loop="
                f"'cached', got {self.views}"
            )
        if self.temperature == 0:
            raise InputError("DistillConfig.temperature: expected more than 0, got 0.0")
        if self.pool_steps < 2:
            raise InputError(f"DistillConfig.pool_steps: ages start in 1..T-1, expected T >= 2, got {self.pool_steps}")

    @property
    def batches_need_teacher(self) -> bool:
        """True if the teacher runs on the real batch of every step, instead of its representations being read."""
        drawn_anew = self.real_view == "augmented" and not self.views
        return drawn_anew or self.teacher_in_loop == "recomputed"

    @property
    def needs_teacher(self) -> bool:
        """True if a run needs the teacher itself: its representations of the plain images are not enough."""
        return self.batches_need_teacher or self.views > 0 or self.targets == "tied"


@dataclass(frozen=True)
class PretrainConfig:
    """Training a network from scratch on the pairs (X_s, Y_s): plain squared error, no augmentation (section 4.1)."""

    steps: int = 300
    """Steps of SGD; a published run makes 1000 epochs."""
    batch: int = 256
    """Pairs per step (all of them if there are fewer)."""
    lr: float = 0.05
    """SGD's lr."""
    momentum: float = 0.9
    """SGD's momentum."""
    weight_decay: float = 1e-3
    """SGD's weight decay."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Whether the lr stays as it is or falls to 0 along a cosine."""
    contrast: float = 1.0
    """While training, targets stand this many times as far from their mean; the head is set back afterwards, so that
    predictions are of the targets as they are. docs/results/cifar10 has what it does."""

    def __post_init__(self) -> None:
        _check(self)
        _at_least_one(self, "batch")
        if self.contrast == 0:
            raise InputError("PretrainConfig.contrast: expected more than 0, got 0")


@dataclass(frozen=True)
class FinetuneConfig:
    """Training all of a pre-trained network, with a new last layer, on labelled images of a target (section 4.1).

    SGD with momentum 0.9, cosine to 0 step by step, random crop (padding ``crop_pad``) and flip; train mode while
    training, running statistics carried over from the pre-training. `FINETUNE` has two recipes: "published", and
    "scaled", these values with all labels, for two cores.
    """

    share: float = 0.0
    """Share of the labelled training images, class by class and at least one of each; 0 leaves fine-tuning out."""
    steps: int = 300
    """Steps of SGD."""
    small_set_steps: int = 0
    """Steps for a target of fewer than 20,000 training images (published: Aircraft, Cars, CUB, Dogs, Flowers); 0: as
    `steps`."""
    batch: int = 64
    """Images per step."""
    last_batch: Literal["kept", "dropped"] = "kept"
    """The images that an epoch leaves over, fewer than `batch`: "kept" (published) as a smaller batch, or "dropped"."""
    lr: float = 0.01
    """SGD's lr at the first step."""
    weight_decay: float = 5e-4
    """SGD's weight decay, on all weights."""
    crop_pad: int = 4
    """Pixels of padding before a random crop of the old size."""
    normalise: Literal["target", "source"] = "target"
    """Whose mean and standard deviation the target's images are normalised with. "target" (published): its own.
    "source": those that the network was pre-trained with."""

    def __post_init__(self) -> None:
        _check(self)
        _at_least_one(self, "steps", "batch")
        if self.share > 1:
            raise InputError(f"FinetuneConfig.share: expected a share from 0 to 1, got {self.share}")


@dataclass(frozen=True)
class EvaluateConfig:
    """What a set of pairs is worth: representation error on held-out images, probes with few and with all labels."""

    labels: tuple[int, ...] = (1, 5, 20, 0)
    """Labels per class for the probes; 0 stands for all of them."""
    draws: int = 3
    """Draws of the labelled images for each probe with few labels; the same draws for every row of a seed."""
    probe_l2: float = 1.0
    """L2 penalty of the logistic regression, on features brought to mean 0 and variance 1."""
    random_targets: Literal["teacher", "labels"] = "teacher"
    """What the baseline of random images is trained to give. "teacher": the teacher's representations, the stronger
    baseline. "labels" (code): their labels, never the teacher (no representation error then)."""

    def __post_init__(self) -> None:
        _check(self)
        _at_least_one(self, "draws")


@dataclass(frozen=True)
class Settings:
    """All settings of a run. ``PRESETS`` holds the named ones; :func:`with_settings` changes single fields."""

    name: str
    student: StudentConfig = field(default_factory=StudentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    kd: KdConfig = field(default_factory=KdConfig)
