"""Images: the embedded digits, a folder, or an .npz file. uint8 in memory; normalised and augmented in batches."""

from .load import load_images
from .sets import ImageSet
from .views import augment, crop_and_flip

__all__ = ["ImageSet", "augment", "crop_and_flip", "load_images"]
