"""`python -m rsna_bcd.evaluate`: a submission against the true labels, and a plain baseline."""

if __name__ == "__main__":
    from rsna_bcd._stage import main  # not above: worker processes import this module, too

    main("evaluate")
