"""`python -m rsna_bcd.predict`: predict any mammograms, with a picture of each study."""

from rsna_bcd._stage import stage

main = stage("predict")

if __name__ == "__main__":
    main()
