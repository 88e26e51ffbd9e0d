"""Print the mean over the targets of cells.jsonl per row, paired by seed: python docs/results/few/mean.py [CELLS]"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path

MEASURES = {
    "features/0": "features, all labels",
    "features/20": "features, 20 per class",
    "output/0": "predicted, all labels",
    "output/20": "predicted, 20 per class",
    "finetuned": "fine-tuned, all labels",
}


def main(file: Path) -> None:
    cells = [cell for line in file.read_text().splitlines() if "seed" in (cell := json.loads(line))]
    targets = {cell["set"] for cell in cells} - {"source"}
    found: dict[tuple[str, str, int], dict[str, float]] = defaultdict(dict)
    for cell in cells:
        tuned = {} if cell["finetuned"] is None else {"finetuned": cell["finetuned"]}
        for measure, accuracy in (cell["probes"] | tuned).items():
            kind = "source" if cell["set"] == "source" else "targets"
            found[cell["row"], f"{kind}, {measure}", cell["seed"]][cell["set"]] = accuracy
    means: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    for (row, measure, seed), accuracies in found.items():
        if len(accuracies) == (1 if measure.startswith("source") else len(targets)):
            means[row, measure][seed] = statistics.fmean(accuracies.values())
    rows = list(dict.fromkeys(cell["row"] for cell in cells))
    known = {measure for _, measure in means}
    for kind in ("targets", "source"):
        measures = {m: name for key, name in MEASURES.items() if (m := f"{kind}, {key}") in known}
        if measures:
            print_table(rows, measures, means, kind)
    compared = [m for key in MEASURES if (m := f"targets, {key}") in known]
    for i, row in enumerate(rows):
        for other in rows[:i]:
            differences = [paired(means[row, m], means[other, m]) for m in compared]
            if all(differences):
                print(f"| {row} | {other} | " + " | ".join(differences), "|")


def print_table(rows: list[str], measures: dict[str, str], means: dict, kind: str) -> None:
    print(f"| {kind} | " + " | ".join(measures.values()), "|")
    print("|---" * (1 + len(measures)) + "|")
    for row in rows:
        entries = [list(means[row, m].values()) for m in measures]
        print(f"| {row} ({max(map(len, entries))}) | " + " | ".join(map(mean, entries)), "|")
    print()


def mean(accuracies: list[float]) -> str:
    return f"{statistics.fmean(accuracies):.1f}" if accuracies else ""


def paired(ours: dict[int, float], theirs: dict[int, float]) -> str:
    """Return the mean difference over the seeds of both ± two standard errors."""
    seeds = sorted(set(ours) & set(theirs))
    if len(seeds) < 2:
        return ""
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    error = 2 * statistics.stdev(differences) / len(seeds) ** 0.5
    return f"{statistics.fmean(differences):+.1f} ± {error:.1f} ({len(seeds)})"


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("cells.jsonl"))
