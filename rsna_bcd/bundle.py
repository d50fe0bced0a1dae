"""`python -m rsna_bcd.bundle`: an ensemble -> the folders of an offline submission to Kaggle."""

from rsna_bcd._stage import stage

main = stage("bundle")

if __name__ == "__main__":
    main()
