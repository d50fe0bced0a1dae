"""`python -m rsna_bcd.ensemble`: out-of-fold predictions -> a blend and its threshold."""

from rsna_bcd._stage import stage

main = stage("ensemble")

if __name__ == "__main__":
    main()
