"""`python -m rsna_bcd.train`: one fold of one experiment, from crops to out-of-fold predictions."""

if __name__ == "__main__":
    from rsna_bcd._stage import main  # not above: worker processes import this module, too

    main("train")
