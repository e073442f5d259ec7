"""Every network of timm, by its name there, where timm is installed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from torch import nn

from sweeper.errors import ConfigError, nearest
from sweeper.train.models.layers import check_images

_KEYWORDS = {"drop_rate": "dropout", "drop_path_rate": "stochastic_depth"}


def timm_model(name: str) -> Callable[..., nn.Module]:
    """The entry of timm's network of that name; nothing is downloaded.

    `dropout` and `stochastic_depth` are timm's `drop_rate` and `drop_path_rate`, and 0 unless
    asked for, whatever timm's own default is. A network that is made for one image size, such as
    a vision transformer, is made for that of the samples.

    Wightman, "PyTorch Image Models", 2019, doi:10.5281/zenodo.4414861.

    Raises
    ------
    ConfigError : timm is not installed, or has no such network; or, from the entry, samples are
        not images, or the network takes no dropout or stochastic depth and it is not 0.
    """
    try:
        timm: Any = importlib.import_module("timm")
    except ImportError as error:
        raise ConfigError(
            "name",
            f"`timm/{name}` needs timm, which cannot be imported: {error}",
            hint="pip install timm",
        ) from error
    known = timm.list_models()
    if name not in known:
        allowed = "a name that `timm.list_models()` has"
        raise ConfigError("name", f"timm has no model `{name}`", allowed, nearest(name, known))

    def build(
        shape: tuple[int, ...],
        n_classes: int,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
    ) -> nn.Module:
        check_images(shape)
        options: dict[str, Any] = {"num_classes": n_classes, "in_chans": shape[0]}
        # None where timm holds no weights for it; those names take no size either.
        made_for = timm.models.get_pretrained_cfg(name)
        if made_for is not None and made_for.fixed_input_size:
            options["img_size"] = shape[1:]
        rates = {"drop_rate": dropout, "drop_path_rate": stochastic_depth}
        return _create(timm, name, options, rates)

    return build


def _create(timm: Any, name: str, options: dict[str, Any], rates: dict[str, float]) -> nn.Module:
    """The network, without those rates of 0 that its constructor does not know."""
    try:
        return timm.create_model(name, pretrained=False, **options, **rates)
    except TypeError as error:
        # Constructors differ, and only a call tells which keywords one has.
        unknown = [rate for rate in rates if f"'{rate}'" in str(error)]
        if not unknown:
            raise
        for rate in unknown:
            if rates[rate]:
                option = _KEYWORDS[rate]
                raise ConfigError(
                    option,
                    f"`{rates[rate]}`, but `timm/{name}` takes no {option}",
                    "0 for it",
                    f"leave out `regularize.{option}`",
                ) from error
        return _create(timm, name, options, {k: v for k, v in rates.items() if k not in unknown})
