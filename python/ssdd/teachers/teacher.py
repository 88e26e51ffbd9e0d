"""A teacher: a frozen network with the preprocessing that it expects."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..artifact import Preprocessing, read_safetensors, write_atomically
from ..config import InputError, in_float32
from ..data import CPU, one_line, to_device
from ..models import (
    DEPTHS,
    ConvNet,
    ResNet,
    build_stored,
    find_factory,
    named_resnet,
    standard_resnet,
)
from .weights import (
    ENDINGS,
    Network,
    choose_network,
    find_fitting,
    find_nearest,
    is_weights,
    read_weights,
    resnets,
    stem_padding_of,
)

FORMAT = "ssdd.teacher"
BACKBONE = "ssdd.backbone"
"""The format of what `ssdd pretrain` writes."""
CLASSIFIER = "ssdd.classifier"
"""The format of what `ssdd train-classifier` and `ssdd kd` write."""
BATCH = 500
"""Images per batch of a teacher at 32x32 pixels; batches of larger images are smaller (:func:`at_once`)."""
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""The preprocessing of networks in torchvision's form."""


def at_once(height: int, width: int) -> int:
    """Return the number of images per batch for that size: as many pixels as ``BATCH`` images of 32x32 have.

    A network's memory grows with the pixels: 500 images of 224x224 would take a ResNet-50 several GB.
    """
    return max(1, min(BATCH, BATCH * 32 * 32 // (height * width)))


def teacher_backbone(kind: str, channels: int, size: tuple[int, int], widths: tuple[int, ...]) -> ConvNet | ResNet:
    """Build a teacher's network with random weights: "convnet" with ``widths``, pooled, or a ResNet with the
    published stem."""
    return named_resnet(kind, channels) if kind in DEPTHS else ConvNet(channels, size, widths, pooled=True)


Represent = Callable[[Tensor], Tensor]
"""A teacher as a callable from images [N, C, H, W] to representations [N, C]. A :class:`Teacher` normalises images
with its own mean and std. Any other callable gets images with the normalisation of the data."""


class Teacher:
    """The teacher (the paper's g): a frozen network with the preprocessing that it expects.

    Args:
        module: any ``nn.Module`` from normalised images [N, C, H, W] to representations [N, D]. It is put in eval mode,
            and its weights get no gradients.
        preprocessing: the mean and std that it was trained with.
        about: JSON values that are kept with the weights and in logs. Default {}.
        summary: one line on what was read from a file of weights. Default "".
    """

    def __init__(
        self, module: nn.Module, preprocessing: Preprocessing, about: dict[str, Any] | None = None, summary: str = ""
    ) -> None:
        if not isinstance(module, nn.Module):
            raise InputError(f"teacher: expected a torch.nn.Module, got {type(module).__name__}")
        self.module = module.eval().requires_grad_(False)
        self.module.zero_grad()  # gradients left from training are not used
        self.preprocessing = preprocessing
        self.about = dict(about or {})
        self.summary = one_line(summary)

    def __call__(self, x: Tensor) -> Tensor:
        """Compute representations, float32 [N, D], of normalised images [N, C, H, W], and check their shape.

        Gradients flow to images that require them, never to the network's weights. Values are not checked here, as that
        would synchronise with a GPU. :meth:`represent` refuses values that are not finite, and a loss shows them.
        """
        y = self.module(x)
        if not isinstance(y, Tensor) or y.dim() != 2 or len(y) != len(x) or not y.shape[1]:
            came = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise InputError(
                f"teacher: expected one vector per image, a tensor [{len(x)}, D], got {came}; "
                "wrap the network so that it pools or flattens its output"
            )
        return y.to(torch.float32)

    def accepting(self, preprocessing: Preprocessing) -> Callable[[Tensor], Tensor]:
        """Return this teacher as a function of images that are normalised with ``preprocessing``."""
        if preprocessing == self.preprocessing:
            return self
        return lambda x: self(self.preprocessing.normalise(preprocessing.pixels(x)))

    @property
    def device(self) -> torch.device:
        """The device of the network and of its input."""
        tensors = (*self.module.parameters(), *self.module.buffers())
        return tensors[0].device if tensors else CPU

    def to(self, device: torch.device) -> Teacher:
        """Move the network to ``device`` and return this teacher."""
        self.module.to(device)
        return self

    @torch.no_grad()
    @in_float32
    def represent(self, images: Tensor) -> Tensor:
        """Compute representations, float32 [N, D] in main memory, of stored images, uint8 [N, H, W, C]."""
        return torch.cat(list(self.represented(images)))

    @torch.no_grad()
    def represented(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the result of :meth:`represent` batch by batch, for sets that do not fit in memory."""
        device, channels = self.device, len(self.preprocessing.mean)
        if images.shape[-1] != channels:
            raise InputError(f"teacher: expected images of {channels} channels, got {images.shape[-1]}")
        try:
            for part in images.split(at_once(*images.shape[1:3])):
                y = self(self.preprocessing(to_device(part, device))).cpu()
                if not bool(torch.isfinite(y).all()):
                    raise InputError(
                        "teacher: its output has values that are not finite; check weights and preprocessing"
                    )
                yield y
        except RuntimeError as error:  # a network made for other channels or sizes
            raise InputError(f"teacher: cannot run on images of {list(images.shape[1:])}: {error}") from error

    def on_size(self, size: tuple[int, int]) -> str:
        """Return one line that says so if this teacher was trained on images of another size; otherwise ""."""
        own = list(self.about.get("size") or size)
        if own == list(size):
            return ""
        theirs, these = ("x".join(str(n) for n in reversed(sides)) for sides in (own, size))
        return f"teacher: trained on images of {theirs}, used on {these}; use --size {own[0]}, or train one on {these}"

    def key(self) -> str:
        """Return the SHA-256 of weights, structure and preprocessing: with the data, the key of cached
        representations."""
        digest = hashlib.sha256(f"{self.module!r} {asdict(self.preprocessing)}".encode())
        for name, value in self.module.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a teacher that was trained here. Save your own network yourself."""
        if not isinstance(self.module, ConvNet | ResNet) or "widths" not in self.about:
            raise InputError("teacher: only a teacher trained by ssdd can be saved; save your own network yourself")
        meta = {"format": FORMAT, "preprocessing": asdict(self.preprocessing), "about": self.about}
        self.check_file(path)
        tensors = {key: value.contiguous() for key, value in self.module.state_dict().items()}
        return write_atomically(path, to_bytes(tensors, metadata={"ssdd": json.dumps(meta)}))

    @staticmethod
    def check_file(path: str | os.PathLike[str]) -> None:
        """Raise :class:`InputError` if ``path`` is no name that :meth:`named` recognises as a teacher's file."""
        if Path(path).suffix.lower() != ".safetensors":
            right = Path(path).with_suffix(".safetensors").name
            raise InputError(
                f"teacher: expected a file that ends in .safetensors, got {Path(path).name!r}; write {right}"
            )

    @classmethod
    @in_float32
    def load(cls, path: str | os.PathLike[str]) -> Teacher:
        """Read a file that :meth:`save` wrote, or the backbone that `ssdd pretrain` wrote."""
        tensors, meta = read_safetensors(path)
        if meta.get("format") in (BACKBONE, CLASSIFIER):
            return cls._pretrained(Path(path), tensors, meta)
        if meta.get("format") != FORMAT:
            raise InputError(
                f"{path}: expected a network written by `ssdd teacher`, `ssdd pretrain`, `ssdd train-classifier` or "
                f"`ssdd kd`, got format {meta.get('format')!r}"
            )
        try:
            about = meta["about"]
            kind = about.get("backbone", "convnet")
            module = teacher_backbone(kind, about["channels"], tuple(about["size"]), tuple(about["widths"]))
            module.load_state_dict(tensors)
            pre = Preprocessing.stored(meta)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: damaged teacher file ({error})") from None
        return cls(module, pre, about)

    @classmethod
    def _pretrained(cls, path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Teacher:
        """Return the backbone of a pre-trained network or of a classifier; its features are the output."""
        how = "pre-trained on a distilled set" if meta["format"] == BACKBONE else "of a classifier"
        try:
            about = meta if meta["format"] == BACKBONE else meta["about"]
            network = build_stored(about, about.get("classes", 1))
            (network.backbone if about is meta else network).load_state_dict(tensors)
            pre = Preprocessing.stored(meta)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: damaged file of a pre-trained network ({error})") from None
        summary = f"{path.name}: {about['model']}, {network.dimension} features, {how}"
        return cls(network.backbone, pre, {"name": path.name, "model": about["model"]}, summary)

    @classmethod
    @in_float32
    def named(
        cls, name: str, preprocessing: Preprocessing, prefix: str | None = None, stem_padding: int | None = None
    ) -> Teacher:
        """Return a teacher by name. Files are read as weights only: nothing in them is executed.

        Args:
            name: ``FILE.safetensors`` written by ``ssdd teacher``; or a file of weights (.pt, .pth, .pth.tar, .ckpt,
                .bin, .safetensors) of a ResNet in torchvision's form; or ``package.module:factory``, also with
                ``@FILE``, weights for the network that it returns. The factory is called without arguments and returns
                an ``nn.Module``, or a :class:`Teacher` if the network needs another preprocessing than the data's. The
                module may be in the current folder. A name that exists as a file, or is no Python name, is a file, even
                with colons in it.
            preprocessing: the data's mean and std. A ResNet with a 7x7 stem gets ImageNet's instead.
            prefix: names the network to read from a file with several. Default: MoCo's query or BYOL's online network;
                any other choice is an :class:`InputError`. ``summary`` says which was read.
            stem_padding: padding of a 3x3 stem, which weights do not tell. Default: 1 or 2, by the weights' names;
                ``summary`` says which.
        """
        place, _, attribute = name.partition(":")
        attribute, _, weights = attribute.partition("@")
        factory = attribute.isidentifier() and all(word.isidentifier() for word in place.split("."))
        factory = factory and not os.path.isfile(place)  # mine.py:make
        if is_weights(name) and (not factory or Path(name).is_file()):
            if name.lower().endswith(".safetensors") and read_safetensors(name)[1]:
                if prefix is not None:
                    raise InputError(f"teacher prefix: {Path(name).name} holds one network, trained here; leave it out")
                return cls.load(name)
            return cls._resnet(Path(name), preprocessing, prefix, stem_padding)
        if not factory:
            module = re.fullmatch(r"(?:\./)?([\w/]+)\.py:(\w.*)", name)
            advice = f"; write {module[1].replace('/', '.')}:{module[2]}" if module else ""
            raise InputError(
                f"teacher: expected a file of weights ({', '.join(ENDINGS)}) or "
                f"package.module:factory[@FILE.pth], got {name!r}{advice}"
            )
        if prefix is not None and not weights:
            raise InputError(f"teacher prefix: expected it with a file of weights, got the teacher {name!r}")
        try:
            made = find_factory(place, attribute)()
        except Exception as error:  # code of the user's: it may raise anything
            why = f"{type(error).__name__}: {error}"
            raise InputError(f"teacher: {place}:{attribute} cannot be made ({why})") from error
        teacher = made if isinstance(made, Teacher) else cls(made, preprocessing, {"name": name})
        if weights:
            teacher._take(Path(weights), f"{place}:{attribute}", prefix)
        return teacher

    @classmethod
    def _resnet(cls, file: Path, preprocessing: Preprocessing, prefix: str | None, stem_padding: int | None) -> Teacher:
        """Read the weights of a ResNet under torchvision's names."""
        state = read_weights(file)
        candidates = resnets(state)
        choice = choose_network(candidates, prefix, file.name) if candidates else Network("", state, "")
        padding = stem_padding_of(state, choice.prefix) if stem_padding is None else stem_padding
        try:
            network = standard_resnet(choice.state, padding)
        except InputError as error:
            raise InputError(f"teacher: {file.name}: {error}") from None
        small = network.conv1.kernel_size[0] < 7
        stem = (
            f"3x3 without max-pool, padding {padding}, images normalised as the data"
            if small
            else "7x7, images normalised as ImageNet"
        )
        summary = f"{file.name}: ResNet{choice.place}, {network.dimension} numbers per image, stem {stem}"
        about = {"name": file.name, "prefix": choice.prefix}
        return cls(network, preprocessing if small else IMAGENET, about, summary)

    def _take(self, file: Path, maker: str, prefix: str | None) -> None:
        """Load a file of weights into the network that ``maker`` made."""
        state = read_weights(file)
        candidates = find_fitting(state, self.module.state_dict())
        choice = choose_network(candidates, prefix, file.name) if candidates or prefix is not None else None
        try:
            self.module.load_state_dict(choice.state if choice else find_nearest(state, self.module.state_dict()))
        except RuntimeError as error:  # names or shapes that do not fit; torch lists them
            raise InputError(f"teacher: {file.name} does not fit {maker}: {error}") from None
        if choice:
            self.about["prefix"] = choice.prefix
            self.summary = one_line(f"{file.name}: weights of {maker}{choice.place}")
