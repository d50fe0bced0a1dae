"""A tiny synthetic competition that all tests share."""

import os
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from rsna_bcd._stage import CONF

# Before torch is imported, also by stages in processes of their own: the threads of OpenMP wait by
# spinning, which makes tiny networks several times slower on a busy machine; and ranks that
# are forked from a process that has several wait for them for ever.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def competition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as Kaggle's: 16 training patients, 8 test patients, images of about 320 x 256.

    Read it, do not write to it. All machines of the phantom occur in the training part.
    """
    from rsna_bcd.stages.synthesize import synthesize  # deferred: it writes DICOM, which needs GDCM

    data = tmp_path_factory.mktemp("competition")
    with initialize_config_dir(CONF, version_base="1.3"):
        cfg = compose(
            "synthesize",
            [
                f"paths.data={data}",
                "workers=0",
                "size.train_patients=16",
                "size.test_patients=8",
                "size.prevalence=0.25",
                "appearance.pixel_mm=0.83",
            ],
        )
    synthesize(cfg)
    return data
