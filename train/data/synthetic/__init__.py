"""Procedurally drawn faces, and the dataset made of them."""
