"""`python -m rsna_bcd.evaluate`: a submission against the true labels, and a plain baseline."""

from rsna_bcd._stage import stage

main = stage("evaluate")

if __name__ == "__main__":
    main()
