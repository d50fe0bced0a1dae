"""`python -m rsna_bcd.index`: the headers of a folder of DICOM files -> a table."""

if __name__ == "__main__":
    from rsna_bcd._stage import main  # not above: worker processes import this module, too

    main("index")
