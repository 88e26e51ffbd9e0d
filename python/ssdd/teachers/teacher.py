"""A teacher: a frozen network with the preprocessing it wants."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ..artifact import Preprocessing, read_safetensors, write_atomically
from ..config import InputError
from ..data import CPU, one_line, to_device
from ..models import DEPTHS, STEM_PADDING, ConvNet, ResNet, build, import_from_here, named_resnet, standard_resnet
from .weights import ENDINGS, Network, chosen, fitting, is_weights, nearest, read_weights, resnets

FORMAT = "ssdd.teacher"
BACKBONE = "ssdd.backbone"
"""The format of what `ssdd pretrain` writes."""
BATCH = 500
"""Images that a teacher is shown at once, at most; larger ones than 32x32 are fewer (:func:`at_once`)."""
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""What networks in torchvision's form were trained with."""


def at_once(height: int, width: int) -> int:
    """How many images of that size a teacher is shown at once: as many pixels as ``BATCH`` images of 32x32 have.

    What a network keeps in memory grows with the pixels: 500 images of 224x224 would take a ResNet-50 several GB.
    """
    return max(1, min(BATCH, BATCH * 32 * 32 // (height * width)))


def teacher_backbone(kind: str, channels: int, size: tuple[int, int], widths: tuple[int, ...]) -> ConvNet | ResNet:
    """A teacher's network with a random start: "convnet" with ``widths``, pooled, or a ResNet (published stem)."""
    return named_resnet(kind, channels) if kind in DEPTHS else ConvNet(channels, size, widths, pooled=True)


Represent = Callable[[Tensor], Tensor]
"""A teacher as a callable: images [N, C, H, W] -> representations [N, C]. A :class:`Teacher` normalises them as it
wants; any other callable is handed images that are normalised as the data are."""


class Teacher:
    """g of the paper. ``module`` maps normalised images [N, C, H, W] to representations [N, D].

    Any ``nn.Module`` of the user's will do: it is put in eval mode, its weights ask for no gradients. ``preprocessing``
    is the mean and std it was trained with. ``about`` (JSON values) is kept with the weights and in logs. ``summary``
    says in one line what was taken from a file of weights.
    """

    def __init__(
        self, module: nn.Module, preprocessing: Preprocessing, about: dict[str, Any] | None = None, summary: str = ""
    ) -> None:
        if not isinstance(module, nn.Module):
            raise InputError(f"teacher: expected a torch.nn.Module, got {type(module).__name__}")
        self.module = module.eval().requires_grad_(False)
        self.module.zero_grad()  # training leaves gradients that nobody will use
        self.preprocessing = preprocessing
        self.about = dict(about or {})
        self.summary = one_line(summary)

    def __call__(self, x: Tensor) -> Tensor:
        """Normalised images [N, C, H, W] -> representations, float32 [N, D]; checks the shape the network returned.

        A gradient flows to images that ask for one, never to the network's weights. Values are not read here, so that
        a loop on a GPU need not wait for them: :meth:`represent` refuses what is not finite, and a loss shows it.
        """
        y = self.module(x)
        if not isinstance(y, Tensor) or y.dim() != 2 or len(y) != len(x):
            came = list(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise InputError(
                f"teacher: expected one vector an image, a tensor [{len(x)}, D], got {came}; "
                "wrap the network so that it pools or flattens its output"
            )
        return y.to(torch.float32)

    def accepting(self, preprocessing: Preprocessing) -> Callable[[Tensor], Tensor]:
        """This teacher as a function of images normalised with ``preprocessing``."""
        if preprocessing == self.preprocessing:
            return self
        return lambda x: self(self.preprocessing.normalise(preprocessing.pixels(x)))

    @property
    def device(self) -> torch.device:
        """Where the network is, and wants its images."""
        tensors = (*self.module.parameters(), *self.module.buffers())
        return tensors[0].device if tensors else CPU

    def to(self, device: torch.device) -> Teacher:
        """The same teacher, its network moved to ``device``."""
        self.module.to(device)
        return self

    @torch.no_grad()
    def represent(self, images: Tensor) -> Tensor:
        """Stored images, uint8 [N, H, W, C] -> representations, float32 [N, D], in main memory."""
        return torch.cat(list(self.represented(images)))

    @torch.no_grad()
    def represented(self, images: Tensor) -> Iterator[Tensor]:
        """:meth:`represent` a batch at a time: for sets that do not fit in memory."""
        device, channels = self.device, len(self.preprocessing.mean)
        if images.shape[-1] != channels:
            raise InputError(f"teacher: it was made for images of {channels} channels, these have {images.shape[-1]}")
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

    def key(self) -> str:
        """SHA-256 of weights, structure and preprocessing: what representations are cached under, with the data."""
        digest = hashlib.sha256(f"{self.module!r} {asdict(self.preprocessing)}".encode())
        for name, value in self.module.state_dict().items():
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a teacher that was trained here; a network of the user's is theirs to save."""
        if not isinstance(self.module, ConvNet | ResNet) or "widths" not in self.about:
            raise InputError("teacher: only a teacher trained by ssdd can be saved; save your own network yourself")
        meta = {"format": FORMAT, "preprocessing": asdict(self.preprocessing), "about": self.about}
        self.check_file(path)
        tensors = {key: value.contiguous() for key, value in self.module.state_dict().items()}
        return write_atomically(path, to_bytes(tensors, metadata={"ssdd": json.dumps(meta)}))

    @staticmethod
    def check_file(path: str | os.PathLike[str]) -> None:
        """Raise :class:`InputError` if a teacher saved at ``path`` could not be named as one afterwards."""
        if Path(path).suffix.lower() != ".safetensors":
            right = Path(path).with_suffix(".safetensors").name
            raise InputError(
                f"teacher: expected a file that ends in .safetensors, got {Path(path).name!r}; write {right}"
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Teacher:
        """Read what :meth:`save` wrote, or the backbone that `ssdd pretrain` wrote."""
        tensors, meta = read_safetensors(path)
        if meta.get("format") == BACKBONE:
            return cls._pretrained(Path(path), tensors, meta)
        if meta.get("format") != FORMAT:
            raise InputError(f"{path}: expected a teacher written by `ssdd teacher`, got format {meta.get('format')!r}")
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
        """Return the backbone of a network that was pre-trained on a distilled set; its features are the output."""
        try:
            shape = {key: meta[key] for key in ("width", "stem") if key in meta}
            network = build(meta["model"], meta["channels"], tuple(meta["size"]), 1, **shape)
            network.backbone.load_state_dict(tensors)
            pre = Preprocessing.stored(meta)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: damaged file of a pre-trained network ({error})") from None
        summary = f"{path.name}: {meta['model']}, {network.dimension} features, pre-trained on a distilled set"
        return cls(network.backbone, pre, {"name": path.name, "model": meta["model"]}, summary)

    @classmethod
    def named(
        cls, name: str, preprocessing: Preprocessing, prefix: str | None = None, stem_padding: int = STEM_PADDING
    ) -> Teacher:
        """``FILE.safetensors`` written by ``ssdd teacher``; a file of weights (.pt, .pth, .pth.tar, .ckpt, .bin,
        .safetensors) of a ResNet in torchvision's form; ``package.module:factory`` of the user's, or the same with
        ``@FILE``, weights for the network that it makes.

        The factory is called without arguments and returns an ``nn.Module``, or a :class:`Teacher` if the network
        needs another preprocessing than the data's mean and std (``preprocessing``). A ResNet with the 7x7 stem is fed
        as ImageNet is, one with CIFAR's 3x3 stem as the data are; ``stem_padding`` is that of a 3x3 stem, which weights
        do not tell. Of a file with several networks ``prefix`` names the one to take; by default it is the query of
        MoCo or the online network of BYOL, and any other choice is an :class:`InputError`. The teacher's ``summary``
        says what was taken. A file is read weights only: nothing in it is executed. A module may stand in the current
        folder. A file that exists, and what is no name in Python, is a file whatever colons it has.
        """
        place, _, attribute = name.partition(":")
        attribute, _, weights = attribute.partition("@")
        factory = attribute.isidentifier() and all(word.isidentifier() for word in place.split("."))
        if is_weights(name) and (not factory or Path(name).is_file()):
            if name.lower().endswith(".safetensors") and read_safetensors(name)[1]:
                if prefix is not None:
                    raise InputError(f"teacher prefix: {Path(name).name} holds one network, trained here; leave it out")
                return cls.load(name)
            return cls._resnet(Path(name), preprocessing, prefix, stem_padding)
        if not factory:
            raise InputError(
                f"teacher: expected a file of weights ({', '.join(ENDINGS)}) or "
                f"package.module:factory[@FILE.pth], got {name!r}"
            )
        if prefix is not None and not weights:
            raise InputError(f"teacher prefix: expected it with a file of weights, got the teacher {name!r}")
        try:
            made = getattr(import_from_here(place), attribute)()
        except Exception as error:  # code of the user's: it may raise anything
            why = f"{type(error).__name__}: {error}"
            raise InputError(f"teacher: {place}:{attribute} cannot be made ({why})") from error
        teacher = made if isinstance(made, Teacher) else cls(made, preprocessing, {"name": name})
        if weights:
            teacher._take(Path(weights), f"{place}:{attribute}", prefix)
        return teacher

    @classmethod
    def _resnet(cls, file: Path, preprocessing: Preprocessing, prefix: str | None, stem_padding: int) -> Teacher:
        """Read the weights of a ResNet under torchvision's names."""
        state = read_weights(file)
        found = resnets(state)
        taken = chosen(found, prefix, file.name) if found else Network("", state, "")
        try:
            network = standard_resnet(taken.state, stem_padding)
        except InputError as error:
            raise InputError(f"teacher: {file.name}: {error}") from None
        small = network.conv1.kernel_size[0] < 7
        stem = (
            f"3x3 without max-pool, padding {stem_padding}, images normalised as the data"
            if small
            else "7x7, images normalised as ImageNet"
        )
        summary = f"{file.name}: ResNet{taken.place}, {network.dimension} numbers per image, stem {stem}"
        about = {"name": file.name, "prefix": taken.prefix}
        return cls(network, preprocessing if small else IMAGENET, about, summary)

    def _take(self, file: Path, maker: str, prefix: str | None) -> None:
        """Load a file of weights into the network that ``maker`` made."""
        state = read_weights(file)
        found = fitting(state, self.module.state_dict())
        taken = chosen(found, prefix, file.name) if found or prefix is not None else None
        try:
            self.module.load_state_dict(taken.state if taken else nearest(state, self.module.state_dict()))
        except RuntimeError as error:  # names or shapes that do not fit; torch lists them
            raise InputError(f"teacher: {file.name} does not fit {maker}: {error}") from None
        if taken:
            self.about["prefix"] = taken.prefix
            self.summary = one_line(f"{file.name}: weights of {maker}{taken.place}")
