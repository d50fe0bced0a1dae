"""Tables: the competition's images, the folds, the predictions. pandas, no torch."""
