"""What works on real pixels: the plain recipe, one factor changed at a time.

    python benchmarks/study.py --data data/rsna640 --weights tf_efficientnet_lite0.pth --fold 0

reads pictures in the competition's layout, makes the crops, trains each variant that is not there
yet (about 20 minutes each on one core at `--side 256`, twice that at 384), and prints all against
the plain recipe, with intervals by patient. It can be stopped at any moment: the same command goes
on. The best combination is one more variant: `--combine crop sampling ...`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from omegaconf import OmegaConf

from rsna_bcd._stage import CONF

PLAIN = "plain"
_BREAST = (
    "network=effnetv2_s_attention", "network.backbone=tf_efficientnet_lite0", "network.dropout=0.2",
    "network.drop_path_rate=null", "network.pooling=avg", "batch_size=8", "views.most=2",
)  # fmt: skip
_TWO_VIEWS = ("network=convnext_small_two_view", *_BREAST[1:])
VARIANTS: dict[str, tuple[str, ...]] = {  # what is asked most often first
    PLAIN: (),
    "crop": (),  # the breast alone, as many pixels
    "sampling": ("negatives_per_positive=1",),
    "heavy_augmentation": ("augment=heavy",),
    "attention": _BREAST,
    "gem": ("network.pooling=gem",),
    "ranking": ("loss=ranking",),
    "averaged_weights": ("ema.decay=0.99",),
    "longer": ("epochs=10",),
    "higher_rate": ("learning_rate=1e-3",),
    "lower_rate": ("learning_rate=1e-4",),
    "two_views": _TWO_VIEWS,
    "focal": ("loss=focal",),
    "mixup": ("mix.probability=0.5",),
    "mirrored_look": ("tta=hflip",),
    "light_augmentation": ("augment=light",),
    "max": ("network.pooling=max",),
    "doubtful_positives": ("loss.positive_target=0.9",),
}
_PLAIN_CROP, _BREAST_CROP = "full384", "h512_wide"


def crop(name: str, side: int) -> tuple[str, ...]:
    """The overrides for a crop with as many pixels as a square of `side`, or nearly."""
    own = OmegaConf.load(Path(CONF) / "crop" / f"{name}.yaml")
    height, width = (round(length * side / 384 / 8) * 8 for length in (own.height, own.width))
    size = f"crop.height={height}", f"crop.width={width}"
    return f"crop={name}", f"crop.name={name}_at{side}", *size


def run(stage: str, *overrides: str) -> None:
    """Run a stage to its end."""
    subprocess.run([sys.executable, "-m", f"rsna_bcd.{stage}", *overrides], check=True)


def main() -> None:
    """Prepare, train what is absent, compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("output/study"))
    parser.add_argument("--fold", type=int, nargs="+", default=[0])
    parser.add_argument("--side", type=int, default=384, help="of the square crop, in pixels")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--combine", nargs="+", default=[], choices=list(VARIANTS))
    parser.add_argument("--overrides", nargs="*", default=[], help="of train, for all variants")
    arguments = parser.parse_args()
    paths = f"paths.data={arguments.data}", f"paths.output={arguments.output}"
    variants = {name: VARIANTS[name] for name in arguments.only}
    if arguments.combine:
        together = [override for name in arguments.combine for override in VARIANTS[name]]
        variants["_and_".join(arguments.combine)] = tuple(together)
    crops = {name: crop(name, arguments.side) for name in (_PLAIN_CROP, _BREAST_CROP)}
    layout = "dataset.name=study", "source=image", "splits=[train]"
    for overrides in crops.values():
        run("prepare", *paths, *layout, *overrides)
    for fold in arguments.fold:  # a whole fold before the next: the table is of use early
        for name, overrides in variants.items():
            run(
                "train", *paths, "experiment=baseline", "dataset.name=study", f"name={name}",
                f"fold={fold}", f"checkpoint_path={arguments.weights}", "resume=true",
                *crops[_BREAST_CROP if "crop" in name.split("_and_") else _PLAIN_CROP],
                *overrides, *arguments.overrides,
            )  # fmt: skip
    run("compare", *paths, f"reference={PLAIN}", f"csv={arguments.output / 'study.csv'}")


if __name__ == "__main__":
    main()
