"""`python -m rsna_bcd.compare`: all runs by score, or some of them on the same breasts."""

if __name__ == "__main__":
    from rsna_bcd._stage import main  # not above: worker processes import this module, too

    main("compare")
