"""From mammograms to the probability of cancer of each breast.

DICOM files and a CSV become crops (`prepare`), crops and a fold a trained network with its
out-of-fold predictions (`train`), those of several networks a blend with a threshold chosen out of
sample (`ensemble`), and test images a `submission.csv` (`submit`). `synthesize` makes a competition
to try all this on. Stages meet only in files: CSV, PNG, JSON, YAML and checkpoints.
"""
