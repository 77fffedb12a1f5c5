"""Fused kernels for the Ad-Corre loss: `.gpu` in Triton, `.cpu` in Numba. Importing this package imports neither."""
