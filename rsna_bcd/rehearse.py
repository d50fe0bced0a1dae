"""`python -m rsna_bcd.rehearse`: run a bundle's notebook as Kaggle would, without a network."""

from rsna_bcd._stage import stage

main = stage("rehearse")

if __name__ == "__main__":
    main()
