"""Search for a setting in which pre-training on the full set reads out better than on a few random images.

Trains a teacher on the source's training images by Barlow Twins for a given time (or reads one), then pre-trains
students on its representations of random images and of the full set, and reads them out on held-out source images and
on other sets. One line of JSON per row. At most 2,000 training images of each set are held out, and no test part is
touched.

    python docs/results/room/search.py DATA OUT --teacher-seconds 120 --seconds 60
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

import ssdd
import ssdd_ext
from ssdd_ext import Linear, Ridge

HELD_OUT = 2000
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)


def read_set(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Read the training part of a set: images (uint8 [N, 32, 32, C]) and labels from 0 without gaps, to fit and to
    measure on.

    A fifth of the images, at most 2,000 drawn at random, is held out to measure on. The test part is not touched.
    """
    sys.path.insert(0, str(folder))
    import datapack

    found = datapack.load(name, str(folder))
    x = at_32_pixels(torch.from_numpy(found["x_train"]))
    y = torch.from_numpy(np.unique(found["y_train"], return_inverse=True)[1].astype(np.int64))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    held_out = min(HELD_OUT, len(x) // 5)
    fitting, measuring = order[:-held_out].sort().values, order[-held_out:].sort().values
    return x[fitting], y[fitting], x[measuring], y[measuring]


def at_32_pixels(images: Tensor) -> Tensor:
    """Return the images (uint8 [N, H, W, C]) at 32x32: means of 2x2 pixels if they are twice as large."""
    if images.shape[1] == 32:
        return images
    parts = [part.permute(0, 3, 1, 2).float() for part in images.split(5000)]
    small = torch.cat([torch.nn.functional.avg_pool2d(part, 2).round().to(torch.uint8) for part in parts])
    return small.permute(0, 2, 3, 1).contiguous()


def order_of_parts(parts: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (images, held-out images, labels, held-out labels), the order of `ssdd.ImageSet`."""
    x, y, x_test, y_test = parts
    return x, x_test, y, y_test


def few_of_each(labels: Tensor, count: int) -> Tensor:
    """Return positions of ``count`` images of each class, at random but always the same."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    return torch.cat([order[labels[order] == c][:count] for c in labels.unique()])


def batches(f, images: Tensor, preprocessing, device: torch.device) -> Tensor:
    """Return ``f`` of the normalised images, float32 [N, D] on ``device``."""
    parts = []
    with torch.no_grad():
        for part in images.split(1000):
            parts.append(f(preprocessing(part.to(device))).float())
    return torch.cat(parts)


def probe(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """Return the accuracy of ridge regression to one-hot labels on standardised features; a fifth of x chooses the
    ridge."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_test = ((t - mean) / std for t in (x, x_test))
    one_hot = torch.nn.functional.one_hot(y, int(max(y.max(), y_test.max())) + 1).float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).to(x.device)
    fitting, choosing = order[: len(x) * 4 // 5], order[len(x) * 4 // 5 :]

    def accuracy(rows: Tensor, ridge: float, asked: Tensor, right: Tensor) -> float:
        fitted = ssdd_ext.fit(x[rows], one_hot[rows], kernel=Linear(bias=1.0), ridge=Ridge.mean_trace(ridge))
        return float((fitted.predict(asked).argmax(1) == right).float().mean())

    best = max(RIDGES, key=lambda r: accuracy(fitting, r, x[choosing], y[choosing]))
    return accuracy(order, best, x_test, y_test)


def train(data, device: torch.device, seconds: float, out: Path, backbone: str, report) -> ssdd.Teacher:
    """Train a teacher for about ``seconds``; the time of the first epoch gives the number of epochs."""
    config = replace(
        ssdd.preset("small").teacher,
        backbone=backbone,
        training="bf16" if device.type == "cuda" else "float32",
        batch=512,
        projector=1024,
    )
    config = replace(config, augment=replace(config.augment, scale=0.35, shift=0.2))
    begin = time.perf_counter()
    ssdd.train_teacher(data, replace(config, epochs=1), device=device)
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    ssdd.train_teacher(data, replace(config, epochs=1), device=device)
    epoch = time.perf_counter() - begin
    epochs = max(1, math.floor((seconds - first - epoch) / epoch))
    losses = []
    begin = time.perf_counter()
    teacher = ssdd.train_teacher(
        data, replace(config, epochs=epochs), lambda event: losses.append(round(event["loss"], 2)), device=device
    )
    report(
        {
            "row": "teacher",
            "backbone": backbone,
            "epochs": epochs,
            "seconds": round(time.perf_counter() - begin, 1),
            "epoch_seconds": round(epoch, 2),
            "losses": losses[:: max(1, len(losses) // 10)],
        }
    )
    path = teacher.save(out / "teacher-float32.safetensors")
    return ssdd.Teacher.load(path).to(device)


def save_half(teacher: ssdd.Teacher, out: Path) -> None:
    """Write the teacher's file with its weights in float16; ``Teacher.load`` reads it."""
    from safetensors import safe_open

    with safe_open(out / "teacher-float32.safetensors", "pt") as file:
        meta, tensors = file.metadata(), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no dict)
    half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    save_file(half, out / "teacher.safetensors", metadata=meta)
    (out / "teacher-float32.safetensors").unlink()


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path, help="folder with the packed sets and datapack.py")
    p.add_argument("out", type=Path, help="folder for search.jsonl and teacher.safetensors")
    p.add_argument("--teacher-seconds", type=float, default=120.0)
    p.add_argument("--seconds", type=float, default=60.0, help="no new student row after this")
    p.add_argument("--source", default="cifar10", help="the set that teacher and students are trained on")
    p.add_argument("--backbone", default="resnet10")
    p.add_argument("--targets", default="flowers102_32,cars_32")
    p.add_argument("--teacher", help="read this teacher, train none")
    p.add_argument("--students", default="convnet-32-64-128,convnet-128-256-512")
    p.add_argument("--steps", default="300,2500", help="pre-training steps")
    p.add_argument("--batch", type=int, default=256, help="pre-training batch")
    p.add_argument(
        "--images", default="0,500,1000,48000", help="images to pre-train on; 0 reads out the untrained network"
    )
    p.add_argument("--lrs", default="0.02,0.1", help="pre-training learning rates")
    p.add_argument("--finetune-steps", type=int, default=0, help="also fine-tune on each target; 0: do not")
    p.add_argument("--few", type=int, default=20, help="also read out with so many labels per class")
    p.add_argument("--seed", type=int, default=0, help="of the choice of images and of the student")
    p.add_argument("--small", type=int, default=0, help="keep so many training images: shows that the script runs")
    return p.parse_args()


def main() -> int:
    a = arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    a.out.mkdir(parents=True, exist_ok=True)

    def report(row: dict) -> None:
        with (a.out / "search.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row)[:400], flush=True)

    keep = slice(0, a.small or None)
    x, y, x_test, y_test = read_set(a.data, a.source)
    x, y = x[keep], y[keep]
    images = ssdd.ImageSet(a.source, x, x_test, y, y_test)
    sets = {"source": (x, y, x_test, y_test)}
    for name in a.targets.split(",") if a.targets else ():
        xt, yt, xs, ys = read_set(a.data, name)
        order = torch.randperm(len(xt), generator=torch.Generator().manual_seed(2))[:20_000]
        sets[name] = (xt[order][keep], yt[order][keep], xs[keep], ys[keep])
    pre = images.preprocessing
    teacher = (
        ssdd.Teacher.load(a.teacher).to(device)
        if a.teacher
        else train(images, device, a.teacher_seconds, a.out, a.backbone, report)
    )
    if not a.teacher:
        save_half(teacher, a.out)
        teacher = ssdd.Teacher.load(a.out / "teacher.safetensors").to(device)

    def read_out(f) -> dict[str, float]:
        found = {}
        for name, (xt, yt, xs, ys) in sets.items():
            f_t, f_s = (batches(f, part, pre, device) for part in (xt, xs))
            yt, ys = yt.to(device), ys.to(device)
            found[name] = round(100 * probe(f_t, yt, f_s, ys), 2)
            if a.few:
                few = few_of_each(yt.cpu(), a.few).to(device)
                found[f"{name}, {a.few} per class"] = round(100 * probe(f_t[few], yt[few], f_s, ys), 2)
        return found

    done = (
        [json.loads(line) for line in log.read_text().splitlines()] if (log := a.out / "search.jsonl").exists() else []
    )
    if not any(row["row"] == "teacher's representations" for row in done):
        report({"row": "teacher's representations", "probe": read_out(teacher)})
    kept = a.out / "representations.pt"
    if not kept.exists():
        torch.save([batches(teacher, part, pre, device).cpu() for part in (x, x_test)], kept)
    wanted, wanted_test = (part.to(device) for part in torch.load(kept))
    variance = (wanted_test - wanted_test.mean(0)).square().sum()
    begin = time.perf_counter()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(a.seed))
    for student in a.students.split(","):
        for steps in map(int, a.steps.split(",")):
            for count in map(int, a.images.split(",")):
                for lr in map(float, a.lrs.split(",")) if count else (0.1,):
                    if time.perf_counter() - begin > a.seconds:
                        return 0
                    row = {"row": "student", "student": student, "steps": steps, "images": count, "lr": lr}
                    row |= {"batch": a.batch, "seed": a.seed}
                    if any(all(earlier.get(k) == v for k, v in row.items()) for earlier in done):
                        continue
                    begun = time.perf_counter() - begin
                    torch.manual_seed(a.seed)
                    network = ssdd.build(student, 3, tuple(x.shape[1:3]), wanted.shape[1]).to(device)
                    network.to(memory_format=torch.channels_last)
                    if count:
                        chosen = order[:count]
                        pixels = x[chosen].permute(0, 3, 1, 2).float() / 255
                        pairs = ssdd.DistilledSet(pixels, wanted.cpu()[chosen], pre)
                        config = replace(ssdd.preset("small").pretrain, steps=steps, lr=lr, batch=a.batch)
                        try:
                            ssdd.pretrain(network, pairs, config)
                        except ssdd.Diverged as error:
                            report(row | {"diverged": str(error)[:100]})
                            continue
                        predicted = batches(network, x_test, pre, device)
                        row["error"] = round(float((predicted - wanted_test).square().sum() / variance), 4)
                    network.eval()
                    row["seconds"] = round(time.perf_counter() - begin - begun)
                    row["probe"] = read_out(network.features)
                    if a.finetune_steps:
                        recipe = ssdd.FinetuneConfig(share=1.0, steps=a.finetune_steps, untested_classes="kept")
                        row["finetuned"] = {}
                        for name, parts in list(sets.items())[1:]:
                            target = ssdd.ImageSet(name, *order_of_parts(parts))
                            row["finetuned"][name] = round(ssdd.finetune(network, pre, target, recipe), 2)
                    report(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
