"""`python -m rsna_bcd.synthesize`: a synthetic competition, in the layout of Kaggle's folder."""

from rsna_bcd._stage import stage

main = stage("synthesize")

if __name__ == "__main__":
    main()
