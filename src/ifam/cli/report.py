"""`ifam report`."""

from pathlib import Path


def report(results: list[str], out: Path = Path("report.html"), overwrite: bool = False) -> None:
    """Put results on one page that opens without a network.

    Args:
        results: Files that audit, compare, evaluate, train or demo wrote, or folders that hold some.
        out: The page.
        overwrite: Replace whatever is there; without that, only a page on the same results.
    """
    from ifam.report.results import write_report

    print(f"Open {write_report(results, out, overwrite=overwrite)} to look.")
