"""Plan -> LLVM IR -> machine code: one kernel family a file."""
