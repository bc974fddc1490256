"""Kernels: reference (plain PyTorch, what is right), native (C++ and CUDA libraries)."""
