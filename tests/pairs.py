"""Few rows in which every two values of different axes meet."""

import itertools
import random


def pairwise(axes, seed=0):
    """Rows, each a mapping of axis to value, that cover every pair of values of two axes.

    Greedy: each row takes for axis after axis the value that meets most values for the first time.
    """
    names = sorted(axes, key=lambda name: -len(axes[name]))
    wanted = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(names, 2)
        for i in range(len(axes[a]))
        for j in range(len(axes[b]))
    }
    draw = random.Random(seed)
    rows = []
    while wanted:
        (a, i), (b, j) = min(wanted)
        row = {a: i, b: j}
        for name in names:
            if name not in row:
                values = list(range(len(axes[name])))
                draw.shuffle(values)
                row[name] = max(
                    values, key=lambda value: len(_met(wanted, {**row, name: value}, names))
                )
        wanted -= _met(wanted, row, names)
        rows.append({name: axes[name][row[name]] for name in axes})
    return rows


def _met(wanted, row, names):
    given = [(name, row[name]) for name in names if name in row]
    return {pair for pair in itertools.combinations(given, 2) if pair in wanted}
