"""Task logs on the Volume: shipped in immutable segments while a task runs, read back from anywhere."""
