"""What trials are made of: their data sets, and the code of plug-ins."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence

from sweeper.doctor.finding import Finding, failed, passed, refused, warned
from sweeper.errors import ConfigError
from sweeper.sections import DataConfig

_SAME_CODE = "plug-ins must be importable and the same on every node: a shared folder, or one image"


def check_data(configs: Sequence[DataConfig], verify: bool) -> Iterator[Finding]:
    """That data sets are on this machine; each is looked at once, whatever is made of it.

    Parameters
    ----------
    verify : whether files that have published sums are compared with them, which reads them.
    """
    from sweeper.train.data import present

    bad: set[str] = set()
    for config in configs:
        if config.name in bad:
            continue
        try:
            present(config)
        except ConfigError as error:
            bad.add(config.name)
            yield refused(_named(config), error)
    good = {config.name: config for config in configs if config.name not in bad}
    for config in good.values():
        yield _verified(config) if verify else passed(_named(config), "there")


def _named(config: DataConfig) -> str:
    return f"data {config.name}"


def _verified(config: DataConfig) -> Finding:
    """What can be said of files that are there."""
    from sweeper.train.sources.place import data_root
    from sweeper.train.sources.small import SOURCES, damaged

    folder = data_root() / config.name
    if config.name in SOURCES:
        bad = damaged(config.name, folder)
        if bad is None:
            return passed(_named(config), f"there and as published, in {folder}")
        cure = f"remove `{folder}`, then `sweeper data get {config.name} --root {folder.parent}`"
        return failed(_named(config), f"`{folder / bad}` is damaged", cure)
    if config.name != "imagenet":
        return passed(_named(config), "there")
    return _prepared(config)


def _prepared(config: DataConfig) -> Finding:
    from sweeper.train.sources.folder import stored_side
    from sweeper.train.sources.place import data_root
    from sweeper.train.sources.prepared import place_of

    copy = place_of(data_root() / config.name, stored_side(config.image_size)[0])
    if copy.exists():
        return passed(_named(config), f"there, with a prepared copy in {copy}")
    size = "" if config.image_size is None else f" --image-size {config.image_size}"
    text = "there, without a prepared copy: every epoch decodes all images"
    return warned(_named(config), text, f"`sweeper data prepare imagenet{size}`")


def check_plug_ins(hashes: Mapping[str, str]) -> Iterator[Finding]:
    """That plug-ins can be imported here and have the source that the driver has.

    Parameters
    ----------
    hashes : `source_hash` of each on the driver's side.
    """
    from sweeper.registry import source_hash

    importlib.invalidate_caches()
    for name, theirs in hashes.items():
        check = f"plug-in {name}"
        try:
            here = source_hash(name)
        except ConfigError as error:
            yield refused(check, error)
        except Exception as error:  # a plug-in's code may raise anything while it is imported
            said = " ".join(str(error).split())
            yield failed(check, f"importing it raised {type(error).__name__}: {said}", _SAME_CODE)
        else:
            if here == theirs:
                yield passed(check, f"source {here}")
            else:
                text = f"source {here}, but {theirs} where it is started"
                yield failed(check, text, _SAME_CODE)
