"""Which machines to have: offers, scores, policies. Pure: no I/O, no clock, no randomness."""
