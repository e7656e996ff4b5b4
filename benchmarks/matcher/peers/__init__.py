"""Peers of alignment, run by the interpreter of .venv-bench; each leaves triangles to be rendered.

A peer is a program: `VOLUME.npy OUT.npz`. Its last line of output is {"seconds", "cpu_seconds",
"peak_rss_mb"}; OUT holds for each section z the arrays `source_z` (n, 2), `placed_z` (n, 2) and
`triangles_z` (m, 3), (y, x) px: what the section's vertices are, and where they go.
"""
