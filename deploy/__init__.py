"""Deployment: starts the Triton server, and holds what runs around it (containers, Prometheus, Grafana, Kubernetes)."""
