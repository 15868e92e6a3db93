"""What both sides agree on: the network, the study's plan, and the words they exchange."""
