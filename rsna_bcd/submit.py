"""`python -m rsna_bcd.submit`: test images + `ensemble.json` -> `submission.csv`."""

if __name__ == "__main__":
    from rsna_bcd._stage import main  # not above: worker processes import this module, too

    main("submit")
