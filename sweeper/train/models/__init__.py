"""One architecture family a file; each takes the shape of a sample and the number of classes."""
