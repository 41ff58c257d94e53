"""What runs in every Modal container: the entry module, the zygote, the container's identity."""
