"""The scores that every table shows, under the names they have in files."""

from rsna_bcd.scoring.decisions import (
    accuracy,
    balanced_accuracy,
    ppv,
    recall_rate,
    sensitivity,
    specificity,
)
from rsna_bcd.scoring.pf1 import pf1
from rsna_bcd.scoring.ranking import auroc, average_precision
from rsna_bcd.scoring.resampling import Metric

# Of probabilities: only their order counts.
RANKING: dict[str, Metric] = {"auroc": auroc, "average_precision": average_precision}

# Of decisions of 0 and 1, on which pF1 is the ordinary F1.
DECISION: dict[str, Metric] = {
    "pf1": pf1,
    "sensitivity": sensitivity,
    "specificity": specificity,
    "accuracy": accuracy,
}

# All that is said of an operating point.
OPERATING: dict[str, Metric] = {
    **DECISION,
    "balanced_accuracy": balanced_accuracy,
    "ppv": ppv,
    "recall_rate": recall_rate,
}
