"""`python -m rsna_bcd.predict`: predict any mammograms, with a picture of each study."""

if __name__ == "__main__":
    from rsna_bcd._stage import main  # not above: worker processes import this module, too

    main("predict")
