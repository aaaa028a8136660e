"""The C core: kernels that code, and the library they are in. README.md has the map."""
