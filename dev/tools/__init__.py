"""What the checkout's own commands are made of."""
