"""Tables on the screen, and the same figures with machine, versions and date in out/bench/SUBJECT.json."""
import json
import os
import platform
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

FOLDER = Path("out/bench")


def table(head, rows):
    """Print rows of text in columns: the first to the left, the others to the right."""
    cells = [head, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        print("  " + "  ".join(f"{cell:>{w}}" if i else f"{cell:<{w}}" for i, (cell, w) in enumerate(zip(row, widths))))


def spread(median, low, high, unit=" x"):
    return f"{median:.2f}{unit} [{low:.2f} .. {high:.2f}]"


def worst_gradient(got, want):
    """{name: array} twice -> the largest relative L2 error of a tensor, and its name."""
    assert set(got) == set(want), f"the parameters differ: {set(got) ^ set(want)}"
    return max((float(np.linalg.norm(got[name] - want[name]) / np.linalg.norm(want[name])), name) for name in want)


def write(subject, results, rounds):
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{subject}.json"
    about = {"subject": subject, "date": datetime.now().astimezone().isoformat(timespec="seconds"), "rounds": rounds,
             "machine": machine(), "versions": versions()}
    path.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")
    print(f"  figures: {path}\n")


def machine():
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.platform(), "load": os.getloadavg()[0],
            "blas": sorted({f"{pool['internal_api']} {pool.get('architecture', '')}".strip() for pool in threadpool_info()})}


def versions():
    found = {"python": platform.python_version()}
    for package in "numpy", "numba", "torch":
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
