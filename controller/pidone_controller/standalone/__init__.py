"""The repo without Kubernetes: plans and pods come from files."""
