"""The pod's end of the repo protocol: polls for the bundle, and reports the status."""
