"""Windows: rectangles of patches that both stages see alone, as bands of columns or blocks (arXiv 2110.07719)."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from ifam._typing import Bool, Float, Int, Tensor
from ifam.backbones.backbone import Backbone
from ifam.errors import IfamError
from ifam.ranges import COUNT

WindowKind = Literal["columns", "blocks"]


@dataclass(frozen=True)
class Windows:
    """A rectangle of patches for each image, all of one size; it lies in the grid and never wraps around its edges.

    Attributes:
        top: First row of each.
        left: First column of each.
        shape: Rows and columns.
        grid: Rows and columns of all patches of an image.
    """

    top: Int[Tensor, " B"]
    left: Int[Tensor, " B"]
    shape: tuple[int, int]
    grid: tuple[int, int]

    def __len__(self) -> int:
        return len(self.top)

    def __getitem__(self, rows: slice) -> "Windows":
        return Windows(self.top[rows], self.left[rows], self.shape, self.grid)

    def expand(self, batch: int) -> "Windows":
        """The one window for each of so many images."""
        return Windows(self.top.expand(batch), self.left.expand(batch), self.shape, self.grid)

    def to(self, device: torch.device) -> "Windows":
        """The same windows on another device."""
        return Windows(self.top.to(device), self.left.to(device), self.shape, self.grid)

    @property
    def patches(self) -> Int[Tensor, "B N"]:
        """Index of each patch in the grid, in row-major order."""
        rows, columns = self._places(self.grid)
        return (rows * self.grid[1] + columns).flatten(1)

    @property
    def visible(self) -> Bool[Tensor, "B P"]:
        """True for the patches of the window."""
        inside = torch.ones(len(self.top), *self.shape, dtype=torch.bool, device=self.top.device)
        return self.paste(inside, self.grid).flatten(1)

    def cut(self, values: Float[Tensor, "B N R C"]) -> Float[Tensor, "B N R2 C2"]:
        """The part of images or maps, on any multiple of the grid, that lies in the window."""
        rows, columns = self._places((values.shape[2], values.shape[3]))
        image = torch.arange(len(values), device=values.device)[:, None, None]
        return values[image, :, rows, columns].movedim(3, 1)

    def paste(self, values: Tensor, size: tuple[int, int]) -> Tensor:
        """Values [B, R2, C2] of the window in their place among zeros.

        Args:
            values: Values of patches, or of cells of them.
            size: Rows and columns of the result, a multiple of the grid.

        Returns:
            Values [B, R, C].
        """
        rows, columns = self._places(size)
        image = torch.arange(len(values), device=values.device)[:, None, None]
        return values.new_zeros(len(values), *size).index_put((image, rows, columns), values)

    def _places(self, size: tuple[int, int]) -> tuple[Int[Tensor, "B R 1"], Int[Tensor, "B 1 C"]]:
        """Rows and columns of the window in maps of another size."""
        down, across = size[0] // self.grid[0], size[1] // self.grid[1]
        rows = self.top[:, None] * down + torch.arange(self.shape[0] * down, device=self.top.device)
        columns = self.left[:, None] * across + torch.arange(self.shape[1] * across, device=self.top.device)
        return rows[:, :, None], columns[:, None]


def widest(kind: WindowKind, grid: tuple[int, int]) -> int:
    """Width of the largest window in a grid of patches: all columns, or the largest square."""
    return grid[1] if kind == "columns" else min(grid)


def window_shape(kind: WindowKind, width: int, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a window: a band of columns of full height, or a square block.

    Raises:
        IfamError: There is no such kind, or the width is not positive, or larger than the grid.
    """
    if kind not in get_args(WindowKind):
        raise IfamError(f"kind is {kind!r}, but 'columns' or 'blocks' is expected.")
    if width not in COUNT or width > widest(kind, grid):
        raise IfamError(
            f"The windows are {width} patches wide, but 1 to {widest(kind, grid)} are expected: the model divides its "
            f"images into {grid[0]} x {grid[1]} patches."
        )
    return (grid[0], width) if kind == "columns" else (width, width)


def all_windows(kind: WindowKind, width: int, grid: tuple[int, int]) -> Windows:
    """Every window of a size: `columns - width + 1` bands from left to right, or as many blocks in each direction."""
    height, width = window_shape(kind, width, grid)
    places = torch.cartesian_prod(torch.arange(grid[0] - height + 1), torch.arange(grid[1] - width + 1))
    return Windows(places[:, 0], places[:, 1], (height, width), grid)


def window_at(position: Float[Tensor, "B 2"], kind: WindowKind, width: int, grid: tuple[int, int]) -> Windows:
    """A window for each image.

    Args:
        position: Where between the first and the last row and column it begins, from 0 to below 1.
        kind: Bands or blocks.
        width: Their width in patches.
        grid: Rows and columns of patches.
    """
    shape = window_shape(kind, width, grid)
    places = position.new_tensor([whole - part + 1 for whole, part in zip(grid, shape, strict=True)])
    top, left = (position * places).long().minimum(places.long() - 1).unbind(dim=1)
    return Windows(top, left, shape, grid)


def shared_grid(method: str, *stages: Backbone) -> tuple[int, int]:
    """Rows and columns of the patches of all stages, in which no pixel outside of a window matters.

    Raises:
        IfamError: A stage resizes the images, which mixes pixels across the edge of a window, or has other patches.
    """
    if any(one.input_size != one.image_size for one in stages):
        raise IfamError(
            f"This {method} has a selector_image_size of its own, and resizing mixes pixels across the edges of "
            f"windows; train one without it."
        )
    if len({one.grid for one in stages}) > 1:
        grids = " and ".join(f"{rows} x {columns}" for rows, columns in (one.grid for one in stages))
        raise IfamError(
            f"The stages of this {method} have {grids} patches, but windows need the same ones in both; train one "
            f"whose backbones have patches of one size."
        )
    return stages[0].grid
