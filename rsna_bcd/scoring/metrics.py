"""The scores that every table shows, under the names they have in files."""

from rsna_bcd.scoring.bootstrap import Metric
from rsna_bcd.scoring.pf1 import pf1
from rsna_bcd.scoring.ranking import auroc, average_precision
from rsna_bcd.scoring.threshold import accuracy, sensitivity, specificity

# Of probabilities: only their order counts.
RANKING: dict[str, Metric] = {"auroc": auroc, "average_precision": average_precision}

# Of decisions of 0 and 1, on which pF1 is the ordinary F1.
DECISION: dict[str, Metric] = {
    "pf1": pf1,
    "sensitivity": sensitivity,
    "specificity": specificity,
    "accuracy": accuracy,
}
