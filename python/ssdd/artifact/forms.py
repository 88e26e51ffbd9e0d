"""A distilled set in the forms of other tools: an image folder, a Hugging Face data set, ddranking's tensors."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import InputError, in_float32
from .card import CARD, card_text
from .files import NO_ARRAY, check_writable, name_beside, why_no_array
from .pairs import DistilledSet
from .preprocessing import Preprocessing

EXACT = "distilled.safetensors"
"""The set itself, beside its 8-bit pictures: learned pixels are not whole numbers and may leave [0, 1]. In the form
"compact" it is the only file beside the card."""


@in_float32
def export(
    pairs: DistilledSet, out: str | os.PathLike[str], form: str = "folder", labels: Tensor | None = None
) -> dict[str, float]:
    """Write ``pairs`` to the new directory ``out``, completely or not at all.

    Args:
        pairs: the set to write.
        out: the directory; it must not exist, or be empty.
        form: "folder" (default): ``images/00000.png`` ... with ``targets.npy`` (float32 [S, C]) and ``about.json``.
            "huggingface": ``train/00000.png`` ... with ``train/metadata.jsonl`` (``file_name``, ``target``), which
            ``datasets.load_dataset("imagefolder", data_dir=out)`` reads, and a card. Both also hold the exact set,
            ``distilled.safetensors``. "ddranking": ``images.pt``, float32 [S, 3, H, W], sorted by class,
            ``labels.pt``, float32 [S, K], and ``lr.pt``, as its evaluators read them. The images are normalised with
            the constants of :func:`ddranking_constants`, as its evaluators normalise real images, and not with those
            of the set. It needs 3 channels, targets that are class scores, and the same number of images per class.
            "compact": ``distilled.safetensors`` with 8 bits per pixel and 16 per number of a target, as
            ``DistilledSet.save(compact=True)`` writes it, and its card.
        labels: class scores, float [S, K], in place of the targets; for "ddranking" only. Default: the targets.

    Returns:
        What 8 bits cost: ``clipped``, the share of pixel values that are cut off at 0 and 1, and ``largest_change`` of
        a value.

    Raises:
        InputError: if ``out`` is not empty, if pixels are not finite, or if the form cannot hold the set.
    """
    if form not in EXPORT_FORMS:
        raise InputError(f"form: expected one of {', '.join(EXPORT_FORMS)}, got {form!r}")
    if labels is not None and form != "ddranking":
        raise InputError(f"labels: only the form ddranking takes them, got form {form!r}")
    if not bool(torch.isfinite(pairs.images).all()):
        raise InputError("images: values that are not finite")
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"out: {folder} exists; choose another directory")
    check_writable(folder.parent if folder.exists() else folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = name_beside(folder)
    work.mkdir()
    try:
        EXPORT_FORMS[form](pairs, work, labels)
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if form == "ddranking":
        return {"clipped": 0.0, "largest_change": 0.0}
    if form == "compact":
        read = DistilledSet.load(folder / EXACT).images
        return {"clipped": 0.0, "largest_change": float((read - pairs.images.to("cpu", torch.float32)).abs().max())}
    shown = to_bytes(pairs.images).float().div(255)
    outside = (pairs.images < 0) | (pairs.images > 1)
    return {"clipped": float(outside.float().mean()), "largest_change": float((shown - pairs.images).abs().max())}


def read_scores(path: str | os.PathLike[str]) -> Tensor:
    """Read class scores for :func:`export`.

    Args:
        path: a ``.npy`` file of numbers [S, K], one row per image.

    Returns:
        float32 [S, K].
    """
    try:
        array = np.load(path, allow_pickle=False)
        return torch.from_numpy(np.asarray(array, dtype=np.float32))
    except NO_ARRAY as error:
        why = why_no_array(error)
        raise InputError(f"labels: {Path(path).name}: not a readable .npy of plain numbers ({why})") from None


def to_bytes(images: Tensor) -> Tensor:
    """Round pixels, nominally in [0, 1], to uint8 of the same shape; values outside are clipped."""
    return images.detach().clamp(0, 1).mul(255).round().to(torch.uint8)


def about(pairs: DistilledSet) -> dict[str, Any]:
    """Return everything that a user of the pictures needs to know, as JSON values."""
    return {
        "method": pairs.method,
        "source": pairs.source,
        "seed": pairs.seed,
        "target_kind": pairs.target_kind,
        "preprocessing": asdict(pairs.preprocessing),
        "support_input": pairs.support_input,
        "config": pairs.config,
        "versions": pairs.versions,
        "metrics": pairs.metrics,
        "recipe": pairs.recipe,
        "storage": pairs.storage,
        "licence": pairs.licence,
    }


def _pictures(pairs: DistilledSet, folder: Path) -> list[str]:
    from PIL import Image

    folder.mkdir()
    names = [f"{i:05d}.png" for i in range(len(pairs))]
    for name, pixels in zip(names, to_bytes(pairs.images).permute(0, 2, 3, 1).cpu().numpy(), strict=True):
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(folder / name)
    return names


def _folder(pairs: DistilledSet, folder: Path, labels: Tensor | None) -> None:
    _pictures(pairs, folder / "images")
    np.save(folder / "targets.npy", pairs.targets.detach().cpu().numpy(), allow_pickle=False)
    (folder / "about.json").write_text(json.dumps(about(pairs), indent=1) + "\n")
    pairs.save(folder / EXACT)


def _huggingface(pairs: DistilledSet, folder: Path, labels: Tensor | None) -> None:
    names = _pictures(pairs, folder / "train")
    rows = [json.dumps({"file_name": n, "target": t}) for n, t in zip(names, pairs.targets.tolist(), strict=True)]
    (folder / "train" / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    pairs.save(folder / EXACT)
    text = (
        "## Pictures\n\n`train/` has the images as pictures with 8 bits per value, and the target of each in "
        f"`metadata.jsonl`. The learned pixels, exact, are in `{EXACT}`.\n"
    )
    (folder / CARD).write_text(f"{card_text(pairs, EXACT)}\n{text}")


def _compact(pairs: DistilledSet, folder: Path, labels: Tensor | None) -> None:
    pairs.save(folder / EXACT, compact=True)
    (folder / CARD).write_text(card_text(pairs, EXACT))


CIFAR = Preprocessing((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
"""ddranking's constants for CIFAR-10 and CIFAR-100. Its std is the mean over images of their std: CIFAR-10's own is
0.2470, 0.2435, 0.2616."""
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""ddranking's constants for Tiny ImageNet and the subsets of ImageNet."""


def ddranking_constants(pairs: DistilledSet) -> tuple[str, Preprocessing]:
    """Return the name and the normalisation that ddranking's evaluators apply to real images of this size.

    Up to 32 pixels they are CIFAR's, above ImageNet's.
    """
    small = max(pairs.images.shape[-2:]) <= 32
    return ("CIFAR", CIFAR) if small else ("ImageNet", IMAGENET)


def _ddranking_images(pairs: DistilledSet) -> Tensor:
    """Return the images as ddranking's networks take them.

    A network of ours takes ``pairs.inputs()`` beside real images that are normalised with the set's own constants.
    These inputs are brought to the pixels that would be normalised to them, and from there to ddranking's constants, so
    that they stand to real images as before. It is the same for raw sets, whose pixels are inputs as they are.
    """
    if pairs.images.shape[1] != 3:
        raise InputError(f"form: ddranking measures images of 3 channels, got {pairs.images.shape[1]}")
    return ddranking_constants(pairs)[1].normalise(pairs.preprocessing.pixels(pairs.inputs().float()))


def _ddranking(pairs: DistilledSet, folder: Path, labels: Tensor | None) -> None:
    if labels is None and pairs.target_kind != "labels":
        raise InputError(
            "form: ddranking trains classifiers, and the targets of this set are representations; give labels, one row "
            "of class scores per image, or choose another form"
        )
    scores = pairs.targets if labels is None else labels
    if scores.dim() != 2 or len(scores) != len(pairs) or not scores.is_floating_point():
        raise InputError(f"labels: expected floats [{len(pairs)}, classes], got {scores.dtype} {list(scores.shape)}")
    if not bool(torch.isfinite(scores).all()):
        raise InputError("labels: values that are not finite")
    count = scores.argmax(1).bincount(minlength=scores.shape[1])
    if not bool((count == count[0]).all()):
        raise InputError(
            f"labels: ddranking needs the same number of images per class, got {int(count.min())} to {int(count.max())}"
        )
    order = scores.argmax(1).argsort(stable=True)  # its evaluators take the first images for class 0, and so on
    torch.save(_ddranking_images(pairs)[order].detach().cpu().contiguous(), folder / "images.pt")
    torch.save(scores[order].detach().cpu().float().contiguous(), folder / "labels.pt")
    lr = pairs.metrics.get("syn_lr", 0.01)  # 0.01: the lr its evaluators start from
    torch.save(torch.tensor(float(lr)), folder / "lr.pt")


EXPORT_FORMS: dict[str, Callable[[DistilledSet, Path, Tensor | None], None]] = {
    "folder": _folder,
    "huggingface": _huggingface,
    "ddranking": _ddranking,
    "compact": _compact,
}
