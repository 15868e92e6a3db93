"""A hospital's running service: Flower's SuperNode, and the executor that follows its orders with what is installed."""
