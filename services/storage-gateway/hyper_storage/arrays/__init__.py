"""Arrays of a version: Zarr v3 metadata and layout."""
