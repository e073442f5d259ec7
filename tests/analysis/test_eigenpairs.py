"""The three ways to the eigenpairs: the same pairs, few readings, and a bound that holds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from analysis import eigenpairs, upper
from analysis.eigenpairs import PASSES
from analysis.inpca import InPCA, inpca
from analysis.tiles import Distances, Tiling, create, record_of, write_tile
from sweeper.errors import AnalysisError, StoreError

M = 400
WAYS = ("lapack", "arpack", "krylov")


def of_spectrum(values: np.ndarray, size: int = M, seed: int = 0) -> np.ndarray:
    """Distances whose W has these eigenvalues, and zeros."""
    rng = np.random.default_rng(seed)
    random = rng.standard_normal((size, len(values)))
    U = np.linalg.qr(random - random.mean(axis=0))[0]
    W = (U * values) @ U.T
    W = (W + W.T) / 2
    D = np.diag(W)[:, None] + np.diag(W) - 2 * W
    np.fill_diagonal(D, 0)
    return D


def spectrum(n: int = 200) -> np.ndarray:
    """Falling as that of real sweeps does, a third of it negative, the second among them."""
    values = 5.0 * np.arange(1, n + 1) ** -1.3
    values[1::3] *= -1
    return values


def by(way: str, monkeypatch: pytest.MonkeyPatch, D: object, n: int = 10) -> InPCA:
    monkeypatch.setattr(eigenpairs, "DENSE", 10**6 if way == "lapack" else 0)
    monkeypatch.setattr(upper, "RESIDENT", 0 if way == "krylov" else 1 << 30)
    monkeypatch.setattr(upper, "TILE", 90)
    return inpca(D, n)


def stored(folder: Path, D: np.ndarray, tile: int = 90) -> Distances:
    path, tiling = folder / "distances.zarr", Tiling(len(D), tile)
    create(path, tiling, {})
    with record_of(path).open("w") as record:
        for index in tiling.upper():
            rows, columns = map(tiling.span, index)
            references = np.zeros((2, rows.stop - rows.start)) if rows == columns else None
            entry = write_tile(path, index, D[rows, columns], references)
            record.write(json.dumps(entry) + "\n")
    return Distances(path)


@pytest.mark.parametrize("way", WAYS)
def test_a_known_spectrum_is_found_with_its_signs(monkeypatch, way):
    found = by(way, monkeypatch, of_spectrum(spectrum()))
    assert np.abs(found.eigenvalues / spectrum()[:10] - 1).max() < 1e-9
    assert (found.eigenvalues < 0).sum() == 3
    assert found.residuals.max() < 1e-8 * 5
    assert found.has_converged


@pytest.mark.parametrize("way", WAYS[1:])
def test_all_ways_agree(monkeypatch, tmp_path, way):
    D = of_spectrum(spectrum()).astype(np.float32)
    D = np.triu(D, 1) + np.triu(D, 1).T
    expected = by("lapack", monkeypatch, D.astype(float))
    for given in (D, stored(tmp_path, D)):
        found = by(way, monkeypatch, given)
        assert np.abs(found.eigenvalues / expected.eigenvalues - 1).max() < 1e-9
        for name in (
            "coordinates",
            "explained_stress",
            "explained_frobenius",
            "explained_l1",
            "row_means",
            "frobenius_norm",
        ):
            assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-7), name


@pytest.mark.parametrize("way", WAYS)
def test_equal_eigenvalues_give_the_space_that_they_span(monkeypatch, way):
    values = np.array([5, -4, 3, 3, 3, -2, -2, *0.5 / np.arange(1, 100)])
    D = of_spectrum(values)
    found, expected = by(way, monkeypatch, D, 7), by("lapack", monkeypatch, D, 7)
    assert np.sort(found.eigenvalues) == pytest.approx(np.sort(values[:7]), rel=1e-9)
    for group in ([0], [1], [2, 3, 4], [5, 6]):
        X, Y = found.coordinates[:, group], expected.coordinates[:, group]
        assert pytest.approx(Y @ Y.T, abs=1e-7) == X @ X.T


@pytest.mark.parametrize("n_same", [31, 40])
def test_an_eigenvalue_more_frequent_than_a_block_is_wide_is_not_called_certain(
    monkeypatch, n_same
):
    values = np.array([5.0] * n_same + [0.1] * 5)
    found = by("krylov", monkeypatch, of_spectrum(values), 10)
    assert found.eigenvalues == pytest.approx([5.0] * 10)
    assert (found.n_certified == 10) == (n_same <= 32)
    assert n_same <= 32 or found.bound >= 5


@pytest.mark.parametrize("way", WAYS)
def test_two_runs_give_the_same_bits(monkeypatch, tmp_path, way):
    D = stored(tmp_path, of_spectrum(spectrum()))
    first, second = (by(way, monkeypatch, D) for _ in range(2))
    for name in vars(first):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


LOW_RANK = {
    "two places": np.kron(1 - np.eye(2), np.ones((M // 2, M // 2))),
    "all but one at one place": np.pad(np.zeros((M - 1, M - 1)), (1, 0), constant_values=4.0)
    * (1 - np.eye(M)),
}


@pytest.mark.parametrize("D", LOW_RANK.values(), ids=LOW_RANK)
@pytest.mark.parametrize("way", WAYS)
def test_two_runs_give_the_same_bits_where_there_are_fewer_pairs_than_are_sought(
    monkeypatch, way, D
):
    first, second = (by(way, monkeypatch, D) for _ in range(2))
    for name in vars(first):
        assert np.array_equal(getattr(first, name), getattr(second, name)), name


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7])
def test_the_krylov_basis_stays_orthonormal_where_little_is_new_in_a_block(monkeypatch, ratio):
    defects, beyond = [], eigenpairs._beyond

    def watched(Q, V, scale):
        block = beyond(Q, V, scale)
        both = np.column_stack([Q, block])
        defects.append(np.abs(both.T @ both - np.eye(both.shape[1])).max())
        return block

    monkeypatch.setattr(eigenpairs, "_beyond", watched)
    values = ratio ** np.arange(150) * (-1.0) ** np.arange(150)
    repeated = np.concatenate([np.full(40, 1.0), ratio ** np.arange(1, 150)])
    for expected in (values, repeated):
        found = by("krylov", monkeypatch, of_spectrum(expected))
        assert found.has_converged
        assert np.abs(found.eigenvalues - expected[:10]).max() < 1e-13
    assert len(defects) > 4
    assert max(defects) < 1e-13


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("passes", range(1, PASSES))
def test_the_bound_holds_however_few_the_passes(monkeypatch, passes, seed):
    rng = np.random.default_rng(seed)
    decay = rng.uniform(0.3, 2)
    values = rng.choice([-1, 1], 300) * np.arange(1, 301) ** -decay
    monkeypatch.setattr(eigenpairs, "PASSES", passes)
    monkeypatch.setattr(eigenpairs, "WIDTH", 8)
    found = by("krylov", monkeypatch, of_spectrum(values, seed=seed), 5)
    left = np.abs(values)
    for value in found.spectrum:  # each stands for the true eigenvalue next to it
        left = np.delete(left, np.abs(left - abs(value)).argmin())
    assert left.max() <= found.bound
    certain = found.n_certified
    margin = found.residuals[:certain].max(initial=0)
    assert np.abs(found.eigenvalues[:certain] - values[:certain]).max(initial=0) <= margin + 1e-12


def test_what_has_converged_and_is_certain_ends_the_passes(monkeypatch):
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(eigenpairs, "DENSE", 0)
    monkeypatch.setattr(upper, "RESIDENT", 0)
    monkeypatch.setattr(upper, "TILE", 100)
    inpca(of_spectrum(3.0 ** -np.arange(20)), 3, progress=lambda *pair: seen.append(pair))
    n_tiles = 10
    n_passes, rest = divmod(len(seen), n_tiles)
    assert (n_passes, rest) == (3, 0)  # two of Krylov's, because W has rank 20, and one for L1
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[0][1] == n_tiles * (PASSES + 1)
    assert seen[-1] == (30, 30)


def test_every_tile_is_read_once_a_pass_and_ten_times_at_most(monkeypatch, tmp_path):
    D, reads = stored(tmp_path, of_spectrum(spectrum())), Counter[tuple[int, int]]()
    read = D.tile
    monkeypatch.setattr(D, "tile", lambda tile: (reads.update([tile]), read(tile))[1])
    found = by("krylov", monkeypatch, D)
    assert set(reads) == set(D.tiling.upper())
    assert len(set(reads.values())) == 1
    assert max(reads.values()) <= 10
    assert found.n_certified == 10


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def exchanged(path: Path) -> None:
    """A tile whose file matches the checksum in it, but is another's."""
    path.write_bytes(path.with_name("c.1.2").read_bytes())


@pytest.mark.parametrize("damage", [flipped, cut, exchanged])
def test_a_tile_damaged_between_two_passes_is_noticed(monkeypatch, tmp_path, damage):
    D = stored(tmp_path, of_spectrum(spectrum()))
    path, read, count = D.path / "d" / "c.1.3", D.tile, Counter[tuple[int, int]]()

    def damaged(tile: tuple[int, int]) -> np.ndarray:
        count[tile] += 1
        if tile == (1, 3) and count[1, 3] == 2:
            damage(path)
        return read(tile)

    monkeypatch.setattr(D, "tile", damaged)
    with pytest.raises(StoreError, match=r"tile 1\.3: damaged"):
        by("krylov", monkeypatch, D)


def test_a_basis_that_would_not_fit_is_refused_with_what_would(monkeypatch):
    monkeypatch.setattr(eigenpairs, "BASIS", 16 * M * PASSES * 50)
    with pytest.raises(AnalysisError, match="n_components: `41`; 1 to 40 of 400"):
        by("krylov", monkeypatch, of_spectrum(spectrum()), 41)
    assert by("krylov", monkeypatch, of_spectrum(spectrum()), 40).coordinates.shape == (M, 40)


@pytest.mark.parametrize(("gigabytes", "most"), [(200, None), (20, 2317), (3, 510), (2, 0)])
def test_pairs_that_would_not_fit_into_memory_are_refused_with_as_many_as_do(
    monkeypatch, gigabytes, most
):
    size, free = 23_170, int(gigabytes * 1e9)  # the largest D that is kept in memory
    monkeypatch.setattr(eigenpairs, "free_memory", lambda: free)
    if most is None:
        eigenpairs._check_memory(size, size - 1)
        return
    with pytest.raises(
        AnalysisError, match=r"^n_components: `\d+`, for which 32.0 GiB are"
    ) as caught:
        eigenpairs._check_memory(size, size // 2)
    if not most:
        assert caught.value.allowed.endswith(" GiB for one of 23170 snapshots")
        return
    assert caught.value.allowed == f"1 to {most} of 23170 snapshots"
    eigenpairs._check_memory(size, most)
    with pytest.raises(AnalysisError):
        eigenpairs._check_memory(size, most + 1)


def test_too_little_memory_is_found_before_anything_is_computed(monkeypatch):
    monkeypatch.setattr(eigenpairs, "DENSE", 0)
    monkeypatch.setattr(eigenpairs, "free_memory", lambda: 8 << 20)
    reads, D = [], of_spectrum(spectrum())

    class Watched:
        shape = D.shape

        def __getitem__(self, key):
            reads.append(key)
            return D[key]

    with pytest.raises(AnalysisError, match=r"n_components: `41`, .*; 1 to 40 of 400 snapshots"):
        inpca(Watched(), 41)
    assert not reads
    assert inpca(Watched(), 40).coordinates.shape == (M, 40)


def test_pairs_that_have_not_converged_say_so(monkeypatch):
    monkeypatch.setattr(eigenpairs, "PASSES", 2)
    found = by("krylov", monkeypatch, of_spectrum(1 / np.sqrt(np.arange(1, 300))))
    assert not found.has_converged
    assert found.residuals.max() > 1e-5
    assert found.n_certified < 10


def test_reading_stops_with_the_first_error_in_order(monkeypatch):
    D = of_spectrum(spectrum())
    D[350, 370] = D[370, 350] = np.inf
    D[3, 170] = D[170, 3] = np.nan
    with pytest.raises(AnalysisError, match=r"D\[3, 170\]: `nan`"):
        by("krylov", monkeypatch, D)
