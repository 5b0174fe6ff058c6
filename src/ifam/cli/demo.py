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
    """Demo, offline: train a plain ViT and iFAM on synthetic birds, evaluate both, and write a report.

    Run again, the command continues where it stopped; it is `ifam compare` with a fixed recipe.

    Args:
        out: Folder for `report.html`, `compare.json` and the models.
        seed: First seed, of data and training.
        seeds: Number of seeds, counted up from the first.
        quick: A tenth of the images and one epoch, only to check that everything runs.
        threads: CPU threads; by default all cores.
        overwrite: Repeat runs in `out` with other settings.
    """
    from ifam.experiments.compare import TABLE
    from ifam.experiments.demo import demo_comparison, run_demo
    from ifam.report.comparisons import print_comparison
    from ifam.report.results import write_report

    result = run_demo(demo_comparison(seed, seeds, quick), out, threads=threads, overwrite=overwrite)
    try:
        print_comparison(result)
    finally:
        page = write_report([out / TABLE], out / "report.html", overwrite=True)
    print(f"Open {page} to look; the figures are in {out / TABLE}, the models in {out / 'models'}.")
