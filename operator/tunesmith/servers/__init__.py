"""What others ask the operator over the network."""
