"""The embedded default: scikit-learn's 1,797 handwritten digits of 8x8 pixels."""

from __future__ import annotations

import torch

from .sets import ImageSet, hold_out

TEST_IMAGES = 500


def digits() -> ImageSet:
    """Return 1,297 training and 500 held-out images, uint8 [N, 8, 8, 1]; the 17 grey levels are spread over 0..255."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.from_numpy(raw.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(-1)
    labels = torch.from_numpy(raw.target).to(torch.int64)
    held = f"{TEST_IMAGES} of them held out for testing"
    summary = f"digits: {len(images):,} images of 10 classes, embedded in scikit-learn, {held}"
    return hold_out("digits", images, labels, TEST_IMAGES, summary=summary)
