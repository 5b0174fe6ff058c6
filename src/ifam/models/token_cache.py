"""Patch tokens of a frozen selector, computed once for each image and kept in memory or on disk.

Tokens are found by a hash of the pixels that the selector sees, in a folder named after a hash of its weights and
settings. So tokens of a changed file, of other weights or of another preprocessing are never used. Files are written
under a temporary name and renamed, and only added: several runs may share a folder.
"""

import hashlib
import logging
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path
from types import FunctionType
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from torch import nn

from ifam._typing import Float, Tensor
from ifam.backbones.backbone import Backbone
from ifam.distributed import first_process
from ifam.errors import IfamError
from ifam.io import replacing
from ifam.model_files import weights_digest
from ifam.models.precision import is_half

logger = logging.getLogger(__name__)

# Name of the folder beside the folders of runs.
TOKENS = "tokens"
# Attributes of layers that change no answer.
_MODES = ("training", "grad_checkpointing")
# Bytes that are computed before they are written.
_BUFFER = 1 << 27
# Bytes of disk that stay free.
_RESERVE = 1 << 30


@dataclass(frozen=True)
class Place:
    """Where tokens are kept, and how many.

    Attributes:
        folder: Folder of the files, with a folder for each backbone; None to keep tokens in memory.
        images: Images whose tokens are kept; further ones are computed each time.
    """

    folder: Path | None
    images: int


class TokenCache:
    """The patch tokens of a frozen backbone, which are computed for images that it has not processed before.

    Within autocast, tokens are kept in float16, which is more exact than the bfloat16 that they were computed in;
    otherwise in float32. Their first use has the kept values too, so that a training which finds them is the same.

    Args:
        backbone: The frozen transformer, in its final place and precision.
        place: Where tokens are kept.
        half: Whether the backbone runs within autocast.

    Attributes:
        computed: Images whose tokens were computed.
        found: Images whose tokens were found.
    """

    def __init__(self, backbone: Backbone, place: Place, half: bool = False) -> None:
        self.backbone, self.half, self.room = backbone, half, place.images
        self.computed = self.found = 0
        tokens = (backbone.grid[0] * backbone.grid[1], backbone.width)
        self.record = np.dtype(
            [("digest", "u1", (16,)), ("checksum", "<u4"), ("tokens", "<f2" if half else "<f4", tokens)]
        )
        self.folder = None if place.folder is None else place.folder / backbone_key(backbone)
        # The record of each image, by the hash of its pixels; in a memory-mapped file or in memory.
        self.records: dict[bytes, np.void] = {}
        self.fresh: list[np.ndarray] = []
        self.files: set[Path] = set()
        self._scan()

    def __deepcopy__(self, memo: Any) -> "TokenCache":
        # Averages of weights copy the model; the tokens of a frozen backbone stay the same.
        return self

    @property
    def _kind(self) -> str:
        """Beginning of the names of files."""
        return "float16" if self.half else "float32"

    @property
    def bytes_per_image(self) -> int:
        """Bytes that the tokens of an image take."""
        return self.record.itemsize

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Float[Tensor, "B P D"]:
        """Patch tokens of images [B, 3, S, S], in float32."""
        pixels = images.detach().cpu().float().contiguous().numpy()
        digests = [hashlib.blake2b(image, digest_size=16).digest() for image in pixels]
        kept = self._find(digests)
        if len(kept) < len(set(digests)):
            # Another run may have computed them meanwhile.
            self._scan()
            kept |= self._find([digest for digest in digests if digest not in kept])
        first = {digest: index for index, digest in reversed(list(enumerate(digests))) if digest not in kept}
        missing = sorted(first.values())
        if missing:
            tokens = self.backbone(images[missing], queries="patches").float()
            kept |= {digests[i]: self._add(digests[i], row) for i, row in zip(missing, tokens, strict=True)}
            # All images of a batch or none: computed again with fewer others, tokens might differ in the last bit.
            if len(self.fresh) * self.bytes_per_image >= _BUFFER:
                self.flush()
        self.computed, self.found = self.computed + len(missing), self.found + len(images) - len(missing)
        return torch.stack([kept[digest].to(images.device) for digest in digests])

    def _find(self, digests: list[bytes]) -> dict[bytes, Tensor]:
        """The tokens of the images that are known, and undamaged."""
        kept = {}
        for digest in digests:
            record = self.records.get(digest)
            if record is None:
                continue
            # Read at once: a file that shrinks later would end the process.
            if _is_sound(record):
                kept[digest] = torch.from_numpy(record["tokens"].astype(np.float32))
            else:
                logger.warning("Kept tokens in %s are damaged; they are computed again.", self.folder)
                del self.records[digest]
        return kept

    def _add(self, digest: bytes, tokens: Tensor) -> Tensor:
        """Keep the tokens of an image, if there is room and the precision allows it; returns them as they are kept."""
        with np.errstate(over="ignore"):
            values = tokens.cpu().numpy().astype(self.record["tokens"].base)
        if not np.isfinite(values).all():
            return tokens
        if self.room > 0:
            self.room -= 1
            row = np.zeros(1, self.record)
            row["digest"], row["tokens"], row["checksum"] = np.frombuffer(digest, np.uint8), values, _checksum(values)
            self.records[digest] = row[0]
            self.fresh.append(row)
        return torch.from_numpy(values.astype(np.float32)).to(tokens.device)

    def flush(self) -> None:
        """Write the tokens that are not on disk yet; where that fails, they stay in memory and no more are kept."""
        if self.folder is None or not self.fresh:
            return
        path = self.folder / f"{self._kind}-{uuid4().hex}.npy"
        try:
            with replacing(path) as temporary:
                np.save(temporary, np.concatenate(self.fresh), allow_pickle=False)
        except IfamError as error:
            logger.warning("Tokens can no longer be kept (%s) Others are computed each time.", error)
            self.folder, self.room = None, 0
            return
        # From now on they are read from the file, so that their memory is freed.
        for row in self.fresh:
            del self.records[row["digest"].tobytes()]
        self.fresh = []
        self._load(path)

    def _scan(self) -> None:
        """Open the files that this or another run has written."""
        if self.folder is not None and self.folder.is_dir():
            for path in sorted(set(self.folder.glob(f"{self._kind}-*.npy")) - self.files):
                self._load(path)

    def _load(self, path: Path) -> None:
        """Open a file; a damaged one is removed, if that is permitted."""
        self.files.add(path)
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
            if rows.dtype != self.record or rows.ndim != 1:
                raise ValueError("it has other contents")
        except OSError as error:
            logger.warning("%s cannot be read (%s); its tokens are computed again.", path, error.strerror or error)
            return
        # NumPy parses headers as Python code: a flipped bit raises SyntaxError, TokenError, OverflowError, ...
        except Exception as error:
            logger.warning("%s is damaged (%s); its tokens are computed again.", path, str(error).rstrip("."))
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return
        for row in rows:
            # Of an image that was computed again, the first record is damaged.
            digest = row["digest"].tobytes()
            if digest not in self.records or not _is_sound(self.records[digest]):
                self.records[digest] = row


def backbone_key(backbone: Backbone) -> str:
    """A hash of all that tokens depend on, besides pixels and precision: the weights, and what is done with them."""
    settings = (backbone.grid, backbone.image_size, backbone.input_affine)
    layers = [(name, type(module).__qualname__, _constants(module)) for name, module in backbone.vit.named_modules()]
    return hashlib.sha256(f"{weights_digest(backbone.state_dict())} {settings} {layers}".encode()).hexdigest()[:16]


def _constants(module: nn.Module) -> list[tuple[str, Any]]:
    """What a layer computes with besides its weights, such as its number of heads, epsilon or activation."""
    kept = []
    for name, value in sorted(vars(module).items()):
        values = value if isinstance(value, tuple) else (value,)
        if isinstance(value, FunctionType):
            kept.append((name, value.__qualname__))
        elif name not in _MODES and all(isinstance(one, bool | int | float | str) for one in values):
            kept.append((name, value))
    return kept


def _is_sound(record: np.void) -> bool:
    """Whether a record is there and undamaged; reading a mapped file beyond its end would end the process."""
    mapped = getattr(record.base, "base", None)
    if isinstance(mapped, mmap) and mapped.size() < len(mapped):
        return False
    return bool(_checksum(record["tokens"]) == record["checksum"])


def _checksum(tokens: np.ndarray) -> int:
    return zlib.crc32(tokens.tobytes())


@contextmanager
def cached_tokens(selector: nn.Module | None, place: Place | None, half: bool = False) -> Iterator[TokenCache | None]:
    """Compute the tokens of a frozen selector once for each image, within this block.

    Args:
        selector: An `ifam.models.selector.Selector` whose backbone does not change within the block. The first stage of
            another kind, or None, has no tokens to keep.
        place: Where tokens are kept; None to compute them each time.
        half: Whether the selector runs within autocast.
    """
    backbone: Any = getattr(selector, "backbone", None)
    keeps = hasattr(selector, "token_cache")
    if selector is None or place is None or not keeps or drops_inside(backbone):
        yield None
        return
    cache = _with_room(TokenCache(backbone, place, half), place)
    before: Any = selector.token_cache
    known = 0 if cache is None else len(cache.records)
    selector.token_cache = cache  # type: ignore[assignment]
    try:
        yield cache
    finally:
        selector.token_cache = before
        if cache is not None:
            cache.flush()
            if known and cache.computed and first_process():
                logger.info(
                    "Tokens of %d image%s with new or changed pixels were computed; %d were known.",
                    *(cache.computed, "s" * (cache.computed != 1), known),
                )


@contextmanager
def reused_tokens(
    model: nn.Module, folder: Path, images: int, precision: str = "32-true"
) -> Iterator[TokenCache | None]:
    """`cached_tokens` for a model whose selector was frozen in a run beside `folder`; else tokens are not kept.

    Args:
        model: A model of any method.
        folder: Folder of the tokens.
        images: Images that will be processed.
        precision: Precision of the answers, as `TrainConfig.precision`.
    """
    selector: Any = getattr(model, "selector", None)
    used = isinstance(getattr(selector, "backbone", None), Backbone) and folder.is_dir()
    place = Place(folder, images) if used and (folder / backbone_key(selector.backbone)).is_dir() else None
    half = is_half(precision, next(model.parameters()).device)
    with cached_tokens(selector, place, half) as cache:
        yield cache


def drops_inside(backbone: Backbone) -> bool:
    """Whether the backbone has dropout or stochastic depth, so that it draws random numbers in training."""
    rates = [getattr(module, name, 0.0) for module in backbone.modules() for name in ("p", "drop_prob")]
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def _with_room(cache: TokenCache, place: Place) -> TokenCache | None:
    """The cache, with a note on what it will take; where the disk is too small, nothing is added."""
    say = logger.info if first_process() else logger.debug
    size = place.images * cache.bytes_per_image
    if cache.folder is None:
        say("Tokens of the frozen selector are computed once and kept in memory (%s).", megabytes(size))
        return cache
    existing = next(path for path in (cache.folder, *cache.folder.parents) if path.is_dir())
    # Known images may be those of other data, so that all tokens may have to be written.
    free = shutil.disk_usage(existing).free - _RESERVE
    if free < size:
        logger.warning(
            "Tokens of the frozen selector are computed again in each epoch%s: keeping them in %s would take %s, but "
            "%s are free besides %s that are left to models and checkpoints.",
            *(", but for those that are known" if cache.records else "", cache.folder.parent, megabytes(size)),
            *(f"{max(0, free) // 10**6:,} MB", megabytes(_RESERVE)),
        )
        cache.room = 0
        return cache if cache.records else None
    say(
        "Tokens of the frozen selector are computed once and kept in %s (at most %s; %d images are known).",
        *(cache.folder.parent, megabytes(size), len(cache.records)),
    )
    others = [path for path in cache.folder.parent.glob("*/*.npy") if path.parent != cache.folder]
    if others:
        say(
            "%s of %s are of other weights, settings or precision and are not used; remove what is no longer needed.",
            *(megabytes(sum(path.stat().st_size for path in others)), cache.folder.parent),
        )
    return cache


def megabytes(size: int) -> str:
    """A size for messages."""
    return f"{max(1, round(size / 1e6)):,} MB"
