"""`python -m rsna_bcd.report`: out-of-fold predictions to one page, and to a model card."""

from rsna_bcd._stage import stage

main = stage("report")

if __name__ == "__main__":
    main()
