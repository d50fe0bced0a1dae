"""`python -m rsna_bcd.synthesize`: a synthetic competition, in the layout of Kaggle's folder."""

if __name__ == "__main__":
    from rsna_bcd._stage import main  # not above: worker processes import this module, too

    main("synthesize")
