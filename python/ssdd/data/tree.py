"""The files and folders below a folder of images, without what systems and editors leave behind."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ..config import InputError
from .pictures import BY_PLUGIN, suffixes

SYSTEM = {
    "__macosx",
    "__pycache__",
    "@eadir",
    "@recycle",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "lost+found",
    "system volume information",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
}
"""Files and folders that systems and editors leave behind, besides names that begin with a dot."""
HIDDEN, HIDDEN_FOLDER = "hidden or system", "hidden or system folder"
SHOWN = 3


def is_system(name: str) -> bool:
    """Return True for names that are no user's images: hidden ones, and files of systems and editors."""
    return name.startswith(".") or name.lower() in SYSTEM


@dataclass
class Tree:
    """Everything below ``root`` that matters, as relative paths in a fixed order."""

    root: Path
    pictures: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    skipped: list[tuple[str, Path]] = field(default_factory=list)  # kind (a suffix, HIDDEN), path


def some(names: Iterable[object], shown: int = SHOWN) -> str:
    """Return the first of ``names``, with a mark if there are more."""
    words = [str(name) for name in names]
    return ", ".join(words[:shown]) + (", ..." if len(words) > shown else "")


def count(n: int, what: str) -> str:
    """Return a number with its noun: "1 image", "2,431 images"."""
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{n:,} {what if n == 1 else plural}"


def scan(root: Path) -> Tree:
    """Walk the folder and follow links. Hidden and system folders are left out with everything below them."""

    def refuse(error: OSError) -> None:
        raise InputError(f"data: the folder {error.filename} cannot be read ({error.strerror})") from None

    tree, readable = Tree(root), suffixes()
    for at, folders, names in os.walk(root, followlinks=True, onerror=refuse):
        here = Path(at)
        if any(os.path.samefile(at, above) for above in here.parents if above.is_relative_to(root)):
            raise InputError(f"data: {here.relative_to(root)} is a link to a folder it lies in; remove it")
        if "log.jsonl" in names and ("run.json" in names or "results.json" in names):
            tree.skipped += [("of a run of ssdd", (here / name).relative_to(root)) for name in names]
            folders.clear()  # its pictures are results
            continue
        for kind, entries in ((HIDDEN_FOLDER, folders), (HIDDEN, names)):
            tree.skipped += [(kind, (here / name).relative_to(root)) for name in entries if is_system(name)]
        folders[:] = sorted(name for name in folders if not is_system(name))
        tree.folders += [(here / name).relative_to(root) for name in folders]
        for name in names:
            if is_system(name):
                continue
            # A link whose file is missing is kept: it is an image that cannot be read, and is reported as one.
            suffix, file = Path(name).suffix.lower(), (here / name).relative_to(root)
            if suffix in readable and _is_special(here / name):
                tree.skipped.append(("not a regular file", file))
            elif suffix in readable:
                tree.pictures.append(file)
            else:
                tree.skipped.append((suffix or "without a suffix", file))
    tree.pictures.sort()
    tree.folders.sort()
    if not tree.pictures:
        looked = ", ".join(sorted(readable))
        left = f"; {skipped_files(tree.skipped)}" if tree.skipped else ""
        raise InputError(f"data: no images in the folder {root.name!r} (looked for {looked}{left})")
    return tree


def _is_special(path: Path) -> bool:
    """Return True for a pipe, a socket or a device, which would be read forever."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def skipped_files(skipped: list[tuple[str, Path]]) -> str:
    """Return a summary such as "3 files skipped: 2 .txt (notes.txt, ...), 1 hidden or system (.DS_Store)"."""
    kinds: dict[str, list[Path]] = {}
    for kind, path in skipped:
        kinds.setdefault(kind, []).append(path)
    ordered = sorted(kinds.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    words = [
        f"{len(paths):,} {kind} ({some(sorted(paths), 1)}"
        + (f"; {BY_PLUGIN[kind]} reads them)" if kind in BY_PLUGIN else ")")
        for kind, paths in ordered
    ]
    what = "file or folder" if HIDDEN_FOLDER in kinds else "file"
    total = count(len(skipped), what).replace("file or folders", "files and folders")
    return f"{total} skipped: {some(words, 5)}"
