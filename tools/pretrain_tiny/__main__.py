"""Pretrain the embedded backbone again: `python -m tools.pretrain_tiny --out tiny_vit.safetensors --steps 1800`."""

import json
import sys

from jsonargparse import auto_cli

from ifam.errors import IfamError
from tools.pretrain_tiny.pretraining import pretrain_tiny


def main(args: list[str] | None = None) -> None:
    """Pretrain, and print the record of the run."""
    try:
        record = auto_cli(pretrain_tiny, as_positional=False, args=args, prog="python -m tools.pretrain_tiny")
    except IfamError as error:
        sys.exit(str(error))
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
