"""One frozen dataclass per stage, one docstring per field: help, documentation and error messages come from here.

If the paper (Lee et al., ICLR 2024, arXiv 2310.06511) and its published code differ, the setting is a named option
whose default is the paper's side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from .choices import METHOD_NAMES, SELECTION_NAMES, STORAGE_NAMES
from .errors import InputError
from .methods import ClpDdConfig, DmConfig, FrepoConfig, KipConfig, RfadConfig
from .ranges import check_at_least_one, check_positive, check_values
from .storage import BasesConfig, PyramidConfig
from .tasks import ClassifierConfig, KdConfig

if TYPE_CHECKING:
    Method: TypeAlias = str
    Selection: TypeAlias = str
    Storage: TypeAlias = str
else:
    Method, Selection, Storage = Literal[METHOD_NAMES], Literal[SELECTION_NAMES], Literal[STORAGE_NAMES]


@dataclass(frozen=True)
class AugmentConfig:
    """Random views for the teacher's self-supervised training. 0 switches a transformation off."""

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
        check_values(self)


@dataclass(frozen=True)
class StudentConfig:
    """The student: the network that is distilled for. The published one repeats convolution, BatchNorm, ReLU and 2x2
    average pool."""

    model: str = "convnet-32-64-128"
    """Architecture: "convnet-W-W-..." with the channels of each block, such as convnet-32-64-128; "resnet10",
    "resnet18", "vgg11", "alexnet", "mobilenetv2"; "timm:NAME", "torchvision:NAME", or "package.module:factory"."""
    width: float = 1.0
    """Factor on all channels of a network of this package: 0.25 for runs on few cores."""
    stem: Literal["cifar", "imagenet"] = "cifar"
    """First layers of a ResNet. "cifar" (published): 3x3, stride 1, padding 2, no max-pool. "imagenet": torchvision's
    7x7 with stride 2 and max-pool."""
    channels_last: bool = False
    """Keep the channels of a pixel side by side in memory. The network is the same and up to twice as fast on colour
    images."""
    compiled: bool = False
    """Compile the network by torch.compile, which needs a C++ compiler. The numbers are the same up to rounding, and
    it is 1.1 to 1.3 times as fast on one core at the shapes of cifar10-cpu."""
    training: Literal["float32", "bf16"] = "float32"
    """Arithmetic of the network's own training steps, in the pool and in pre-training; "bf16" is 1.6 times as fast
    on a processor that has it, and takes ten times as long on one that does not. The features that the outer loss sees
    stay float32: in bf16 the gradient to X_s was off by 7%."""

    def __post_init__(self) -> None:
        check_values(self)
        check_positive(self, "width")


@dataclass(frozen=True)
class TeacherConfig:
    """How a teacher is trained without labels. The paper uses Barlow Twins (section 4)."""

    method: Literal["barlow-twins", "simclr", "byol"] = "barlow-twins"
    """Self-supervised training method."""
    backbone: Literal["convnet", "resnet10", "resnet18"] = "convnet"
    """Network: a ConvNet with ``widths`` that ends in a mean over positions, or a ResNet with the published stem,
    whose representations have 512 numbers."""
    widths: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of each block of a "convnet" backbone; the last one is the length of a representation."""
    epochs: int = 0
    """Passes over the training images. 0: as many as 1,000 steps need, at least 20 and at most 300."""
    batch: int = 256
    """Images per step."""
    lr: float = 2e-3
    """AdamW's largest learning rate: it rises over the first tenth of the steps, then falls to 0 along a cosine."""
    weight_decay: float = 1e-4
    """AdamW's weight decay."""
    projector: int = 512
    """Width of the two layers between the representation and the loss, and of BYOL's predictor. They are dropped
    after training."""
    redundancy: float = 0.005
    """Barlow Twins only: weight of the off-diagonal terms of the cross-correlation matrix."""
    temperature: float = 0.5
    """SimCLR only: temperature that the cosine similarities are divided by."""
    training: Literal["float32", "bf16"] = "float32"
    """Arithmetic of the backbone during training; weights, projector and loss stay float32. "bf16" is for GPUs, and for
    processors that have it."""
    ema: float = 0.99
    """BYOL only: decay of the moving average of the weights at the first step, the share of its old value that it
    keeps. It rises to 1 along a cosine, as in the paper (0.996 for 1,000 epochs, 0.99 for 300)."""
    seed: int = 0
    """Seed of the initial weights and of every random draw of the training."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random views of the training images."""

    def __post_init__(self) -> None:
        check_values(self)
        check_at_least_one(self, "batch", "projector")
        if self.batch < 2:
            raise InputError(f"TeacherConfig.batch: expected at least 2, to correlate over, got {self.batch}")
        if self.temperature == 0 or self.ema > 1:
            raise InputError(
                f"TeacherConfig: expected temperature above 0 and ema from 0 to 1, "
                f"got {self.temperature} and {self.ema}"
            )

    def steps(self, images: int) -> int:
        """Return the number of optimizer steps on ``images`` training images."""
        per_epoch = max(1, images // min(self.batch, max(1, images)))
        return (self.epochs or min(300, max(20, -(-1000 // per_epoch)))) * per_epoch


@dataclass(frozen=True)
class DistillConfig:
    """Distillation by KRR-ST, algorithm 1 of the paper, or by another method: ``images`` images X_s and their targets
    Y_s are learned.

    Paper and published code differ in ``pool_counter``, ``support_input``, ``real_view``, ``teacher_in_loop`` and
    ``evaluate.random_targets``; the default is the paper's side. (The code also empties the accelerator's memory cache
    at each step. That changes no number and is left out.)
    """

    method: Method = "krr-st"
    """What is minimised: "krr-st" (this paper), or a rival on the same solver (docs/methods.md)."""
    images: int = 200
    """Number of distilled images (the paper's m)."""
    steps: int = 1800
    """Number of outer steps: updates of X_s and Y_s."""
    batch: int = 1024
    """Real images per outer step (all of them if the set is smaller)."""
    lr: float = 0.01
    """AdamW's initial learning rate for X_s (in pixel units of [0, 1]) and Y_s."""
    lr_floor: float = 1e-3
    """Fraction of its initial value that the learning rate falls to, linearly over the steps."""
    weight_decay: float = 0.0
    """AdamW's weight decay for X_s and Y_s."""
    ridge: float = 1e-6
    """krr-st: ridge λ of the kernel ridge regression, as a fraction of the trace of K_ss. No gradient flows through the
    trace (section 3.3). 1e-6 is published; with 1e-4 and 1e-3 the error was lower (docs/results/options)."""
    bias: float = 1.0
    """krr-st: number added to every kernel value. 1 is the paper's column of ones in the features, without storing the
    column."""
    pool: int = 10
    """Number of networks in the pool (the paper's L)."""
    pool_steps: int = 1000
    """Training steps after which a network of the pool is replaced by a new one (the paper's T)."""
    pool_lr: float = 0.1
    """SGD's learning rate for the networks of the pool, constant."""
    pool_momentum: float = 0.9
    """SGD's momentum for the networks of the pool."""
    pool_weight_decay: float = 1e-3
    """SGD's weight decay for the networks of the pool."""
    targets: Literal["learned", "fixed", "tied"] = "learned"
    """How the targets Y_s are chosen. "learned" (paper): by gradient descent. "fixed": the teacher's representations of
    the initial images, to see what the images alone do; the error is higher (docs/results/options). "tied"
    (deprecated): the teacher's representations of X_s at every step; the gradient flows through the teacher."""
    networks: int = 1
    """Networks of the pool that an outer step draws; the loss is their mean, solved as one batch. The paper draws one.
    Several are for several processes (docs/processes.md); docs/results/options has the effect of two."""
    initial: Selection = "random"
    """How the real images that X_s starts from are chosen: a random draw (paper), or another selection
    (docs/studies.md describes each). With "k-means" the error was lower on digits (docs/results/options)."""
    loss: Literal["mse", "cosine", "cross-entropy"] = "mse"
    """krr-st: outer loss between the prediction of kernel ridge regression and the teacher's representation. The paper
    uses mse. The others are deprecated: the error was higher (docs/results/options)."""
    temperature: float = 1.0
    """Softmax temperature of ``loss="cross-entropy"``, deprecated with it; other losses ignore it."""
    support_view: Literal["plain", "augmented"] = "plain"
    """View of X_s in the outer loss. "augmented" (deprecated): each outer step sees a random crop (padding
    ``crop_pad``) and flip of X_s, and the gradient passes through it. The networks of the pool still train on the plain
    images."""
    tv_weight: float = 0.0
    """Weight of the total variation of X_s in the loss; a larger weight gives smoother, more image-like images. Use it
    if people look at the images; docs/results/options has its price."""
    init_weight: float = 0.0
    """Weight, in the loss, of the squared distance between X_s and the real images it started from. Use it if the
    images should stay close to real ones; docs/results/options has its price."""
    held_out: int = 0
    """Deprecated. Training images, drawn at random, that no real batch contains. ``readout_every`` measures the error
    on them."""
    readout_every: int = 0
    """Deprecated: the last pairs were better (docs/results/options). Outer steps between two read-outs, which train a
    new network on the pairs and measure its error on the ``held_out`` images. The pairs with the lowest error are the
    result. 0 (paper): no read-outs; the last pairs are the result."""
    readout_steps: int = 100
    """Deprecated. Training steps of the new network of a read-out."""
    pool_counter: Literal["reset", "stuck"] = "reset"
    """Step counter of a replaced network of the pool. "reset" (paper): it starts from 0, so the pool keeps a mix of
    ages. "stuck" (code): it stays at ``pool_steps``, so the network is replaced again at each later draw; over
    the published number of steps, nearly all outer steps (96.7% in simulation) then see an untrained network."""
    support_input: Literal["normalised", "raw"] = "normalised"
    """How X_s enters the networks. "normalised" (the paper does not say): with the mean and std of the real images.
    "raw" (code): as pixels in [0, 1], while real images are normalised."""
    real_view: Literal["plain", "augmented"] = "plain"
    """View of the real batch. "plain" (paper): not augmented; equation 5 is unbiased without augmentation.
    "augmented" (code): random crop after padding by ``crop_pad``, and flip; teacher and student see the same
    view."""
    views: int = 0
    """For ``real_view="augmented"``: number of views per real image, drawn before the first step, whose
    representations are computed once. 0 (code): every view is drawn anew, and the teacher runs at every step."""
    crop_pad: int = 4
    """Pixels of padding before a random crop, for "augmented" views. The published value is for 32x32 and 64x64
    images."""
    teacher_in_loop: Literal["cached", "recomputed"] = "cached"
    """Source of the real images' representations. "cached": computed once from the plain images, which gives the
    same numbers for less work. "recomputed" (code): the teacher runs at every outer step. New "augmented" views
    always need the teacher."""
    log_every: int = 50
    """Outer steps between two log lines. A loss that is not finite is noticed at the next one."""
    storage: Storage = "pixels"
    """What is learned of an image: "pixels" (paper), or values that images and targets follow from: principal
    components ("bases") or several resolutions ("pyramid"). docs/storage.md describes each."""
    budget: int = 0
    """Bytes that the set may take as it is stored, at four bytes a number; as many images as it holds are distilled, in
    place of ``images``. 0: ``images`` says how many."""
    transforms: Literal["none", "flip", "rotations", "dihedral"] = "none"
    """Fixed versions of every image that are part of the set, each with a target of its own: left-right flip, rotations
    by 90, 180 and 270 degrees, or both. The set then has 2, 4 or 8 pairs per image. Paper: none."""
    bases: BasesConfig = field(default_factory=BasesConfig)
    pyramid: PyramidConfig = field(default_factory=PyramidConfig)
    frepo: FrepoConfig = field(default_factory=FrepoConfig)
    dm: DmConfig = field(default_factory=DmConfig)
    clp_dd: ClpDdConfig = field(default_factory=ClpDdConfig)
    rfad: RfadConfig = field(default_factory=RfadConfig)
    kip: KipConfig = field(default_factory=KipConfig)

    def __post_init__(self) -> None:
        check_values(self)
        check_at_least_one(self, "images", "batch", "pool", "log_every", "networks")
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
        if self.targets == "tied" and self.storage == "bases":
            raise InputError(
                "DistillConfig.targets: 'tied' targets are those of the learned images; storage='bases' learns targets"
            )
        if self.pool_steps < 2:
            raise InputError(f"DistillConfig.pool_steps: ages start in 1..T-1, expected T >= 2, got {self.pool_steps}")

    @property
    def batches_need_teacher(self) -> bool:
        """True if the teacher runs on the real batch of every step; False if stored representations are read."""
        drawn_anew = self.real_view == "augmented" and not self.views
        return drawn_anew or self.teacher_in_loop == "recomputed"

    @property
    def needs_teacher(self) -> bool:
        """True if a run needs the teacher itself, and its representations of the plain images are not enough."""
        return self.batches_need_teacher or self.views > 0 or self.targets == "tied" or self.transforms != "none"


@dataclass(frozen=True)
class PretrainConfig:
    """Training a network from scratch on the pairs (X_s, Y_s) by squared error, without augmentation (section 4.1)."""

    steps: int = 300
    """SGD steps. A published run makes 1000 epochs."""
    batch: int = 256
    """Pairs per step (all of them if there are fewer)."""
    lr: float = 0.05
    """SGD's initial learning rate."""
    momentum: float = 0.9
    """SGD's momentum."""
    weight_decay: float = 1e-3
    """SGD's weight decay."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """Learning rate over the steps: "constant", or "cosine", which falls to 0."""
    contrast: float = 1.0
    """Factor on the targets' distance from their mean during training. The head is rescaled afterwards, so that it
    predicts the original targets. docs/results/cifar10 has its effect."""

    def __post_init__(self) -> None:
        check_values(self)
        check_at_least_one(self, "batch")
        if self.contrast == 0:
            raise InputError("PretrainConfig.contrast: expected more than 0, got 0")


@dataclass(frozen=True)
class FinetuneConfig:
    """Training all of a pre-trained network, with a new last layer, on labelled images of a target set (section 4.1).

    SGD with momentum 0.9, a learning rate that falls to 0 along a cosine step by step, random crops (padding
    ``crop_pad``) and flips. BatchNorm trains on the statistics of the batch and carries on the running statistics of
    the pre-training. `FINETUNE` has two recipes: "published", and "scaled", these values with all labels, for two
    cores.
    """

    share: float = 0.0
    """Share of the labelled training images of each class, at least one image; 0 skips fine-tuning."""
    steps: int = 300
    """SGD steps."""
    small_set_steps: int = 0
    """SGD steps for a target of fewer than 20,000 training images (published: Aircraft, Cars, CUB, Dogs, Flowers); 0:
    the same as ``steps``."""
    batch: int = 64
    """Images per step."""
    last_batch: Literal["kept", "dropped"] = "kept"
    """The images that an epoch leaves over, fewer than `batch`: "kept" (published) as a smaller batch, or "dropped"."""
    lr: float = 0.01
    """SGD's initial learning rate."""
    weight_decay: float = 5e-4
    """SGD's weight decay, on all weights."""
    crop_pad: int = 4
    """Pixels of padding before a random crop to the original size."""
    normalise: Literal["target", "source"] = "target"
    """Mean and standard deviation that the target's images are normalised with. "target" (published): its own.
    "source": those that the network was pre-trained with."""
    untested_classes: Literal["error", "kept"] = "error"
    """A class of the target that has no test images: "error", or "kept", which trains on it and never tests it
    (Flowers in docs/results/cifar10 has a class of one image)."""

    def __post_init__(self) -> None:
        check_values(self)
        check_at_least_one(self, "steps", "batch")
        if self.share > 1:
            raise InputError(f"FinetuneConfig.share: expected a share from 0 to 1, got {self.share}")


@dataclass(frozen=True)
class EvaluateConfig:
    """How a distilled set is measured: representation error on held-out images, and linear probes with few and with
    all labels."""

    labels: tuple[int, ...] = (1, 5, 20, 0)
    """Labels per class, one probe for each number; 0 means all labels. "[]": no probes."""
    draws: int = 3
    """Random draws of the labelled images per probe with few labels; their mean counts. All rows of a seed share the
    draws."""
    probe_l2: float = 1.0
    """L2 penalty of the probe, a logistic regression on features of mean 0 and variance 1."""
    random_targets: Literal["teacher", "labels"] = "teacher"
    """Training targets of the baseline of random images. "teacher": the teacher's representations, the stronger
    baseline. "labels" (code): their labels, without the teacher; it then has no representation error."""

    def __post_init__(self) -> None:
        check_values(self)
        check_at_least_one(self, "draws")


@dataclass(frozen=True)
class Settings:
    """All settings of a run. ``PRESETS`` holds the named ones; :func:`with_settings` changes single fields."""

    name: str
    """Name of the preset."""
    student: StudentConfig = field(default_factory=StudentConfig)
    """The network that is distilled for."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    """The training of the teacher."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """The distillation."""
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    """The pre-training on the distilled pairs."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """The measurements."""
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    """The fine-tuning on a target set."""
    classifier: ClassifierConfig = field(default_factory=ClassifierConfig)
    """The training of a classifier, the teacher of `ssdd kd`."""
    kd: KdConfig = field(default_factory=KdConfig)
    """The distillation of a classifier into a student."""
