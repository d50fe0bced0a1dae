"""Scores, thresholds, intervals and blends of breast-level probabilities, in plain numpy.

A score is a function `(labels, probabilities, weights=None)`. Weights count rows: a row of weight 2
stands for two equal rows, one of weight 0 is absent. The bootstrap resamples by weights alone, so
each score is written once and sorted rows stay sorted.
"""
