"""Errors of the compiler: all are InvalidArgumentError, so that a service passes them on."""

from __future__ import annotations

from hyper.errors import InvalidArgumentError


class InvalidModelError(InvalidArgumentError):
    """A model file that cannot be read, or whose graph makes no sense."""

    default_reason = "INVALID_MODEL"


class UnsupportedOp(InvalidModelError):  # noqa: N818  (a name of the public API)
    """An operation that the compiler does not cover; names the op and the node.

    Args:
        op: the operation as its source calls it ("Softmax", "aten.softmax.int").
        node: the node's name in the source.
        why: what exactly is not covered, if the op is in part.
    """

    def __init__(self, op: str, node: str, why: str = "") -> None:
        detail = f": {why}" if why else ""
        super().__init__(
            f"op {op[:80]!r} (node {node[:80]!r}) is not covered by the compiler{detail}; replace "
            "it in the net, or run this net elsewhere",
            metadata={"op": op[:80], "node": node[:80]},
        )
        self.op = op
        self.node = node


class ShapeError(InvalidArgumentError):
    """Shapes that do not fit each other, or that are too large."""

    default_reason = "SHAPE_MISMATCH"
