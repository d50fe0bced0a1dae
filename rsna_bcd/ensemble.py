"""`python -m rsna_bcd.ensemble`: out-of-fold predictions -> a blend and its threshold."""

if __name__ == "__main__":
    from rsna_bcd._stage import main  # not above: worker processes import this module, too

    main("ensemble")
