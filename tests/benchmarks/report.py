"""Tables on the screen, and the same figures with machine, versions and date in out/bench/SUBJECT.json."""
import json
import os
import platform
import re
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from tests.benchmarks.race import environment

FOLDER = Path("out/bench")


def table(head, rows):
    """Print rows of text in columns: the first to the left, the others to the right."""
    cells = [head, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        print("  ".join(["", row[0].ljust(widths[0]), *rest]).rstrip())


def spread(median, low, high, unit=" x"):
    return f"{median:.2f}{unit} [{low:.2f} .. {high:.2f}]"


def worst_gradient(got, want):
    """{name: array} twice -> the largest relative L2 error of a tensor, and its name."""
    assert set(got) == set(want), f"the parameters differ: {set(got) ^ set(want)}"
    norm = np.linalg.norm
    return max((float(norm(got[name] - want[name]) / norm(want[name])), name) for name in want)


def write(subject, results, rounds):
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{subject}.json"
    date = datetime.now().astimezone().isoformat(timespec="seconds")
    about = {"subject": subject, "date": date, "rounds": rounds, "machine": machine(), "versions": versions()}
    path.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")
    print(f"  figures: {path}\n")


def machine():
    model = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        names = re.findall(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = names[0] if names else model
    asked = [sys.executable, "-m", "threadpoolctl", "-i", "numpy"]  # a new process, as the workers are
    pools = json.loads(subprocess.check_output(asked, env=environment()))
    blas = {f"{pool['internal_api']} {pool.get('architecture', '')}".strip() for pool in pools}
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.platform(), "load": os.getloadavg()[0],
            "blas": sorted(blas)}


def versions():
    found = {"python": platform.python_version()}
    for package in "numpy", "numba", "torch", "tokenizers", "tiktoken", "gensim":
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
