"""Shape annotations that cost users nothing.

`jaxtyping` is a development dependency: under pytest its import hook checks every annotated shape. Where
it is absent, `Float[Tensor, "B C"]` simply means `Tensor`.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, UInt8
else:
    try:
        from jaxtyping import Bool, Float, Int, UInt8
    except ImportError:

        class _Shape:
            """Stands in for a jaxtyping dtype: subscripting gives back the array type."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Int = UInt8 = _Shape

__all__ = ["Bool", "Float", "Int", "Tensor", "UInt8"]
