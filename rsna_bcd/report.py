"""`python -m rsna_bcd.report`: out-of-fold predictions to one page, and to a model card."""

if __name__ == "__main__":
    from rsna_bcd._stage import main  # not above: worker processes import this module, too

    main("report")
