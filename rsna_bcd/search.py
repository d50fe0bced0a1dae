"""`python -m rsna_bcd.search`: hyperparameter search; each trial is a run."""

if __name__ == "__main__":
    from rsna_bcd._stage import main  # not above: worker processes import this module, too

    main("search")
