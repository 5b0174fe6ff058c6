"""`ifam report`."""

import time
from pathlib import Path


def report(results: list[str], out: Path = Path("report.html"), overwrite: bool = False, follow: bool = False) -> None:
    """Write one self-contained page for any number of results, and for runs that are not finished.

    Args:
        results: Files written by audit, compare, evaluate, train or demo, or folders that contain them, also while a
            training or a comparison runs.
        out: File of the page.
        overwrite: Replace any existing file; otherwise only a page for the same results is replaced.
        follow: Write the page again every ten seconds until all runs have ended; an open page reloads itself.
    """
    from ifam.report.results import unfinished_runs, write_report
    from ifam.run_files import RunStatus

    def written() -> bool:
        """Write the page; whether a run was still running just before."""
        running = any(run.running for run in unfinished_runs(results).values())
        write_report(results, out, overwrite=overwrite)
        return running

    running = written()
    print(f"Open {out} to look.", flush=True)
    while follow and running:
        time.sleep(RunStatus.interval)
        running = written()
