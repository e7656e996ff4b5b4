"""CPU inference: a compiler for convolutional nets, and the service that runs them.

net = hyper_inference.compile(model, (1, 1, 20, 256, 256))
output = net(patch)
"""

from hyper_inference.compiler.compile import Compiled
from hyper_inference.compiler.compile import compile_net as compile  # noqa: A004  (the public name)
from hyper_inference.errors import InvalidModelError, ShapeError, UnsupportedOp

__all__ = ["Compiled", "InvalidModelError", "ShapeError", "UnsupportedOp", "compile"]
