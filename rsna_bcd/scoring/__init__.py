"""Scores, thresholds, intervals and blends of breast-level probabilities, in plain numpy.

A score is a function `(labels, probabilities, weights=None)`. Weights count rows: a row of weight 2
stands for two equal rows, one of weight 0 is absent. The bootstrap resamples by weights alone, so
each score is written once and sorted rows stay sorted.

Sums are `np.sum` rather than `@`: BLAS splits each of the bootstrap's thousands of small products
over threads that wait for each other; beside a running training that took 20 times as long.
"""
