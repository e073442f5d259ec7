"""Which trials compute the same graph on the same shapes of tensors."""

from __future__ import annotations

import functools
from typing import Any

from sweeper.config import TrialConfig, content_id
from sweeper.sections import (
    AugmentConfig,
    DataConfig,
    OptimConfig,
    Options,
    RecordConfig,
    RegularizeConfig,
)


def shape_of(config: TrialConfig) -> str:
    """The shape of a trial: trials of one shape need the same memory and the same time per step.

    Of the data it depends on what is kept in memory and given to the network, not on the labels;
    on the network and all its options; on batch size, number format, layout and compilation; on
    which optimizer, regularization and augmentation there are, but not on how strong they are:
    where a fraction of them is 0, nothing is computed. How long a trial is, when it is recorded,
    its learning rate, its weights before training and its seed are no part of it.

    Returns
    -------
    shape : such as `wrn-16-4-64 b500 sgd float32 #1a2b3c4d`: what people ask for, then a hash of
        it all. Equal in every process; no part of a trial's id.
    """
    return _label(_bare(config))


def _bare(config: TrialConfig) -> TrialConfig:
    """A trial with no more in it than sets its shape; numbers that only switch are 0 or 1."""
    data, optim, regularize = config.data, config.optim, config.regularize
    return TrialConfig(
        data=DataConfig(
            name=data.name,
            options=data.options,
            image_size=data.image_size,
            subset=data.subset,  # the samples stay in the device's memory
            test_subset=data.test_subset,  # so do its predictions
        ),
        model=config.model,
        optim=OptimConfig(
            name=optim.name,
            lr=1.0,
            batch_size=optim.batch_size,
            clip=None if optim.clip is None else 1.0,
            options=_switches(optim.options),
        ),
        regularize=RegularizeConfig(
            weight_decay=_switch(regularize.weight_decay),
            decay=regularize.decay,
            dropout=_switch(regularize.dropout),
            stochastic_depth=_switch(regularize.stochastic_depth),
            label_smoothing=_switch(regularize.label_smoothing),
            mixup=_switch(regularize.mixup),
            cutmix=_switch(regularize.cutmix),
            ema=_switch(regularize.ema),
        ),
        augment=AugmentConfig(name=config.augment.name, options=_switches(config.augment.options)),
        record=RecordConfig(train=config.record.train),
        epochs=1,
        precision=config.precision,
        channels_last=config.channels_last,
        compile=config.compile,
    )


@functools.lru_cache(maxsize=65536)
def _switches(options: Options) -> Options:
    return tuple((name, _switch(value)) for name, value in options)


def _switch(value: Any) -> Any:
    """Whether a fraction is off, 0, or on, 1; sizes, names and flags as they are."""
    if isinstance(value, tuple):
        return tuple(map(_switch, value))
    return float(value != 0) if isinstance(value, float) else value


@functools.lru_cache(maxsize=65536)
def _label(bare: TrialConfig) -> str:
    digits = content_id(bare.identity).removeprefix("t")[:8]
    optim = bare.optim
    return f"{bare.model.name} b{optim.batch_size} {optim.name} {bare.precision} #{digits}"
