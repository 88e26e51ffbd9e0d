"""The layout of a folder: which files are images, of which part and class. An ambiguous folder is an error that says
how to resolve it. Files that are left out are counted."""

from __future__ import annotations

import os
import re
import shlex
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..config import InputError
from .tree import Tree, count, skipped_files, some

TRAIN = ("train", "training")
"""Names of the folder of training images, in any case."""
TEST = (("test", "testing"), ("val", "valid", "validation"))
"""Names of the folder of test images, in any case; the first kind that is there counts."""
LIKE_A_SPLIT = re.compile(
    r"(images?|imgs?|data)?(train|training|test|testing|val|valid|validation|eval)"
    r"(sets?|data|images?|imgs?|split|part|[a-d])?"
)
"""Words of names that are close to a part's name: test_set, images-train, trainA."""
CLASSES = ("folders", "none")
"""The choices for a folder's classes: every subfolder is one, or there are none."""
IMAGES = {"image", "images", "img", "imgs", "jpegimages"}
"""Names of a folder of images that stands beside one of masks or annotations, in any case."""


@dataclass
class Part:
    """The images of one part, in a fixed order, and their classes; ``classes`` is None for a part without classes.

    ``place``: the part's folder below the root, as it is spelled there; empty if the root itself is the part.
    """

    place: str
    files: list[Path]
    classes: list[str] | None


@dataclass
class Layout:
    """The layout of a folder: the training part, the test part if there is one, the classes in the order of their
    numbers, and notes for the user."""

    parts: list[Part]
    names: list[str]
    notes: list[str]


def find_layout(tree: Tree, classes: str | None = None) -> Layout:
    """Find the parts and classes of a folder.

    ``classes``: "folders" (every subfolder of a part is a class; images beside them are left out), "none" (no classes),
    or None: decided from the folders. Raises :class:`InputError` if that is ambiguous.
    """
    train, test = _parts(tree, classes)
    notes: list[str] = []
    parts = [_part(tree, place, classes, notes) for place in (train, test) if place is not None]
    names = sorted(set(parts[0].classes or ()))
    if classes == "none" and any(len(picture.parts) > 1 + len(Path(parts[0].place).parts) for picture in tree.pictures):
        notes.append("its folders are not taken for classes (--classes none)")
    if len(parts) == 2 and classes != "none":
        _match_classes(parts[0], parts[1], names, classes, notes, tree.root)
    used = {part.place for part in parts}
    if "" not in used:
        notes += _left_out(tree, used)
    skipped = [
        (kind, path) for kind, path in tree.skipped if len(path.parts) == 1 or "" in used or path.parts[0] in used
    ]
    full = {Path(*picture.parts[:depth]) for picture in tree.pictures for depth in (1, 2)}
    below = {Path(part.place) for part in parts}
    empty = [f"{folder}/" for folder in tree.folders if folder.parent in below and folder not in full]
    if empty:
        notes.append(f"no images in {some(empty)}")
    if skipped:
        notes.append(skipped_files(skipped))
    return Layout(parts, names, notes)


def _kind(name: str) -> int | None:
    """Return 0 for a training part's name, 1 and 2 for the kinds of test parts, None for others."""
    word = name.casefold()
    if word in TRAIN:
        return 0
    return next((i for i, names in enumerate(TEST, 1) if word in names), None)


def _like_a_split(name: str) -> bool:
    """Return True if a word of the name is close to a part's name."""
    return any(LIKE_A_SPLIT.fullmatch(token) for token in re.split(r"[^a-z]+", name.casefold()))


def _parts(tree: Tree, classes: str | None) -> tuple[str, str | None]:
    """Return the folders of the training part ("" for the root itself) and of the test part (None: hold images out)."""
    root = tree.root
    top = [folder.name for folder in tree.folders if len(folder.parts) == 1]
    kinds = {i: [name for name in top if _kind(name) == i] for i in range(3)}
    holding = {picture.parts[0] for picture in tree.pictures if len(picture.parts) > 1}
    if not any(name in holding for names in kinds.values() for name in names):
        kinds = {i: [] for i in kinds}  # empty folders beside the images
    train, tests = kinds[0], kinds[1] + kinds[2]
    others = [name for name in top if name in holding and _kind(name) is None]
    loose = [picture for picture in tree.pictures if len(picture.parts) == 1]
    if train and (tests or not (others or loose)):
        test = _choose_test(tree, kinds)
        if len(train) > 1:
            raise InputError(
                f"data: {root.name}: {_join_names(train)} are both names of the training part; "
                f"keep one of them, or give its folder alone: {_data(root / train[0])}"
            )
        for part in (train[0], test):
            if part is not None and part not in holding:
                alone = f", or give the other folder alone: {_data(root / train[0])}" if part == test else ""
                raise InputError(f"data: {root.name}: no images in the folder {part}/; fill or remove it{alone}")
        _no_sets_inside(tree, {train[0], test or ""}, classes)
        return train[0], test
    if classes is None:
        named_as_part = _kind(Path(os.path.abspath(root)).name) is not None
        doubtful = [] if named_as_part else train + tests
        like = [name for name in top if name in holding and _like_a_split(name)]
        if not doubtful and not named_as_part and 2 * len(like) >= len(holding) > 0:
            doubtful = like
        if doubtful:
            raise InputError(_doubt(root, doubtful, others, loose))
        _no_sets_inside(tree, set(top), classes)
    return "", None


def _choose_test(tree: Tree, kinds: dict[int, list[str]]) -> str | None:
    """Return the folder of the test part: test/ before val/, unless only val/ has the classes that train/ has."""
    for i in (1, 2):
        if len(kinds[i]) > 1:
            raise InputError(
                f"data: {tree.root.name}: {_join_names(kinds[i])} are both names of the test part; keep one of them"
            )
    tests = [names[0] for names in (kinds[1], kinds[2]) if names]
    if len(tests) == 2:
        train, first, second = (_class_names(tree, name) for name in (kinds[0][0], *tests))
        if train and not (train & first) and train & second:
            return tests[1]
    return tests[0] if tests else None


def _class_names(tree: Tree, place: str) -> set[str]:
    return {_name(p.parts[1]) for p in tree.pictures if p.parts[0] == place and len(p.parts) > 2}


def _data(path: Path) -> str:
    """Return the option that names ``path``, as a shell reads it."""
    return f"--data {shlex.quote(str(path))}"


def _join_names(names: list[str]) -> str:
    return " and ".join(f"{name}/" for name in names)


def _doubt(root: Path, doubtful: list[str], others: list[str], loose: list[Path]) -> str:
    doubtful = sorted(doubtful, key=lambda name: "train" not in name.casefold())
    beside = [f"{name}/" for name in others if name not in doubtful]
    if loose:
        beside.append(f"the image {loose[0]}" if len(loose) == 1 else f"{len(loose):,} images")
    are = "is a part of the set or a class" if len(doubtful) == 1 else "are parts of the set or classes"
    return (
        f"data: {root.name}: it cannot be seen whether {_join_names(doubtful)} {are}"
        f"{', beside ' + some(beside) if beside else ''}. If parts: name them train/ and test/, beside no other images."
        f" For one part alone, give its folder: {_data(root / doubtful[0])}. "
        "If every folder is a class: --classes folders. To take all images as one set without classes: --classes none"
    )


def _no_sets_inside(tree: Tree, places: set[str], classes: str | None) -> None:
    """Refuse a folder below ``places`` that is a set of its own: it has train/ and test/, or is the only folder."""
    if classes is not None:
        return
    below: dict[Path, set[int]] = {}
    for folder in tree.folders:
        kind = _kind(folder.name)
        if len(folder.parts) > 1 and folder.parts[0] in places and kind is not None:
            below.setdefault(folder.parent, set()).add(min(kind, 1))
    alone = Path()
    while True:  # archives often have a chain of folders that contain one folder and nothing else
        inside = [f for f in tree.folders if f.parent == alone and f.parts[0] in places]
        if len(inside) != 1 or any(p.parent == alone for p in tree.pictures):
            break
        alone = inside[0]
    for parent, kinds in below.items():
        chain = parent == alone or parent in alone.parents
        if kinds == {0, 1} or (chain and _kind(parent.name) is None):
            inner = [f"{f.name}/" for f in tree.folders if f.parent == parent and _kind(f.name) is not None]
            first = "" if chain else f"put the parts first, then the classes: train/{parent.name}/; or "
            raise InputError(
                f"data: {tree.root.name}: {parent}/ is no class: it holds {some(inner)}. Give that folder, if it "
                f"is the set: {_data(tree.root / parent)}; or {first}say that every folder "
                "is a class: --classes folders"
            )


def _part(tree: Tree, place: str, classes: str | None, notes: list[str]) -> Part:
    """Return the images of one part with their classes."""
    root, at, shown = tree.root, Path(place), f"{place}/" if place else tree.root.name
    files = [p for p in tree.pictures if not place or p.parts[0] == place]
    loose = [p for p in files if p.parent == at]
    depth = len(at.parts)
    in_folders = [p for p in files if p.parent != at]
    if classes == "none" or not in_folders:
        if classes == "folders":
            raise InputError(f"data: {shown}: --classes folders was given, and no image lies in a folder of a class")
        return Part(place, [root / p for p in files], None)
    names = sorted({_name(p.parts[depth]) for p in in_folders})
    if loose and classes is None:
        raise InputError(
            f"data: {shown}: {count(len(loose), 'image')} ({some(p.name for p in loose)}) beside the "
            f"{'folder' if len(names) == 1 else 'folders'} {some(names)}, so that it cannot be seen whether these are "
            "classes. Move the images into folders; or leave them out: --classes folders; or take all images, without "
            "classes: --classes none"
        )
    if loose:
        notes.append(f"{count(len(loose), 'image')} beside the class folders left out ({some(loose)})")
    if classes is None:
        _no_misplaced_part(tree, place, names)
        _no_other_classes(tree, at, names)
    if alike := _alike(names):
        notes.append(f"classes whose names differ only in case or spaces: {some(alike)}")
    deeper = sorted({p.parent for p in in_folders if len(p.parts) > depth + 2})
    if deeper and max(Counter(d.parts[depth] for d in deeper).values()) > 1:
        notes.append(f"folders inside a class belong to it ({some((f'{d}/' for d in deeper), 2)})")
    return Part(place, [root / p for p in in_folders], [_name(p.parts[depth]) for p in in_folders])


def _name(folder: str) -> str:
    """Return a class's name with accents as one character; systems that pack folders differ in how they write them."""
    return unicodedata.normalize("NFC", folder)


def _no_misplaced_part(tree: Tree, place: str, names: list[str]) -> None:
    """Refuse test/ inside train/, which is most likely a misplaced part. A class called train is common (CIFAR-100)."""
    wrong = [name for name in names if _kind(name) in (1, 2)]
    if len(names) == 1 and _kind(names[0]) is not None:
        wrong = names
    if wrong:
        inner = Path(place, wrong[0])
        raise InputError(
            f"data: {tree.root.name}: it cannot be seen whether {inner}/ is a class or a part at the wrong place. "
            f"Move it beside {place or tree.root.name}/; or give the folder that is meant: {_data(tree.root / inner)}; "
            "or say that it is a class: --classes folders"
        )


def _no_other_classes(tree: Tree, at: Path, names: list[str]) -> None:
    """Refuse folders ``names`` inside ``at`` that are most likely no classes: the only one, with folders inside; some
    that all have the same folders inside; images beside masks."""
    shown, root = f"{at}/" if at.parts else tree.root.name, tree.root
    depth = len(at.parts)
    inside: dict[str, set[str]] = {name: set() for name in names}
    for p in tree.pictures:
        if p.parts[:depth] == at.parts and len(p.parts) > depth + 2:
            inside[_name(p.parts[depth])].add(_name(p.parts[depth + 1]))
    otherwise = "if they are classes: --classes folders; for all images, without classes: --classes none"
    if len(names) == 1:
        end = _end_of_chain(tree, at)
        below = sorted({p.parts[len(end.parts)] for p in tree.pictures if p.parent != end and end in p.parents})
        if end != at and len(below) > 1:
            raise InputError(
                f"data: {shown}: the only folder there, {end}/, has {count(len(below), 'folder')} ({some(below)}). "
                f"{_give(root, at, end, 'If these are the classes')}; if there is only one class: --classes folders; "
                "for all images, without classes: --classes none"
            )
        return
    common, most = set.intersection(*inside.values()), max(map(len, inside.values()))
    if len(common) > 1 and 2 * len(common) >= most:
        raise InputError(
            f"data: {shown}: {some(f'{name}/' for name in names)} have the same folders inside "
            f"({some(sorted(common))}), so that it cannot be seen which of them are the classes. If the outer folders "
            f"are parts of the set: name them train/ and test/; for one of them alone: {_data(root / at / names[0])}; "
            + otherwise
        )
    pictures = [name for name in names if name.casefold() in IMAGES]
    if pictures:
        raise InputError(
            f"data: {shown}: it cannot be seen whether {pictures[0]}/ is a class, beside "
            f"{some(f'{name}/' for name in names if name != pictures[0])}. "
            f"{_give(root, at, at / pictures[0], 'If it holds the images of the set')}; {otherwise}"
        )


def _give(root: Path, at: Path, folder: Path, condition: str) -> str:
    """Return the advice to read ``folder`` in place of ``at``: by its name, or, inside a part, by a move."""
    return f"{condition}: {f'move them up into {at}/' if at.parts else _data(root / folder)}"


def _end_of_chain(tree: Tree, at: Path) -> Path:
    """Return the folder below ``at`` where a chain of folders that hold one folder and nothing else ends."""
    while True:
        below = {p.parts[: len(at.parts) + 1] for p in tree.pictures if at == Path() or at in p.parents}
        if len(below) != 1 or len(first := next(iter(below))) == 0 or any(p.parts == first for p in tree.pictures):
            return at
        at = Path(*first)


def _alike(names: list[str]) -> list[str]:
    """Return the names that differ from another one only in upper and lower case or in spaces."""
    each = Counter(_plain(name) for name in names)
    return [name for name in names if each[_plain(name)] > 1]


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())


def _match_classes(
    train: Part, test: Part, names: list[str], classes: str | None, notes: list[str], root: Path
) -> None:
    """Check the test part's classes against the training part's. Classes that only the test part has get the last
    numbers."""
    if train.classes is None and test.classes is not None:
        notes.append(f"{train.place}/ has no class folders, so those of {test.place}/ are not used")
        test.classes = None
    if train.classes is None:
        return
    if test.classes is None:
        notes.append(f"{test.place}/ has no class folders: no test labels")
        return
    each = Counter(test.classes)
    unknown, missing = sorted(set(each) - set(names)), sorted(set(names) - set(each))
    if len(each) == 1 and unknown and len(names) > 1 and classes is None:
        one = f"{test.place}/ has one folder, {unknown[0]}/, which is no class of {train.place}/"
        notes.append(f"{one}: no test labels")
        test.classes = None
        return
    if unknown and classes is None:
        first = unknown[0]
        like = next((name for name in names if _plain(name) == _plain(first)), None)
        near = "" if like is None else f"; {train.place}/ has {like!r}, spelled otherwise"
        raise InputError(
            f"data: {root.name}: {test.place}/ has {count(len(unknown), 'class')} that {train.place}/ has not: "
            f"{some(unknown)} ({count(each[first], 'image')} in {test.place}/{first}/{near}). Rename or remove them; "
            "or number them behind the classes of the training part: --classes folders; or use no classes: "
            "--classes none"
        )
    if unknown:
        notes.append(f"{count(len(unknown), 'class')} only in {test.place}/, numbered last: {some(unknown)}")
    if missing:
        notes.append(f"no test images of {count(len(missing), 'class')} ({some(missing)})")
    names += unknown


def _left_out(tree: Tree, places: set[str]) -> list[str]:
    """Describe the images beside the parts, which are not read."""
    each = Counter(p.parts[0] if len(p.parts) > 1 else "" for p in tree.pictures)
    words = [f"{name}/ ({count(n, 'image')})" for name, n in sorted(each.items()) if name and name not in places]
    if each[""]:
        loose = [p for p in tree.pictures if len(p.parts) == 1]
        words.append(f"{count(each[''], 'image')} beside the parts ({some(loose)})")
    return [f"not read: {some(words, 6)}"] if words else []
