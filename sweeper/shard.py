"""A driver's own share of a sweep's trials, for job arrays: several drivers, one directory each."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sweeper.errors import SweeperError


@dataclass(frozen=True)
class Shard:
    """Share `number`, from 1 on, of `count`.

    The id of a trial alone says which share it is in, so that none moves when a grid is extended.
    Ids are hashes: of n trials each share has n / count, give or take the root of that.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The share that `--shard` asks for, such as `2/8`.

        Raises
        ------
        SweeperError : it is none.
        """
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        number, count = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= number <= count:
            allowed = "`i/N`, i from 1 to N"
            hint = "`--shard 2/8` is the second of eight shares of the trials"
            raise SweeperError("--shard", f"`{text}`", allowed, hint)
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def holds(self, trial_id: str) -> bool:
        """Whether a trial is in this share."""
        return int(trial_id[1:], 16) % self.count == self.number - 1


def named(sweep: str, shard: Shard | None) -> str:
    """What a sweep, or a share of one, is called where its shares must be told apart."""
    return sweep if shard is None else f"{sweep}-{shard.number}-of-{shard.count}"
