"""The fuzzer runs, and finds nothing in a few seconds."""

import pytest

from tools import fuzz


@pytest.mark.slow
def test_damaged_files_are_refused_in_a_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        fuzz.main(["--minutes", "0.05", "--seed", "1", "--out", str(tmp_path)])
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("executions, 0 faults")
