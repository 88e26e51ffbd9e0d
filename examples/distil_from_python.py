"""Distil a set of images from Python: train a teacher, distil, and compare the result with random images.

By default the images are scikit-learn's digits; --data takes a folder of images, an .npz file or any other source that
`ssdd.load_images` knows.

    python examples/distil_from_python.py
    python examples/distil_from_python.py --data photos/ --size 32 --preset small
"""

import argparse

import ssdd


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="source of the images (default: digits)")
    parser.add_argument("--size", type=int, help="resize images of a folder to SIZE x SIZE pixels")
    parser.add_argument("--preset", default="digits", help="settings to start from (default: digits)")
    parser.add_argument("--steps", type=int, default=500, help="outer steps (default: 500)")
    parser.add_argument("--epochs", type=int, default=30, help="epochs of the teacher (default: 30)")
    parser.add_argument("--pretrain-steps", type=int, help="steps of each pre-training (default: the preset's)")
    parser.add_argument("--out", default="distilled.safetensors", help="where to write the set")
    a = parser.parse_args()

    data = ssdd.load_images(a.data, size=a.size)
    changes = {"distill.steps": str(a.steps), "teacher.epochs": str(a.epochs)}
    if a.pretrain_steps is not None:
        changes["pretrain.steps"] = str(a.pretrain_steps)
    settings = ssdd.with_settings(ssdd.preset(a.preset), changes)

    teacher = ssdd.train_teacher(data, settings.teacher)
    known = ssdd.represent(teacher, data)  # one representation per image, of the training and the test part

    def make(outputs=known.dimension):
        """A student network with a random start."""
        return ssdd.student(settings.student, data.channels, data.size, outputs)

    run = ssdd.distill(ssdd.Job(data, known.train, make, settings.distill))
    print(f"outer loss {run.losses[0][1]:.4f} -> {run.losses[-1][1]:.4f} after {run.losses[-1][0]} steps")
    run.result.save(a.out)
    ssdd.contact_sheet(run.result.images, a.out.removesuffix(".safetensors") + ".png")

    rows = ssdd.random_subset(len(data.x_train), len(run.result), seed=0)
    random = ssdd.baseline(data, rows, known.train, method="random + teacher", seed=0)
    for pairs in (random, run.result):
        cell = ssdd.evaluate(pairs, data, known.test, make, settings)
        print(f"{cell.method:20} representation error {cell.error:.3f}")


if __name__ == "__main__":
    main()
