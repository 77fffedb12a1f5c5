"""Fused kernels for the Ad-Corre loss: `adcorre_kernels.gpu` in Triton. Importing this package imports no kernels."""
