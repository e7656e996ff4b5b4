"""Frontend -> graph -> passes -> memory plan -> kernels -> one function; see `compile.py`."""
