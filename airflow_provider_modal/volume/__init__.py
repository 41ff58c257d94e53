"""What lies on the environment's Volume, and how it is read and written safely."""
