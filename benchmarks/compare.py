"""What changed since the results that are committed? One line for each number that did, with the ratio new / committed.

    make benchmarks                                 # measure anew, into benchmarks/results, then compare
    python benchmarks/compare.py [--within 1.1]     # compare what lies in benchmarks/results now

A number counts as changed if the ratio, or its inverse, is above `--within`. Errors at the level of rounding (below
1e-9) are left out, and so is what says where it was measured, which is shown first where it differs: times of two
machines are no comparison.
"""

import argparse
import json
import subprocess
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
ROUNDING = 1e-9


def numbers(value, path=()):
    """The numbers of a result by their place; a row of a list is named by what it says of itself, not by its
    position."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from numbers(inner, (*path, label(inner) or str(i)))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def label(row):
    """The texts and whole numbers of a row, its settings."""
    if not isinstance(row, dict):
        return ""
    return ", ".join(str(value) for value in row.values() if isinstance(value, str | int))


def committed(path):
    """The JSON of the last commit, or None where there is none."""
    root = RESULTS.parent.parent
    shown = subprocess.run(["git", "show", f"HEAD:{path.relative_to(root)}"], cwd=root, capture_output=True, text=True)
    return json.loads(shown.stdout) if shown.returncode == 0 else None


def compare(old, new, within):
    """Lines of the numbers that changed, and how many did not."""
    before, after = (dict(numbers({k: v for k, v in part.items() if k != "machine"})) for part in (old, new))
    lines, same = [], 0
    for path in before.keys() | after.keys():
        x, y = before.get(path), after.get(path)
        if x is None or y is None:
            lines.append((path, x, y, "gone" if y is None else "new"))
        elif max(abs(x), abs(y)) < ROUNDING or x == y or (x * y > 0 and max(x / y, y / x) <= within):
            same += 1
        else:
            lines.append((path, x, y, f"{y / x:.3g}" if x else "from 0"))
    return sorted(lines), same


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--within", type=float, default=1.1, help="ratios up to this count as unchanged (default 1.1)")
    within = parser.parse_args().within
    for path in sorted(RESULTS.glob("*.json")):
        old, new = committed(path), json.loads(path.read_text())
        if old is None:
            print(f"{path.name}: not committed yet")
            continue
        lines, same = compare(old, new, within)
        print(f"{path.name}: {same} numbers as committed, {len(lines)} not (ratio above {within:g})")
        if old.get("machine") != new.get("machine"):
            print(f"  measured before on {old.get('machine')}\n  and now on {new.get('machine')}")
        for place, x, y, ratio in lines:
            shown = ["-" if value is None else f"{value:.4g}" for value in (x, y)]
            print(f"  {shown[0]:>11} {shown[1]:>11} {ratio:>8}  {' / '.join(place)}")


if __name__ == "__main__":
    main()
