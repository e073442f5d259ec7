"""The prediction store, format 1: written by `writer` and `seal`, read by `reader`."""

from sweeper.store.reader import Store, open_store

__all__ = ["Store", "open_store"]
