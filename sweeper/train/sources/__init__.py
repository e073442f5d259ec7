"""The data sets, one kind of source a file: what each holds and how it is read."""
