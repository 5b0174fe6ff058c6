"""`ifam report`."""

from pathlib import Path


def report(results: list[str], out: Path = Path("report.html"), overwrite: bool = False) -> None:
    """Write one self-contained page for any number of results.

    Args:
        results: Files written by audit, compare, evaluate, train or demo, or folders that contain them.
        out: File of the page.
        overwrite: Replace any existing file; otherwise only a page for the same results is replaced.
    """
    from ifam.report.results import write_report

    print(f"Open {write_report(results, out, overwrite=overwrite)} to look.")
