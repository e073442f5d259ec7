"""How a sweep is: the state of every trial, what failed and why, how long is left. Reads only."""
