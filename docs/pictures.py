"""Draw pictures of the documentation from the demo: `python docs/pictures.py` after `make demo`."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.patches import Rectangle
from PIL import Image

from rsna_bcd.imaging.dicom import read_dicom
from rsna_bcd.preparation.crop import CropSettings, prepare_image

DATA = Path("output/demo/data")
# Machines with inverted pixels, a sigmoid window and a linear one; and the side of the breast.
MACHINES = {29: "L", 216: "L", 49: "R"}
CROP = CropSettings("docs", 512, 256, box="breast", margin=0.01, orient=True, fit="pad")


def dicom_to_crop(target: Path) -> None:
    """Stored pixels, pixels after the header's window, and the crop; one row per machine."""
    images = pd.read_csv(DATA / "train.csv", dtype={"patient_id": str, "image_id": str})
    mlo = images[(images["view"] == "MLO") & (images["implant"] == 0)]
    figure, axes = plt.subplots(
        len(MACHINES), 3, figsize=(8, 9.6), width_ratios=(1, 1, 0.62), layout="constrained"
    )
    for row, (machine, laterality) in zip(axes, MACHINES.items(), strict=True):
        chosen = (mlo["machine_id"] == machine) & (mlo["laterality"] == laterality)
        image = mlo[chosen].iloc[0]
        path = DATA / "train_images" / image.patient_id / f"{image.image_id}.dcm"
        mammogram, prepared = read_dicom(path), prepare_image(path, CROP, "dicom")
        record = prepared.record
        row[0].imshow(mammogram.pixels, cmap="gray")
        row[0].set_title(f"stored: {record['photometric']}")
        row[1].imshow(mammogram.display.apply(mammogram.pixels), cmap="gray", vmin=0, vmax=1)
        row[1].set_title(f"shown: {record['window']}")
        left, top, width, height = (
            float(record[f"box_{side}"] or 0) for side in ("left", "top", "width", "height")
        )
        box = Rectangle((left, top), width - 1, height - 1, fill=False, edgecolor="#f2a900", lw=1.5)
        row[1].add_patch(box)
        row[2].imshow(prepared.pixels, cmap="gray", vmin=0, vmax=255)
        row[2].set_title("crop, turned" if record["flipped"] else "crop")
        row[0].set_ylabel(f"machine {machine}")
        for axis in row:
            axis.set(xticks=[], yticks=[])
            axis.title.set_fontsize(9)
    figure.savefig(target, dpi=100, pil_kwargs={"optimize": True})


def contact_sheet(target: Path) -> None:
    """The first four lines of the contact sheet that `prepare` draws."""
    sheet = Image.open(DATA.parent / "prepared" / "rsna" / "demo" / "train_contact_sheet.png")
    upper = sheet.convert("RGB").crop((0, 0, sheet.width, 1325))
    # Fewer bytes; the frequent greys do not push out the few colours.
    upper.quantize(256, Image.Quantize.MAXCOVERAGE).save(target, optimize=True)


if __name__ == "__main__":
    docs = Path(__file__).parent
    dicom_to_crop(docs / "dicom_to_crop.png")
    contact_sheet(docs / "contact_sheet.png")
