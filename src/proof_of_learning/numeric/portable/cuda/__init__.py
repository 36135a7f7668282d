"""The engine of portable arithmetic for CUDA: Triton kernels with the plain engine's bits. PyTorch for CUDA brings ``triton``."""
