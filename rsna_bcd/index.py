"""`python -m rsna_bcd.index`: the headers of a folder of DICOM files -> a table."""

from rsna_bcd._stage import stage

main = stage("index")

if __name__ == "__main__":
    main()
