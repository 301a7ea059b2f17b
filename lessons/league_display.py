"""How lesson 20 shows its league: the table, how long a GPT needs to win, the picture."""
import math

import numpy as np
from rich.markup import escape
from rich.table import Table

from lessons.l20_evaluation import perplexity

NANOGPT = 1.47 / math.log(2)  # its README's, on an A100: the same plays, in the edition of tiny Shakespeare


def table(rows):
    """One line each, as rich prints it."""
    lines = Table(box=None, pad_edge=False, collapse_padding=True)
    lines.add_column("", overflow="fold")
    for title in ("counts or\nparameters", "seconds of\ntraining", "bits a\ncharacter", "perplexity",
                  "characters\na second"):
        lines.add_column(title, justify="right")
    for row in rows:
        speed = row.speed and float(f"{row.speed:.2g}")  # no clock knows more
        numbers = row.size, row.seconds, row.bits, perplexity(row.bits * math.log(2), 1), speed
        formats = ",d", ".2g" if (row.seconds or 0) < 10 else ",.0f", ".3f", ".2f", ",.0f"
        lines.add_row(escape(row.name), *("" if x is None else format(x, how)
                                  for x, how in zip(numbers, formats, strict=True)))
    return lines


def duel(row, counted):  # a GPT's Row, [Row, ...] of those it is to beat -> a sentence
    """How long did it have to learn until its log has fewer bits than each of these?"""
    said = []
    for other in counted:
        after = next((f"after {seconds:,.0f} s" for seconds, bits in row.log if bits < other.bits), "never")
        said.append(f"{other.name} ({other.bits:.3f}) {after}")
    return f"{row.name} passes {', '.join(said)} (its log, in blocks side by side)"


def draw(rows, line, path):  # line: the name of the row that is drawn as one
    """Bits against seconds of training, and how each GPT came there."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes, points = figure.subplots(), [row for row in rows if row.seconds]
    for row in points:
        point, = axes.plot(row.seconds, row.bits, "o", zorder=3)
        if row.log:
            axes.plot(*zip(*row.log, strict=True), color=point.get_color(), lw=1)
    floor = min(row.bits for row in points) - 0.3  # near it a bit gets more room: there it counts
    up, down = lambda bits: np.log(np.maximum(bits - floor, 1e-6)), lambda height: floor + np.exp(height)
    heights = up(np.array([row.bits for row in points]))
    labels = places([(row.seconds, y) for row, y in zip(points, heights, strict=True)])
    for row, (x, y) in zip(points, labels, strict=True):
        where = x, down(y)
        axes.annotate(f"{row.name}, {row.bits:.3f}", (row.seconds, row.bits), where, fontsize="small",
                      va="center", arrowprops={"arrowstyle": "-", "lw": 0.5, "shrinkA": 0},
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8})
    for row in rows:
        if row.name == line:
            axes.axhline(row.bits, color="black", ls="--", lw=1, label=f"{row.name}: {row.bits:.3f}")
    axes.axhline(NANOGPT, color="black", ls=":", lw=1, label=f"nanoGPT, minutes on a GPU,\n"
                 f"another edition: {NANOGPT:.2f}")
    axes.plot([], [], color="gray", lw=1, label="a GPT as it learns, scored in blocks side by side\n"
              "(its point at the end: in overlapping windows)")
    axes.set(xscale="log", xlabel="seconds of training", ylabel="bits a character")
    axes.set_yscale("function", functions=(up, down))
    axes.set_yticks([2.1, 2.2, 2.3, 2.4, 2.6, 2.8, 3, 3.5, 4, 4.5, 5])
    axes.set_ylim(bottom=floor + 0.25)
    axes.set_xlim(right=axes.get_xlim()[1] * 6)  # the labels need room
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def places(points):  # [(seconds, height), ...] -> where their labels go, so that none lies on another
    """To the right of its point, and higher until no label is in the way: about a factor of 20 in seconds
    wide and 0.07 high. The best model, the lowest, chooses first."""
    taken = {}
    for x, y in sorted(points, key=lambda point: point[1]):
        left, height = x * 1.2, y
        near = [b for a, b in taken.values() if abs(math.log(left / a)) < math.log(20)]
        while any(abs(height - b) < 0.07 for b in near):
            height += 0.01
        taken[x, y] = left, height
    return [taken[point] for point in points]
