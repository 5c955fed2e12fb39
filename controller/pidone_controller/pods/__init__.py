"""The pods of the cluster: the fields that the controller keeps, and the identity of a client at an address."""
