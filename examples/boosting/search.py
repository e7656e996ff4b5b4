"""Gradient-boosted trees over a grid of settings: one task a combination.

The data are made from a seed (`make_data`), so that every task has them at once. Put an address,
hyper://tenant/name/path.npz, into `data` to read a table of your own: `x` (n, features) and `y`
(n,) of 0 and 1.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper import TaskContext

Table = tuple[NDArray[np.float64], NDArray[np.int8]]
_HELD_OUT = 0.3


def train(
    context: TaskContext, *, data: str, rounds: int, leaves: int, rate: float, least: int,
    columns: float, rows: float, l2: float, report_every: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Fit one combination; reports and returns the AUC on held-out rows.

    With `report_every` the AUC is reported on the way too, so that `early_stopping` can end what
    does worse.

    Args:
        context: of the task.
        data: "made", or the address of a table.
        rounds: trees.
        leaves: of a tree, at most.
        rate: learning rate.
        least: rows in a leaf, at least.
        columns: share of columns a tree sees.
        rows: share of rows a tree sees.
        l2: penalty of leaf weights.
        report_every: so many trees; 0: at the end alone.
    """
    import lightgbm

    x, y = _table(data) if data == "made" else _read(context, data)
    cut = round(len(y) * (1 - _HELD_OUT))
    settings = {
        "objective": "binary", "num_leaves": leaves, "learning_rate": rate,
        "min_data_in_leaf": least, "feature_fraction": columns, "bagging_fraction": rows,
        "bagging_freq": 1, "lambda_l2": l2, "num_threads": 1, "seed": 7, "verbose": -1,
        "deterministic": True, "force_row_wise": True,
    }  # fmt: skip

    scores, trees = np.zeros(len(y) - cut), 0

    def score_of(booster: Any, done: int) -> float:
        """Only what the trees since the last look add is predicted."""
        nonlocal scores, trees
        scores = scores + booster.predict(
            x[cut:], start_iteration=trees, num_iteration=done - trees, raw_score=True,
            num_threads=1,
        )  # fmt: skip
        trees = done
        return auc(scores, y[cut:])

    def on_the_way(state: Any) -> None:
        done = state.iteration + 1
        if done % report_every == 0 and done < rounds:
            context.report(step=done, auc=score_of(state.model, done))

    booster = lightgbm.train(
        settings, lightgbm.Dataset(x[:cut], y[:cut]), rounds,
        callbacks=[on_the_way] if report_every else [],
    )  # fmt: skip
    score = score_of(booster, rounds)
    context.report(step=rounds, auc=score)
    return {"auc": score}


def best(context: TaskContext, *, count: int) -> dict[str, Any]:
    """The `count` best combinations of the experiment before, with their AUC."""
    workflow = context.client.workflow("/".join(context.task.split("/")[:4]))
    done = [task for task in workflow.tasks("search") if task.objective is not None]
    done.sort(key=lambda task: (-(task.objective or 0.0), task.index))
    top = [
        {"auc": task.objective, **{k: v for k, v in task.parameters.items() if k != "data"}}
        for task in done[:count]
    ]
    for row in top:
        context.log(str(row))
    return {"searched": len(done), "best": top}


def auc(score: NDArray[np.float64], truth: NDArray[np.int8]) -> float:
    """Area under the ROC curve: how often a positive scores above a negative; ties count half."""
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    rank = (last - (counts - 1) / 2)[inverse]  # mean rank of equal values, from 1
    positive = truth == 1
    n1 = int(positive.sum())
    n0 = len(truth) - n1
    if n0 == 0 or n1 == 0:
        raise ValueError("the held-out rows hold one class only")
    return float((rank[positive].sum() - n1 * (n1 + 1) / 2) / (n0 * n1))


def make_data(rows: int = 3_000, features: int = 12, seed: int = 0) -> Table:
    """A table with interactions and noise: x (rows, features), y (rows,) of 0 and 1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features))
    signal = (
        x[:, 0] * x[:, 1] + np.sin(2 * x[:, 2]) + (x[:, 3] > 0.5) * x[:, 4] - 0.3 * x[:, 5] ** 2
    )
    y = signal + rng.normal(scale=0.8, size=rows) > np.median(signal)
    return x, y.astype(np.int8)


@lru_cache(maxsize=2)
def _table(data: str) -> Table:
    return make_data()


_read_tables: dict[str, Table] = {}  # a warm process reads each version of a table once


def _read(context: TaskContext, address: str) -> Table:
    tenant, name, path = address.removeprefix("hyper://").split("/", 2)
    dataset = context.client.open_dataset(f"{tenant}/{name}")
    key = f"{dataset.name}/{path}"
    if key not in _read_tables:
        with np.load(io.BytesIO(dataset.read(path)), allow_pickle=False) as file:
            _read_tables[key] = file["x"], file["y"].astype(np.int8)
    return _read_tables[key]
