"""Write the representations of images, one row per image, by any network: a teacher, or one trained here.

FILE.npy has float32 [images, D]: the rows of the source in its own order (training images, then test images). Beside
it FILE.txt names the file of each row if the images came from a folder. --representations of other verbs reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import ssdd

from ..config import InputError
from .options import (
    FILE,
    Options,
    add_device,
    add_images,
    add_overwrite,
    add_teacher,
    read_images,
    read_teacher,
    represent,
)

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def add_arguments(parser: ArgumentParser) -> None:
    add_images(parser)
    add_teacher(
        parser,
        representations=False,
        text="The network: FILE.safetensors written by `ssdd pretrain`, `ssdd train-classifier` or `ssdd kd`; or",
    )
    parser.add_argument("--out", "-o", metavar="FILE.npy", type=FILE, required=True, help="File for the rows.")
    parser.add_argument(
        "--read-out",
        action="store_true",
        help="Also print the accuracy of a k-nearest-neighbour read-out and of a linear probe on the test images.",
    )
    add_device(parser)
    add_overwrite(parser)


def run(options: Options) -> None:
    from .. import report as reports

    if options.teacher is None:
        raise InputError("teacher: expected the network that represents the images: --teacher FILE or package:factory")
    if options.out.suffix != ".npy":
        raise InputError(f"out: expected a file that ends in .npy, got {options.out.name!r}")
    file, names = (reports.new_file(path, options.overwrite) for path in (options.out, options.out.with_suffix(".txt")))
    images = read_images(options.data, options)
    if options.read_out and (why := ssdd.why_no_probe(images)):
        raise InputError(f"read-out: {why}; leave --read-out out")
    network = read_teacher(options.teacher, images, options.teacher_prefix).to(ssdd.choose_device(options.device))
    found = represent(network, images, options)
    assert found.test is not None
    ssdd.write_representations(file, images, found)
    count = len(found.train) + len(found.test)
    if images.files:
        order = dict(zip((*images.rows_train.tolist(), *images.rows_test.tolist()), images.files, strict=True))
        lines = (order[row].replace("\n", "\\n").replace("\r", "\\r") for row in range(count))
        names.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
    print(
        f"{file}: {count:,} rows of {found.dimension} numbers"
        + (f"; {names.name} names their files" if images.files else "")
    )
    if options.read_out:
        for name, accuracy in ssdd.read_out(found.train, found.test, images).items():
            print(f"{name}: {accuracy:.1f}%")
