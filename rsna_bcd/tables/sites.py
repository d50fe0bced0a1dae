"""The site at which each breast was imaged."""

import pandas as pd


def sites_of(images: pd.DataFrame) -> pd.Series:
    """The site of each breast of a table of images.

    Args:
        images: One row an image: `prediction_id`, and `site_id` where it is known.

    Returns:
        Strings indexed by `prediction_id`, in order of first appearance; `""` where no image of the
        breast has a site, or its images have several. Numbers are written as integers, also where
        a missing one beside them has turned their column into floats: `1`, not `1.0`.
    """
    if "site_id" not in images:
        return pd.Series("", index=images["prediction_id"].drop_duplicates(), dtype="string")
    site = images["site_id"].astype("string").str.replace(r"\.0+$", "", regex=True)
    by_breast = site.groupby(images["prediction_id"], sort=False)
    return by_breast.first().where(by_breast.nunique() == 1, "")
