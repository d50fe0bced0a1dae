"""`python -m rsna_bcd.prepare`: images and CSV to crops, one table per split, manifest, folds."""

if __name__ == "__main__":
    from rsna_bcd._stage import main  # not above: worker processes import this module, too

    main("prepare")
