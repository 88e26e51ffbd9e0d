"""Checks of the labels of a set."""

from __future__ import annotations

from .sets import ImageSet


def unmatched_classes(data: ImageSet, *, untested: bool = False) -> str:
    """Say which classes of a labelled set only one of its parts has, as "no test images of class 3"; "" if none.

    ``untested``: classes without test images are allowed.
    """
    assert data.y_train is not None and data.y_test is not None
    train, test = (set(labels.unique().tolist()) for labels in (data.y_train, data.y_test))
    untestable = set() if untested else train - test
    for only, part in ((untestable, "test images"), (test - train, "training images")):
        if only:
            some = ", ".join(map(str, sorted(only)[:5]))
            more = f" and {len(only) - 5} more" if len(only) > 5 else ""
            return f"no {part} of class {some}{more}"
    return ""
