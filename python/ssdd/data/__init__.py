"""Images: digits, folders, CIFAR's files, .npz, Hugging Face sets. uint8, in memory or mapped; worked on in batches.

Views are drawn by :mod:`.views` and not by kornia: that one draws from torch's global generator, where a run here has
one generator that a checkpoint can hold, and the crop, flip and affine views that are needed take a screen of torch.
"""

from .device import CPU, DEVICES, chosen_device, placed, repeatable, sent, sent_module, taken
from .load import load_images
from .sets import ImageSet, one_line
from .stream import cache_directory, mapped, write_array
from .views import Crops, augment, crop, crop_and_flip, draw_crops

__all__ = [
    "CPU", "DEVICES", "Crops", "ImageSet", "augment", "cache_directory", "chosen_device", "crop",
    "crop_and_flip", "draw_crops", "load_images", "mapped", "one_line", "placed", "repeatable", "sent", "sent_module",
    "taken", "write_array",
]  # fmt: skip
