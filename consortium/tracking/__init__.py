"""Runs, metrics and dataset inputs in MLflow. `tracker` is the only importer of mlflow, on first use."""
