"""Pictures of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def plot(
    found: Mapping[str, Mapping[str, Mapping[str, float]]], policies: Sequence[str], path: Path
) -> None:
    """Bars of cost ratios, a group a scenario, and the bound as a line in each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(found)
    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(names) * len(policies) / 3 + 2))
    height = 0.8 / len(policies)
    for i, policy in enumerate(policies):
        places = [row + i * height for row in range(len(names))]
        axes.barh(places, [found[name][policy]["cost_ratio"] for name in names], height,
                  label=policy.replace("_", " "))  # fmt: skip
    for row, name in enumerate(names):
        least = found[name]["omniscient"]["cost_ratio"]
        axes.plot([least, least], [row - height / 2, row + 0.8 - height / 2], "k--", linewidth=1)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(names))], names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("cost / cost of all on-demand (dashed: nobody can be cheaper)")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
