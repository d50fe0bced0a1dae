"""Where patches are placed: on what is salient, inside the image, beside each other."""

import pytest
import torch

from rsna_bcd.errors import InputError
from rsna_bcd.models.global_local import choose_patches, cut_patches


def overlaps(corners: torch.Tensor, patch: int) -> torch.Tensor:
    """Pixels that each pair of patches (K, 2) shares, (K, K) with zeros on the diagonal."""
    apart = (corners[:, None] - corners[None]).abs()
    shared = (patch - apart).clamp(min=0).prod(dim=-1)
    return shared.fill_diagonal_(0)


def test_the_most_salient_windows_are_taken_in_their_order() -> None:
    saliency = torch.zeros(1, 1, 8, 8)
    saliency[0, 0, 1, 5] = 0.9
    saliency[0, 0, 6, 2] = 0.5
    corners = choose_patches(saliency, 2, patch=32, size=(256, 256))[0]
    # A cell is 32 pixels: the window of one cell is the salient cell itself.
    assert corners.tolist() == [[32, 160], [192, 64]]


def test_it_is_the_sum_that_counts_not_the_largest_value() -> None:
    saliency = torch.zeros(1, 1, 8, 8)
    saliency[0, 0, 0, 0] = 0.9
    saliency[0, 0, 4:6, 4:6] = 0.3  # 1.2 together
    corners = choose_patches(saliency, 2, patch=64, size=(256, 256))[0]
    assert corners.tolist() == [[128, 128], [0, 0]]


def test_greedily_is_what_a_loop_by_hand_finds() -> None:
    generator = torch.Generator().manual_seed(0)
    saliency = torch.rand(1, 1, 9, 7, generator=generator)
    corners = choose_patches(saliency, 3, patch=30, size=(90, 70))[0]
    taken: list[tuple[int, int]] = []
    for _ in range(3):
        free = {
            (y, x): saliency[0, 0, y : y + 3, x : x + 3].sum().item()
            for y in range(7)
            for x in range(5)
            if all(abs(y - v) >= 3 or abs(x - u) >= 3 for v, u in taken)
        }
        taken.append(max(free, key=lambda place: free[place]))
    assert corners.tolist() == [[10 * y, 10 * x] for y, x in taken]


@pytest.mark.parametrize("size", [(256, 128), (250, 131), (97, 64)])
@pytest.mark.parametrize("patch", [64, 50, 33])
@pytest.mark.parametrize("cells", [(8, 4), (9, 5), (3, 2)])
def test_patches_lie_inside_the_image_and_share_nothing_while_there_is_room(
    size: tuple[int, int], patch: int, cells: tuple[int, int]
) -> None:
    saliency = torch.rand(20, 1, *cells)
    for corners in choose_patches(saliency, 5, patch, size):
        assert (corners >= 0).all()
        assert (corners + patch <= torch.tensor(size)).all()
        shared = overlaps(corners, patch)
        # Before any two patches share a pixel, no window of cells was free.
        window = [-(-patch * c // s) for c, s in zip(cells, size, strict=True)]
        free = [c // (2 * w - 1) for c, w in zip(cells, window, strict=True)]  # at worst
        room = min(5, max(1, free[0]) * max(1, free[1]))
        assert shared[:room, :room].max() == 0


def test_without_room_they_share_as_little_as_can_be() -> None:
    corners = choose_patches(torch.ones(1, 1, 4, 3), 3, patch=2, size=(4, 3))[0]
    assert corners[:2].tolist() == [[0, 0], [2, 0]]  # there is no third place on three columns
    assert overlaps(corners, 2)[2].max() == 2
    assert corners[2, 1] == 1


def test_a_patch_larger_than_the_image_is_refused() -> None:
    with pytest.raises(InputError, match=r"network\.patch=65 .* 128 x 64"):
        choose_patches(torch.rand(1, 1, 4, 2), 1, 65, (128, 64))


def test_patches_are_the_pixels_of_the_image() -> None:
    images = torch.rand(2, 1, 20, 16)
    corners = torch.tensor([[[0, 0], [12, 8]], [[3, 5], [7, 1]]])
    patches = cut_patches(images, corners, 8)
    assert patches.shape == (2, 2, 1, 8, 8)
    for b in range(2):
        for k, (y, x) in enumerate(corners[b].tolist()):
            assert torch.equal(patches[b, k], images[b, :, y : y + 8, x : x + 8])
