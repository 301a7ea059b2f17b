"""The picture of lesson 2: bits a character against order, a line for each smoothing."""
from pathlib import Path


def draw(orders, bits):  # n orders, {smoothing: n bits a character} -> path of the picture
    from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 4), layout="constrained")
    panel, path = figure.subplots(), Path("out/lessons/ngrams.png")
    for name, row in bits.items():
        best = min(row)
        line, = panel.plot(orders, row, "o-", label=f"{name}: {best:.3f} at order {orders[row.index(best)]}")
        panel.plot(orders[row.index(best)], best, "o", markersize=11, mfc="none", color=line.get_color())
    panel.set(title="n-grams of Shakespeare, text not counted", xlabel="order", ylabel="bits a character")
    panel.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path
