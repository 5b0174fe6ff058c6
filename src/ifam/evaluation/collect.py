"""What a model said about each image of a split: a row an image, whatever the batch size and number of processes.

Every process takes every n-th image, none of them twice, and all end up with all rows, in the order of the split.
Figures are made of the rows afterwards, so they are the same however the work was shared.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DataLoader, Subset

from ifam._typing import Bool, Tensor
from ifam.data import Benchmark, Prepared, collate
from ifam.distributed import rank_and_world_size
from ifam.errors import IfamError
from ifam.evaluation.part_quality import Annotations, annotations, part_rows
from ifam.models.base import Classifier, device_of, evaluating
from ifam.models.interventions import Intervention, UseMask
from ifam.models.masking import patch_mask
from ifam.progress import ProgressBar
from ifam.types import Batch, Output

# Columns of the rows, each a tensor [N].
Rows = dict[str, Tensor]


@torch.inference_mode()
def collect(
    model: Classifier,
    benchmark: Benchmark,
    split: str,
    variants: Sequence[Sequence[Intervention]],
    *,
    true_masks: bool = False,
    batch_size: int = 64,
    workers: int = 0,
    label: str = "evaluating",
) -> list[Rows]:
    """Show every image of a split to a model, once with each list of interventions.

    Args:
        model: An `IFAM` or a baseline. Left in the mode it was in.
        benchmark: The data set.
        split: Which of its splits.
        variants: Lists of interventions; the selector looks at each image once for all of them.
        true_masks: Show the predictor the patches of the true mask instead of the selector's, before interventions.
        batch_size: Images at a time.
        workers: Processes that load images.
        label: What the progress bar says.

    Returns:
        Rows for each of the variants.

    Raises:
        IfamError: There is no such split, an intervention does not suit the model, or a true mask is missing.
    """
    if batch_size < 1:
        raise IfamError(f"batch_size is {batch_size}, but at least 1 is needed.")
    model.check_interventions(true_masks or any(variants))
    examples = Prepared(benchmark.split(split), model.image_size, model.normalization)
    rank, world = rank_and_world_size()
    mine = range(rank, len(examples), world)
    annotated = (len(benchmark.keypoint_names), len(benchmark.part_names))
    join = partial(_collate, annotated=annotated)
    loader = DataLoader(Subset(examples, mine), batch_size=batch_size, num_workers=workers, collate_fn=join)
    found: list[list[Rows]] = [[] for _ in variants]
    device = device_of(model)
    done = 0
    with evaluating(model), ProgressBar(disable=rank > 0) as bar:
        task = bar.add_task(label, total=len(mine))
        for batch, known, parts in loader:
            indices = torch.tensor(mine[done : done + len(known)])
            batch, done = batch.to(device), done + len(known)
            if (true_masks or model.needs_masks) and not bool(known.all()):
                raise IfamError(
                    f"{benchmark.name} has no mask for image {int(indices[~known][0])} of its split {split!r}; "
                    f"give one for each image, or let a selector choose."
                )
            outputs = _outputs(model, batch, variants, true_masks)
            for rows, out, changes in zip(found, outputs, variants, strict=True):
                rows.append({"index": indices, **_rows(benchmark, batch, known, out, model.masks_input)})
                if out.selection is not None and not (true_masks or changes):
                    rows[-1] |= part_rows(out.part_maps, parts, annotated[1], batch.masks, known)
            bar.advance(task, len(known))
    return [gather(rows, len(examples)) for rows in found]


def _collate(
    examples: Sequence[Mapping[str, Any]], annotated: tuple[int, int]
) -> tuple[Batch, Bool[Tensor, " B"], Annotations]:
    """A batch, which of its masks are known, and its annotations of parts.

    Whether an image is judged must not depend on its neighbours.

    Args:
        examples: As `Prepared` gives them.
        annotated: Numbers of keypoints and of named regions.
    """
    known = torch.tensor([example["mask"] is not None for example in examples])
    size = examples[0]["image"].shape[-2:]
    filled = [{**e, "mask": torch.zeros(size) if e["mask"] is None else e["mask"]} for e in examples]
    return collate(filled), known, annotations(examples, *annotated)


def _outputs(
    model: Classifier, batch: Batch, variants: Sequence[Sequence[Intervention]], true_masks: bool
) -> Iterator[Output]:
    """The model's answer to each variant."""
    if not any(variants) and not true_masks:
        out = model.predict_batch(batch)
        yield from (out for _ in variants)
        return
    selection = model.select(batch.images)
    if true_masks:
        selection = UseMask(_patches(batch, model.input_backbone.grid))(selection)
    for interventions in variants:
        changed = selection
        for intervention in interventions:
            changed = intervention(changed)
        yield model.classify(batch.images, changed)


def _patches(batch: Batch, grid: tuple[int, int]) -> Bool[Tensor, "B H W"]:
    assert batch.masks is not None
    return patch_mask(batch.masks, grid)


def _rows(benchmark: Benchmark, batch: Batch, known: Tensor, out: Output, hides: bool) -> Rows:
    """Rows of a batch, on the CPU; what was visible only of models that hide the rest."""
    rows = {"label": batch.labels, "group": batch.groups_or_classes}
    rows |= _judge(benchmark, batch, out.logits, "predictor")
    if out.mask is None:
        return {name: value.cpu() for name, value in rows.items()}
    truth = _patches(batch, (out.mask.shape[1], out.mask.shape[2]))
    known = known.to(truth.device)
    if out.predictor_logits is not None and out.selector_logits is not None:
        rows |= _judge(benchmark, batch, out.selector_logits, "selector")
    if hides:
        rows |= {"visible": out.visible_fraction, "empty": out.empty}
    rows |= {
        "known": known,
        # Of images without a true mask, nothing counts.
        "intersection": (out.mask & truth).flatten(1).sum(dim=1) * known,
        "union": (out.mask | truth).flatten(1).sum(dim=1) * known,
    }
    return {name: value.cpu() for name, value in rows.items()}


def _judge(benchmark: Benchmark, batch: Batch, logits: Tensor, who: str) -> Rows:
    """Whether one classifier is right."""
    logits = logits.float()
    rows = {f"{who}.right": benchmark.answers(logits) == batch.labels}
    competing = len(benchmark.logit_classes or benchmark.class_names)
    # Answers that are translated from finer classes have no five best.
    if competing >= 6 and logits.shape[1] == len(benchmark.class_names):
        best = benchmark.restrict(logits).topk(5, dim=1).indices
        rows[f"{who}.top5"] = (best == batch.labels[:, None]).any(dim=1)
    if logits.shape[1] == len(benchmark.class_names) == 2:
        # As good as a probability for the order of images, and never rounded to 0 or 1.
        rows[f"{who}.score"] = logits[:, 1].double() - logits[:, 0].double()
    return rows


# ---------------------------------------------------------------------------------------- several processes


def gather(rows: Sequence[Rows], total: int) -> Rows:
    """The rows of all processes, in order.

    Args:
        rows: Those of this process, batch by batch.
        total: Images in all.
    """
    # A process may have no image at all.
    own = {name: torch.cat([batch[name] for batch in rows]) for name in (rows[0] if rows else ())}
    shares: list[Any] = [own]
    _, world = rank_and_world_size()
    if world > 1:
        shares = [None] * world
        distributed.all_gather_object(shares, own)
    shares = [share for share in shares if share]
    joined = {name: torch.cat([share[name] for share in shares]) for name in shares[0]}
    order = joined["index"].argsort()
    assert torch.equal(joined["index"][order], torch.arange(total)), "an image is missing or was counted twice"
    return {name: values[order] for name, values in joined.items()}
