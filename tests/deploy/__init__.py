"""docker-compose.yml, the image and the Grafana dashboard, tried without Docker."""
