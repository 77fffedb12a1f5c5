"""Fused kernels for the Ad-Corre loss: `.gpu` in Triton, `.cpu` under Numba. Importing this package imports neither."""
