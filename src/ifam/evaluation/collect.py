"""Runs a model on a split and collects one row per image.

Process i of n takes the batches i, i + n, i + 2 n, ...; all processes return all rows, in the order of the split.
Figures are computed from the rows, so they do not depend on the number of processes: batches are the same, and so is
each answer to the last bit, with the same number of threads. Other batch sizes may change that bit.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader

from ifam._typing import Bool, Tensor
from ifam.data import Benchmark, TransformedDataset, collate
from ifam.distributed import ended_together, objects_of_processes, rank_and_world_size
from ifam.errors import IfamError
from ifam.evaluation.part_quality import Annotations, annotations, part_rows
from ifam.interruption import follow_parent
from ifam.models.base import Classifier, device_of, evaluating, finite_logits
from ifam.models.interventions import Intervention, UseMask
from ifam.models.masking import enlarge, patch_mask
from ifam.models.precision import computed_in
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
    precision: str = "32-true",
    label: str = "evaluating",
) -> list[Rows]:
    """Run a model on every image of a split, once with each list of interventions.

    Args:
        model: An `IFAM` or a baseline. Its mode is restored afterwards.
        benchmark: The data set.
        split: Which of its splits.
        variants: Lists of interventions; the selector runs once for all of them.
        true_masks: Show the predictor the patches of the true mask instead of the selector's, before interventions.
        batch_size: Images at a time.
        workers: Processes that load images.
        precision: As `TrainConfig.precision`; 32 bits where the device has no use for fewer.
        label: Text of the progress bar.

    Returns:
        Rows for each of the variants.

    Raises:
        IfamError: The split does not exist, the model does not support an intervention, or a true mask is missing.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise IfamError(f"batch_size is {batch_size!r}, but a whole number of at least 1 is needed.")
    model.check_interventions(true_masks or any(variants))
    examples = TransformedDataset(benchmark.split(split), model.image_size, model.normalization)
    rank, world = rank_and_world_size()
    batches = torch.arange(len(examples)).split(batch_size)[rank::world]
    annotated = (len(benchmark.keypoint_names), len(benchmark.part_names))
    collate_fn = partial(_collate, annotated=annotated)
    sampler = [batch.tolist() for batch in batches]
    settings: dict[str, Any] = {"num_workers": workers, "collate_fn": collate_fn, "worker_init_fn": follow_parent}
    loader = DataLoader(examples, batch_sampler=sampler, **settings)
    collected: list[list[Rows]] = [[] for _ in variants]
    device = device_of(model)
    with ended_together(), evaluating(model), ProgressBar(disable=rank > 0) as bar:
        task = bar.add_task(label, total=sum(map(len, batches)))
        for index, (batch, known, parts) in zip(batches, loader, strict=True):
            batch = batch.to(device)
            given = batch.given_masks is not None or bool(known.all())
            if (true_masks or model.needs_masks) and not given:
                raise IfamError(
                    f"{benchmark.name} has no mask for image {int(index[~known][0])} of its split {split!r}; "
                    f"provide one for each image, or use a selector's mask."
                )
            with computed_in(precision, device):
                outputs = list(_outputs(model, batch, variants, true_masks))
            for rows, out, changes in zip(collected, outputs, variants, strict=True):
                rows.append({"index": index, **_rows(benchmark, batch, known, out, model.masks_input)})
                if out.selection is not None and not (true_masks or changes):
                    rows[-1] |= part_rows(out.part_maps, parts, annotated[1], batch.masks, known)
            bar.advance(task, len(known))
        return [gather(rows, len(examples)) for rows in collected]


def _collate(
    examples: Sequence[Mapping[str, Any]], annotated: tuple[int, int]
) -> tuple[Batch, Bool[Tensor, " B"], Annotations]:
    """A batch, which of its masks are known, and its annotations of parts.

    Which figures an image counts for must not depend on the other images of its batch.

    Args:
        examples: Examples of `TransformedDataset`.
        annotated: Numbers of keypoints and of named regions.
    """
    known = torch.tensor([example["mask"] is not None for example in examples])
    size = examples[0]["image"].shape[-2:]
    filled = [{**e, "mask": torch.zeros(size) if e["mask"] is None else e["mask"]} for e in examples]
    return collate(filled), known, annotations(examples, *annotated)


def _outputs(
    model: Classifier, batch: Batch, variants: Sequence[Sequence[Intervention]], true_masks: bool
) -> Iterator[Output]:
    """The model's output for each variant."""
    if not any(variants) and not true_masks:
        out = model.predict_batch(batch)
        yield from (out for _ in variants)
        return
    selection = model.select(batch.images)
    if true_masks:
        masks = batch.masks_to_give
        assert masks is not None
        shown = masks if model.masks_pixels else patch_mask(masks, model.input_backbone.grid)
        selection = UseMask(shown)(selection)
    for interventions in variants:
        changed = selection
        for intervention in interventions:
            changed = intervention(changed)
        yield model.classify(batch.images, changed)


def _patches(batch: Batch, grid: tuple[int, int]) -> Bool[Tensor, "B H W"]:
    assert batch.masks is not None
    return patch_mask(batch.masks, grid)


def _rows(benchmark: Benchmark, batch: Batch, known: Tensor, out: Output, masks_input: bool) -> Rows:
    """Rows of a batch, on the CPU; visible fractions only for models that mask their input."""
    rows = {"label": batch.labels, "group": batch.groups_or_classes}
    rows |= _correctness(benchmark, batch, finite_logits(out.logits), "predictor")
    if out.mask is None:
        return {name: value.cpu() for name, value in rows.items()}
    truth = _patches(batch, (out.mask.shape[1], out.mask.shape[2]))
    known = known.to(truth.device)
    if out.predictor_logits is not None and out.selector_logits is not None:
        rows |= _correctness(benchmark, batch, out.selector_logits, "selector")
    if masks_input:
        rows |= {"visible": out.visible_fraction, "empty": out.empty}
    rows |= {
        "known": known,
        # Images without a true mask do not count.
        "intersection": (out.mask & truth).flatten(1).sum(dim=1) * known,
        "union": (out.mask | truth).flatten(1).sum(dim=1) * known,
    }
    if masks_input:
        assert batch.masks is not None
        shown = enlarge(out.mask, (batch.masks.shape[1], batch.masks.shape[2]))
        rows |= {
            "pixels.shown": shown.flatten(1).sum(dim=1) * known,
            "pixels.object": batch.masks.flatten(1).sum(dim=1) * known,
            "pixels.both": (shown & batch.masks).flatten(1).sum(dim=1) * known,
        }
    return {name: value.cpu() for name, value in rows.items()}


def _correctness(benchmark: Benchmark, batch: Batch, logits: Tensor, classifier: str) -> Rows:
    """Answers of one classifier, whether they are right by top 1 and top 5, and its score for the AUROC."""
    logits = logits.float()
    answers = benchmark.answers(logits)
    rows = {f"{classifier}.answer": answers, f"{classifier}.right": answers == batch.labels}
    competing = len(benchmark.logit_classes or benchmark.class_names)
    # Answers mapped from finer classes have no top 5.
    if competing >= 6 and logits.shape[1] == len(benchmark.class_names):
        best = benchmark.restrict(logits).topk(5, dim=1).indices
        rows[f"{classifier}.top5"] = (best == batch.labels[:, None]).any(dim=1)
    if logits.shape[1] == len(benchmark.class_names) == 2:
        # Ranks images like the probability, but is never rounded to 0 or 1.
        rows[f"{classifier}.score"] = logits[:, 1].double() - logits[:, 0].double()
    return rows


# ---------------------------------------------------------------------------------------- several processes


def gather(rows: Sequence[Rows], total: int) -> Rows:
    """The rows of all processes, in the order of the split.

    Args:
        rows: Rows of this process, batch by batch.
        total: Number of images.
    """
    # A process may have no image at all.
    local = {name: torch.cat([batch[name] for batch in rows]) for name in (rows[0] if rows else ())}
    shares: list[Rows] = [share for share in objects_of_processes(local) if share]
    joined = {name: torch.cat([share[name] for share in shares]) for name in shares[0]}
    order = joined["index"].argsort()
    assert torch.equal(joined["index"][order], torch.arange(total)), "an image is missing or was counted twice"
    return {name: values[order] for name, values in joined.items()}
