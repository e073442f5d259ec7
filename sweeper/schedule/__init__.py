"""Run a sweep's trials in slots, whatever happens to the slots."""
