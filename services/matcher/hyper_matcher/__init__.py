"""Template matching and alignment of serial sections."""
