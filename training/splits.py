"""A part of the training recordings kept aside: what early stopping and the choice of a recipe may look at."""

from collections import defaultdict

import numpy as np

from training.data import DataError, Row


def split(rows: list[Row], fold: int, share: float) -> tuple[list[int], list[int]]:
    """Indices of the rows to train on where `fold` is held out, and of those kept aside of the other folds.

    The same whatever a run's seed, so that runs of several can be compared. Raises DataError as `inner_split` does.
    """
    known = [i for i, row in enumerate(rows) if row.fold != fold]
    trained, aside = inner_split([rows[i] for i in known], share, np.random.default_rng([0, fold]))
    return [known[i] for i in trained], [known[i] for i in aside]


def inner_split(rows: list[Row], share: float, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Indices of the rows to train on and of those to validate on, about `share` of each class.

    All takes of one source recording are on one side: they sound alike. Raises DataError where there is no row, the csv
    does not tell the recordings or a class has only one.
    """
    if not rows:
        raise DataError("no clip is left to train on, all are of the fold held out: set --fold to another")
    if not share:
        return list(range(len(rows))), []
    by_class: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for i, row in enumerate(rows):
        if not row.source:
            raise DataError("meta/esc50.csv has no column src_file: an inner split needs it, or set --inner-share 0")
        by_class[row.label][row.source].append(i)
    aside: set[int] = set()
    for label, recordings in by_class.items():
        if len(recordings) < 2:
            raise DataError(f"class {label!r} has one source recording only: an inner split needs two")
        groups = list(recordings.values())
        wanted = share * sum(map(len, groups))
        chosen: list[int] = []
        for at in rng.permutation(len(groups))[:-1]:  # one recording is always left to train on
            if len(chosen) >= wanted:
                break
            chosen += groups[at]
        aside.update(chosen)
    return [i for i in range(len(rows)) if i not in aside], sorted(aside)
