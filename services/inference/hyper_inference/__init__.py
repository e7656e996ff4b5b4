"""CPU inference: a compiler for convolutional nets, and the service that runs them."""
