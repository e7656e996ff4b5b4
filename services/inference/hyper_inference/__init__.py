"""CPU inference: a compiler for convolutional nets, and the service that runs them.

net = hyper_inference.compile(model, (1, 1, 20, 256, 256))
output = net(patch)
"""

from hyper_inference.compiler.compile import Compiled
from hyper_inference.compiler.fallback import TorchNet
from hyper_inference.compiler.fallback import (
    compile_or_fall_back as compile,  # noqa: A004  (the public name)
)
from hyper_inference.errors import InvalidModelError, ShapeError, UnsupportedOp

__all__ = ["Compiled", "InvalidModelError", "ShapeError", "TorchNet", "UnsupportedOp", "compile"]
