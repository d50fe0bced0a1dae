"""Metrics, intervals, thresholds, calibration and blending of breast-level probabilities.

A metric is a function `(labels, probabilities, weights=None)`. Weights count rows: a row of weight
2 stands for two equal rows, one of weight 0 is absent. So the bootstrap resamples by weights alone,
and each metric is written once. No matrix products of rows: BLAS would start threads for each of
the bootstrap's thousands of small ones.
"""
