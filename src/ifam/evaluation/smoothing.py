"""What a vote of windows proves: which regions of an image cannot change the answer (arXiv 2110.07719).

Each window of patches votes for a class, having seen nothing else. A change of the pixels in one region reaches the
windows that it touches, and no other vote: at most `width + size - 1` bands of columns for a region of `size` columns,
fewer at the edges, and at most the square of that blocks for `size` x `size` patches. The answer is the class of most
votes, of several the first. It is certain if it wins for every place of the region, whatever the touched windows say.
"""

import torch

from ifam._typing import Bool, Float, Int, Tensor
from ifam.models.base import Classifier
from ifam.models.windows import WindowKind, Windows, all_windows, widest

# The vote of a window in which nothing is visible.
ABSTAINED = -1
# Numbers in memory at once.
_CHUNK = 4_000_000


@torch.no_grad()
def window_vote(model: Classifier, images: Float[Tensor, "B 3 S1 S2"], windows: Windows, number: int) -> Tensor:
    """The class of each image by what one window shows of it [B], `ABSTAINED` where nothing in it is visible.

    Args:
        model: The model, in evaluation mode.
        images: Normalized images; pixels outside of the window may hold anything.
        windows: All windows.
        number: Which of them.
    """
    out = model.classify_windows(images, windows[number : number + 1].expand(len(images)))
    # Pixels that are no numbers are an attack, too, and the vote of those that they reach is lost.
    counts = out.logits.isfinite().all(dim=1)
    if out.mask is not None:
        counts &= ~out.empty
    return torch.where(counts, out.logits.argmax(dim=1), ABSTAINED).cpu()


def window_votes(model: Classifier, images: Float[Tensor, "B 3 S1 S2"], windows: Windows) -> Int[Tensor, "B V"]:
    """The vote of each window; see `window_vote`."""
    return torch.stack([window_vote(model, images, windows, number) for number in range(len(windows))], dim=1)


def count_votes(votes: Int[Tensor, "N V"], num_classes: int) -> Int[Tensor, "N C"]:
    """Votes for each class; windows that abstained count for none."""
    counts = votes.new_zeros(len(votes), num_classes + 1)
    return counts.scatter_add_(1, votes + 1, torch.ones_like(votes))[:, 1:]


def answers_of(votes: Int[Tensor, "N V"], num_classes: int) -> Int[Tensor, " N"]:
    """The class of most votes, of several the first."""
    return count_votes(votes, num_classes).argmax(dim=1)


def touched_windows(windows: Windows, regions: Windows) -> Bool[Tensor, "R V"]:
    """Which windows each place of a region touches.

    Args:
        windows: All windows.
        regions: All places of the region, which are rectangles of patches like the windows.
    """
    (first, last), (begin, end) = (
        (corners, corners + torch.tensor(one.shape))
        for one in (regions, windows)
        for corners in [torch.stack([one.top, one.left], dim=1).cpu()]
    )
    return ((begin < last[:, None]) & (first[:, None] < end)).all(dim=2)


def worst_leads(votes: Int[Tensor, "N V"], touched: Bool[Tensor, "R V"], num_classes: int) -> Int[Tensor, "N R"]:
    """By how many votes the answer wins at least, whatever the touched windows vote; below 0 it may lose.

    0 is a tie with a class that comes after the answer, which it wins.
    """
    chunk = max(1, _CHUNK // (len(touched) * (num_classes + votes.shape[1])))
    return torch.cat([_worst_leads(some, touched, num_classes) for some in votes.split(chunk)])


def _worst_leads(votes: Tensor, touched: Tensor, num_classes: int) -> Tensor:
    answers = answers_of(votes, num_classes)[:, None, None]
    ballots = torch.nn.functional.one_hot(votes + 1, num_classes + 1)[:, :, 1:].double()
    left = ((~touched).double() @ ballots).long()
    own = left.gather(2, answers.expand(-1, len(touched), 1))
    classes = torch.arange(num_classes)
    # An earlier class wins a tie, so it must be behind by one more.
    leads = own - left - touched.sum(dim=1)[:, None] - (classes < answers).long()
    return leads.masked_fill(classes == answers, votes.shape[1]).amin(dim=2)


def certified_sizes(votes: Int[Tensor, "N V"], kind: WindowKind, windows: Windows, num_classes: int) -> Tensor:
    """For each image, the size of the largest region that cannot change the answer, wherever it is; 0 for none.

    Args:
        votes: Vote of each window, `ABSTAINED` where there is none.
        kind: Kind of windows and regions.
        windows: The windows.
        num_classes: Classes C.

    Returns:
        Sizes [N] in patches.
    """
    sizes = torch.zeros(len(votes), dtype=torch.long)
    certain = torch.ones(len(votes), dtype=torch.bool)
    for size in range(1, widest(kind, windows.grid) + 1):
        # A larger region touches all that a smaller one inside of it does.
        leads = worst_leads(votes, touched_windows(windows, all_windows(kind, size, windows.grid)), num_classes)
        certain = certain & (leads >= 0).all(dim=1)
        if not certain.any():
            break
        sizes += certain
    return sizes


def patches_touched(pixels: int, patch: int) -> int:
    """The most patches in a row that so many adjacent pixels touch, wherever they begin.

    Args:
        pixels: Pixels, at least 1.
        patch: Pixels of a patch.
    """
    return -(-(pixels - 1) // patch) + 1


def pixels_covered(patches: int, patch: int) -> int:
    """The most adjacent pixels that touch no more than so many patches, wherever they begin; 0 for no patch."""
    return 0 if patches == 0 else (patches - 1) * patch + 1
