"""`ifam demo`."""

from pathlib import Path


def demo(
    out: Path = Path("demo"),
    seed: int = 0,
    seeds: int = 1,
    quick: bool = False,
    threads: int | None = None,
    overwrite: bool = False,
) -> None:
    """See it work, offline: train a plain ViT and this model, judge both, and write a report.

    Args:
        out: Folder for `report.html`, `results.json` and the model.
        seed: First seed, of data and training.
        seeds: How many seeds, counted up from the first.
        quick: A tenth of the images and one epoch: shows that everything runs, and nothing else.
        threads: CPU threads; all cores where none is given.
        overwrite: Replace what is in `out`; without that, only a demo of the same seeds and size.
    """
    from ifam.experiments.demo import print_demo, run_demo

    results = run_demo(out, seed=seed, seeds=seeds, quick=quick, threads=threads, overwrite=overwrite)
    print_demo(results["runs"])
    print(
        f"Open {out / 'report.html'} to look; the figures are in {out / 'results.json'}, the model in {out / 'model'}."
    )
