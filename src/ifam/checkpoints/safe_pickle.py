"""Checkpoints of strangers: files of `torch.save` are read without running code, and refused where they hold any."""

import pickle
import re
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ifam.errors import IfamError, first_line
from ifam.io import foreign_content


def read_pickle(path: Path) -> Any:
    """The content of a file of `torch.save` with tensors and plain Python values; no code in it is run."""
    if foreign := foreign_content(path):
        raise _invalid_checkpoint(path, foreign)
    if is_compressed(path):
        raise _invalid_checkpoint(path, "its content is compressed, which torch.save never does")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_numpy_scalars()):
            # torch warns of files that it did not write; those are refused below anyway.
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            # torch's own message recommends to run the file's code.
            raise IfamError(
                f"{path} is not a valid checkpoint of torch.save: it is damaged, or a pickle that may contain code, "
                f"which is not run; a file that torch.save or safetensors wrote is expected."
            ) from error
        raise IfamError(
            f"{path} contains code ({code[1]}), which is not run; only tensors and plain values are read. "
            f"If you trust the file, load its `model_state` with torch yourself and save it with "
            f"safetensors."
        ) from error
    # A file of any other kind can raise anything.
    except Exception as error:
        known = isinstance(error, OSError | RuntimeError | EOFError)
        raise _invalid_checkpoint(path, first_line(error) if known else "it is damaged or of another kind") from error


def is_compressed(path: Path) -> bool:
    """Whether a file of the layout of torch.save contains compressed records, of which a few bytes may become many."""
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist())
    return False


def _invalid_checkpoint(path: Path, reason: str) -> IfamError:
    return IfamError(
        f"{path} is not a valid checkpoint ({reason}); a file that torch.save or safetensors wrote is expected."
    )


def _numpy_scalars() -> list[Any]:
    """Globals in pickles of numpy scalars, which trainers save with the weights; they are safe."""
    scalar = np.float64(0).__reduce__()[0]
    # numpy 1 and 2 have two names for the same function.
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [np.dtype, *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}, *names]
