"""Run sweeps of training trials and keep every recorded prediction."""

__version__ = "0.1.0"
