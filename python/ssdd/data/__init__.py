"""Images: digits, folders, CIFAR's files, .npz, Hugging Face sets. uint8, in memory or mapped; worked on in batches.

Views are drawn by :mod:`.views` and not by kornia: that one draws from torch's global generator, where a run here has
one generator that a checkpoint can hold, and the crop, flip and affine views that are needed take a screen of torch.
"""

from .device import CPU, DEVICES, choose_device, gather, keep_on_device, module_to_device, repeatable, to_device
from .dsa import random_operation
from .fit import fitted
from .labels import unmatched_classes
from .load import load_images, load_target
from .order import Order
from .sets import ImageSet, one_line
from .stream import cache_directory, mapped, write_array
from .views import Crops, augment, crop, crop_and_flip, draw_crops

__all__ = [
    "CPU",
    "DEVICES",
    "Crops",
    "ImageSet",
    "Order",
    "augment",
    "cache_directory",
    "choose_device",
    "crop",
    "crop_and_flip",
    "draw_crops",
    "fitted",
    "gather",
    "keep_on_device",
    "load_images",
    "load_target",
    "mapped",
    "module_to_device",
    "one_line",
    "random_operation",
    "repeatable",
    "to_device",
    "unmatched_classes",
    "write_array",
]
