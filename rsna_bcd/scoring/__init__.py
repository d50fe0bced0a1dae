"""Metrics, intervals, thresholds, calibration and blending of breast-level probabilities.

The same arguments have the same meaning everywhere: `labels` (N,), each 0 or 1; `probabilities`
(N,), finite, in [0, 1] where they are blended or calibrated; `patients` (N,) and `sites` (N,), an
id per row; `n` resamples of the patients, drawn with `seed`.

A metric is a function `(labels, probabilities, weights=None)`. Weights count rows: a row of weight
2 stands for two equal rows, one of weight 0 is absent. So the bootstrap resamples by weights alone,
and each metric is written once. No matrix products of rows: BLAS would start threads for each of
the bootstrap's thousands of small ones.
"""
