"""What works on real pixels: the plain recipe, one factor changed at a time.

    python benchmarks/study.py --data data/rsna640 --weights tf_efficientnet_lite0.pth --fold 0

reads pictures in the competition's layout, makes the crops, trains each variant that is not there
yet (8 to 15 hours on two cores at 384 x 384; fewer with `--only`), and prints all against the plain
recipe, with intervals by patient. It can be stopped at any moment: the same command goes on. The
best combination is one more variant: `--combine crop sampling ...`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

PLAIN = "plain"
_BREAST = (
    "network=effnetv2_s_attention", "network.backbone=tf_efficientnet_lite0", "network.dropout=0.2",
    "network.drop_path_rate=null", "network.pooling=avg", "batch_size=8", "views.most=2",
)  # fmt: skip
VARIANTS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "crop": ("crop=h512_wide",),  # the breast alone, as many pixels
    "sampling": ("negatives_per_positive=1",),
    "doubtful_positives": ("loss.positive_target=0.9",),
    "focal": ("loss=focal",),
    "ranking": ("loss=ranking",),
    "light_augmentation": ("augment=light",),
    "heavy_augmentation": ("augment=heavy",),
    "gem": ("network.pooling=gem",),
    "max": ("network.pooling=max",),
    "lower_rate": ("learning_rate=1e-4",),
    "higher_rate": ("learning_rate=1e-3",),
    "longer": ("epochs=10",),
    "averaged_weights": ("ema.decay=0.99",),
    "mirrored_look": ("tta=hflip",),
    "mixup": ("mix.probability=0.5",),
    "attention": _BREAST,
    "two_views": (
        "network=convnext_small_two_view", "network.backbone=tf_efficientnet_lite0",
        "network.dropout=0.2", "network.drop_path_rate=null", "network.pooling=avg", "batch_size=8",
    ),
}  # fmt: skip


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
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--combine", nargs="+", default=[], choices=list(VARIANTS))
    parser.add_argument("--overrides", nargs="*", default=[], help="of train, for all variants")
    arguments = parser.parse_args()
    paths = f"paths.data={arguments.data}", f"paths.output={arguments.output}"
    variants = {name: VARIANTS[name] for name in arguments.only}
    if arguments.combine:
        together = [override for name in arguments.combine for override in VARIANTS[name]]
        variants["_and_".join(arguments.combine)] = tuple(together)
    for crop in ("full384", "h512_wide"):
        run(
            "prepare",
            *paths,
            f"crop={crop}",
            "dataset.name=study",
            "source=image",
            "splits=[train]",
        )
    for fold in arguments.fold:  # a whole fold before the next: the table is of use early
        for name, overrides in variants.items():
            run(
                "train", *paths, "experiment=baseline", "dataset.name=study", f"name={name}",
                f"fold={fold}", f"checkpoint_path={arguments.weights}", "resume=true",
                *overrides, *arguments.overrides,
            )  # fmt: skip
    run("compare", *paths, f"reference={PLAIN}", f"csv={arguments.output / 'study.csv'}")


if __name__ == "__main__":
    main()
