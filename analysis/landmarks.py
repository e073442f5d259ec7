"""Place points in an embedding by their distances to a few of its points, the landmarks.

With r the row means of D, b = −½(d − r) is, up to a constant, what W would hold for the new point
and each landmark: Σ_a sign(λ_a) xₐ x_{l,a} over all axes. Its least-squares fit by the landmarks'
coordinates on the axes that are kept gives xₐ. With all points as landmarks that is Gower's formula
(`InPCA.project`), exactly; with some of them, chosen uniformly, the axes that are not kept
disturb those that are, the last ones most. (Landmarks that are far from each other instead of
uniform are several times worse.)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.upper import Float64, Matrix, Progress, Upper
from sweeper.errors import AnalysisError

Rows = npt.NDArray[np.intp]

_NOISE = 1e-6  # of the largest singular value of the coordinates: float32 distances say no more
DISTANCE_ERROR = 2e-7  # of a distance, relative above 1: of the kernels and of float32


@dataclass(frozen=True)
class Landmarks:
    """Some of the points of an embedding.

    Attributes
    ----------
    coordinates : (n_landmarks, n_components) float64, those of the embedding.
    eigenvalues : (n_components,) float64, of the embedding; their signs are the metric.
    row_means : (n_landmarks,) float64, of D over all its points, weighted as there.
    weights : (n_landmarks,) float64, as there.
    """

    coordinates: Float64
    eigenvalues: Float64
    row_means: Float64
    weights: Float64

    def place(self, d: npt.ArrayLike) -> tuple[Float64, Float64]:
        """Coordinates of points, and how badly their distances fit them.

        Parameters
        ----------
        d : (n, n_landmarks) distances, in nats.

        Returns
        -------
        coordinates : (n, n_components) float64.
        misfit : (n,) float64, the root mean square over the landmarks of the difference between
            d and the distances in the embedding, in nats. It is large for what lies off its axes.

        Raises
        ------
        AnalysisError : the last axis is not n_landmarks, or a distance is not finite.
        """
        distances = np.asarray(d, dtype=np.float64)
        if distances.ndim != 2 or distances.shape[1] != len(self.coordinates):
            found, allowed = f"shape `{distances.shape}`", f"(n, {len(self.coordinates)})"
            raise AnalysisError("d", found, allowed)
        if not np.isfinite(distances).all():
            raise AnalysisError("d", "a distance that is not finite", "finite distances")
        x = -0.5 * (distances - self.row_means) @ self._fit.T
        signs = np.sign(self.eigenvalues)
        embedded = (
            np.square(x) @ signs[:, None]
            + np.square(self.coordinates) @ signs
            - 2 * (x * signs) @ self.coordinates.T
        )
        return x, np.sqrt(np.square(distances - embedded).mean(axis=1))

    def rounding(self, largest: float) -> Float64:
        """The most by which the error of distances up to `largest` moves a point, on each axis."""
        error = 0.5 * DISTANCE_ERROR * max(1.0, largest)
        return np.asarray(np.abs(self._fit).sum(axis=1) * error)

    @functools.cached_property
    def _fit(self) -> Float64:
        """(n_components, n_landmarks), from b to coordinates, whatever constant is in b."""
        root, share = np.sqrt(self.weights)[:, None], self.weights / self.weights.sum()
        centred = self.coordinates - share @ self.coordinates
        # Because the coordinates are centred, each row of the fit sums to 0.
        fit = np.linalg.pinv(root * centred, rcond=_NOISE) * root.T
        return np.asarray(np.sign(self.eigenvalues)[:, None] * fit)


def choose(M: int, n: int) -> Rows:
    """So many of M points, or all, uniformly and the same ones each time; in order."""
    return np.sort(np.random.default_rng(0).choice(M, min(n, M), replace=False))


def distances_to(D: Matrix, chosen: Rows, progress: Progress = lambda done, total: None) -> Float64:
    """The rows of D that are chosen, (n, M) float64; one reading of its upper tiles."""
    found = np.empty((len(chosen), D.shape[0]))

    def inside(span: slice) -> slice:
        first, last = np.searchsorted(chosen, [span.start, span.stop])
        return slice(int(first), int(last))

    def work(rows: slice, columns: slice, block: Float64) -> tuple[Float64, Float64]:
        above, left = chosen[inside(rows)] - rows.start, chosen[inside(columns)] - columns.start
        return block[above], block[:, left].T

    for rows, columns, (above, left) in Upper(D, progress).each(work):
        found[inside(rows), columns] = above
        found[inside(columns), rows] = left
    return found
