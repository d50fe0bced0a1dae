"""`python -m rsna_bcd.rehearse`: run a bundle's notebook as Kaggle would, without a network."""

if __name__ == "__main__":
    from rsna_bcd._stage import main  # not above: worker processes import this module, too

    main("rehearse")
