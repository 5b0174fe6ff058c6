"""Any vision transformer as tokens, whole or in part: the only package that knows timm."""
