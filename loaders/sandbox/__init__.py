"""The sandbox: the kernel's walls around a process."""
