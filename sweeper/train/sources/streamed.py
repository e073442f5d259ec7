"""Image files that are decoded as they are needed, by processes that read ahead."""

from __future__ import annotations

import math
import os
import signal
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

# Here and not where it is used: a worker would import it anew at every epoch.
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize

from sweeper.errors import ConfigError
from sweeper.processors import n_cores

# Images that a worker decodes at a time: few enough that all work on the first batch, many enough
# that passing them on costs little.
_PIECE = 32
_MAX_WORKERS = 8
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class _Unread:
    """A file that could not be read; `number` is the system's error number, None if decoding."""

    path: str
    reason: str
    number: int | None


class ImageFiles:
    """Images in files as a `sweeper.train.data.Streamed`, (n_samples, 3, side, side) uint8.

    The short side is resized to `side` (bilinear, antialiased, as torchvision's `Resize` does it
    on a PIL image) and the central square is kept. No random numbers are drawn.

    Parameters
    ----------
    folder : that `names` are relative to.
    names : (n_samples,) of bytes; an array, since a list's reference counts would be written to,
        and so copied, by every worker.
    """

    def __init__(self, folder: Path, names: np.ndarray, side: int) -> None:
        self.folder, self.names, self.side = folder, names, side

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_samples, 3, side, side)."""
        return (len(self.names), 3, self.side, self.side)

    def __getitem__(self, positions: Tensor) -> ImageFiles:
        """The images at these positions."""
        return ImageFiles(self.folder, self.names[positions.cpu().numpy()], self.side)

    def batches(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """The images of each batch of positions, in order, read ahead; pinned for a GPU.

        Workers end with the generator: close it if it is not exhausted.

        Raises
        ------
        ConfigError : a file cannot be decoded; it is named.
        OSError : a file cannot be read; it is named.
        """
        return ahead(self._assembled([batch.cpu().numpy() for batch in batches]))

    def _assembled(self, batches: list[np.ndarray]) -> Generator[Tensor, None, None]:
        pieces = [
            batch[start : start + _PIECE]
            for batch in batches
            for start in range(0, len(batch), _PIECE)
        ]
        with closing(self._read(pieces, max(map(len, batches), default=1))) as read:
            for batch in batches:
                whole, filled = pinned(len(batch), *self.shape[1:]), 0
                while filled < len(batch):
                    piece = next(read)
                    if isinstance(piece, _Unread):
                        raise _error(piece)
                    whole[filled : filled + len(piece)] = piece
                    filled += len(piece)
                yield whole

    def _read(
        self, pieces: list[np.ndarray], largest: int
    ) -> Generator[Tensor | _Unread, None, None]:
        """The images of each piece, in order, by workers that end with this generator."""
        n_workers = min(_MAX_WORKERS, n_cores(), len(pieces))
        if n_workers == 0:
            return
        Image.preinit()  # for the same reason as the import above
        # Workers touch neither CUDA nor another thread's locks, so a fork does no harm.
        warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
        yield from DataLoader(
            _Decoded(self),
            batch_sampler=pieces,  # type: ignore[arg-type]  # arrays do as well as lists
            collate_fn=_as_it_is,
            num_workers=n_workers,
            # A fork shares the names; a fresh interpreter would import torch in every worker.
            multiprocessing_context="fork",
            prefetch_factor=math.ceil(_BATCHES_AHEAD * largest / (_PIECE * n_workers)) + 1,
            worker_init_fn=_begin_worker,
            generator=torch.Generator(),  # else it would draw from the one that dropout uses
        )


class _Decoded(Dataset):
    """What a worker does with a piece."""

    def __init__(self, files: ImageFiles) -> None:
        self._files, self._folder = files, os.fsencode(files.folder)

    def __getitems__(self, positions: np.ndarray) -> Tensor | _Unread:
        """The decoded images, or the first file that cannot be: an error would lose its type."""
        side = self._files.side
        found = torch.empty(len(positions), 3, side, side, dtype=torch.uint8)
        for row, name in zip(found, self._files.names[positions], strict=True):
            path = os.fsdecode(os.path.join(self._folder, name))
            try:
                row.copy_(decode(path, side))
            except Exception as error:  # Pillow raises many kinds at a damaged file
                number = error.errno if isinstance(error, OSError) else None
                return _Unread(path, f"{error}", number)
        return found


def decode(path: str | Path, side: int) -> Tensor:
    """The central square of an image file, its short side resized to `side`; (3, side, side) uint8.

    Pillow's resizing is integer arithmetic: it gives the same bytes on every processor.
    """
    with Image.open(path) as image:
        whole = image.convert("RGB")
    return pil_to_tensor(center_crop(resize(whole, [side]), [side, side]))


def _error(found: _Unread) -> Exception:
    if found.number is not None:
        return OSError(found.number, os.strerror(found.number), found.path)
    return ConfigError(
        "data.name",
        f"`{found.path}` cannot be decoded: {found.reason.strip().partition(chr(10))[0]}",
        "an image that Pillow reads",
        "put the original file there",
    )


def _as_it_is(piece: Any) -> Any:
    return piece


def _begin_worker(worker: int) -> None:
    """Leave signals to the parent, which still needs its workers while it drains."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # Pillow warns of odd metadata in a few of ImageNet's files; their pixels are fine.
    warnings.filterwarnings("ignore", module="PIL")


def pinned(*shape: int) -> Tensor:
    """An empty uint8 tensor, in page-locked memory where there is a GPU to copy it to."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available())


def ahead(source: Generator[Tensor, None, None]) -> Iterator[Tensor]:
    """What `source` yields, made by a background thread up to two items early.

    An exception of `source` is raised here. When this generator ends or is closed, so is `source`.
    """
    with closing(source), ThreadPoolExecutor(1) as thread:
        pending = deque(thread.submit(next, source, None) for _ in range(_BATCHES_AHEAD))
        try:
            while (item := pending.popleft().result()) is not None:
                pending.append(thread.submit(next, source, None))
                yield item
        finally:
            thread.shutdown(cancel_futures=True)
