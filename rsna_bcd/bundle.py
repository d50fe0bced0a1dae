"""`python -m rsna_bcd.bundle`: an ensemble -> the folders of an offline submission to Kaggle."""

if __name__ == "__main__":
    from rsna_bcd._stage import main  # not above: worker processes import this module, too

    main("bundle")
