"""Read a sweep's predictions and reduce them: distances, InPCA, figures, report."""
