"""Tables and figures from MLflow and the store."""
