"""How many tokens a picture in a prompt costs at most on OpenAI's models.

Source: https://developers.openai.com/api/docs/guides/images-vision, "Model sizing behavior" and "Calculating costs".
Where a picture is made smaller, its sides are rounded in ways that are not told: none gives more than is counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tokenmeter.call import Picture

_SQUARE, _SHORTER, _TILE, _PATCH = 2_048, 768, 512, 32
_MOST_TILES = 8  # 768 by 2,048
#: The dearest factor of those that are listed, in hundredths, for models of which none is.
_DEAREST = 246
_LOW = 256  # patches of 512 by 512, to which smaller ones may be enlarged


def count_tiles(base: int, each: int) -> Callable[[Picture], int]:
    """The rule of models that see squares of 512 pixels: `base` tokens a picture, and `each` of them."""

    def count(picture: Picture) -> int:
        if picture.detail == "low":
            return base
        long, short = max(picture.width, picture.height), min(picture.width, picture.height)
        if not short:
            return base + each * _MOST_TILES
        # What both sides are multiplied by, as a fraction: fits into the square, then the shorter side to its most.
        above, below = (_SQUARE, long) if long > _SQUARE else (1, 1)
        if short * above > _SHORTER * below:
            above, below = _SHORTER, short
        tiles = [-(-side * above // (below * _TILE)) for side in (long, short)]
        return base + each * min(tiles[0] * tiles[1], _MOST_TILES)

    return count


def count_patches(hundredths: int = _DEAREST, /, **budgets: int | None) -> Callable[[Picture], int | None]:
    """The rule of models that see patches of 32 pixels.

    Args:
        hundredths: Of a token, for each.
        budgets: Detail -> most patches, for those but `low`; None: as many as the picture has. `auto` stands for any
            that is not named.
    """
    return lambda picture: _count(picture, hundredths, budgets)


def _count(picture: Picture, hundredths: int, budgets: Mapping[str, int | None]) -> int | None:
    detail = picture.detail or "auto"
    patches = -(-picture.width // _PATCH) * -(-picture.height // _PATCH) or None
    most = _LOW if detail == "low" and "original" in budgets else budgets.get(detail, budgets["auto"])
    if patches is None or (most is not None and patches > most):
        patches = most
    if detail == "low":  # older models were seen to take it for `high`
        patches = max(patches or 0, _LOW)
    return None if patches is None else -(-patches * hundredths // 100)
