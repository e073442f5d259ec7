"""What could stop a sweep, looked for on every node before it does: for `doctor` and `launch`."""
