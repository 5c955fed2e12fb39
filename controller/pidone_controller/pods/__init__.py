"""The pods of the cluster: what the controller keeps of each, and which of them is at an address."""
